"""One network of `qat_agreement.py` in tensorflow-model-optimization, with tf_keras.

    python benchmarks/qat_agreement_peer.py NETWORK SQUARE EPOCHS GIVEN.npz MADE.npz

GIVEN holds the data and the float weights, MADE gets the outputs of the trained model on the test
samples and the int8 file.
"""

from __future__ import annotations

import os
import sys

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
import tf_keras
from qat_agreement_networks import (
    BATCH,
    FURTHER_RATE,
    NETWORKS,
    Input,
    build,
    keeps_probabilities,
)
from tensorflow_model_optimization.python.core.quantization.keras import quantize


def main() -> None:
    """Trains and converts."""
    network, square, epochs, given, made = sys.argv[1:]
    with np.load(given) as data:
        x, y, x_test = data["x"], data["y"], data["x_test"]
        weights = [data[f"w{i}"] for i in range(len(data.files) - 3)]
    inputs = Input(x.shape[1:], bool(int(square)), 10 if int(square) else 7)
    model = build(tf_keras, NETWORKS[network], inputs)
    model.set_weights(weights)
    probabilities = keeps_probabilities(model)
    model = quantize.quantize_model(model)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=not probabilities)
    tf_keras.utils.set_random_seed(1)
    steps = int(epochs) * -(-len(x) // BATCH)
    decay = tf_keras.optimizers.schedules.CosineDecay(FURTHER_RATE, steps)
    model.compile(tf_keras.optimizers.Adam(decay), loss)
    model.fit(x, y, batch_size=BATCH, epochs=int(epochs), verbose=0)
    outputs = model.predict(x_test, batch_size=250, verbose=0)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    np.savez(made, outputs=outputs, content=np.frombuffer(converter.convert(), np.uint8))


if __name__ == "__main__":
    main()
