"""Streaming files: step by step they compute what the model computes on the whole sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgecompress.converters.formats import FORMATS, Costs, FormatRequest
from edgecompress.converters.loaders import example_inputs, wrap
from edgecompress.converters.streaming import stream
from edgecompress.converters.streaming_files import check_states
from edgecompress.converters.verify import verify
from edgecompress.core.errors import ConversionError, EdgeCompressError, UnsupportedModelError
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.stepping import Stepping

keras = pytest.importorskip("keras")

pytestmark = pytest.mark.slow
layers = keras.layers
SEQUENCE = {"return_sequences": True}


def sequential(shape: tuple[int, ...], *body: Any, seed: int = 0) -> Any:
    """Returns a model with random weights."""
    random = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input(shape, name="x"), *body])
    model.set_weights([random.uniform(0.2, 0.7, w.shape) * random.choice([-1, 1, 1], w.shape)
                       for w in model.weights])  # fmt: skip
    return model


def depthwise_separable() -> list[Any]:
    """A causal network for keywords; its first convolution reads every other time step."""
    return [
        layers.ZeroPadding2D(((2, 0), (1, 1))),
        layers.Conv2D(3, 3, strides=(2, 1), activation="relu"),
        layers.ZeroPadding2D(((2, 0), (1, 1))),
        layers.DepthwiseConv2D(3, name="depthwise"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2),
    ]


MODELS = {
    "gru": lambda: sequential((4, 3), layers.GRU(4, **SEQUENCE), layers.Dense(2)),
    "lstm": lambda: sequential((4, 3), layers.LSTM(4, **SEQUENCE), layers.Dense(2)),
    "convolutions": lambda: sequential(
        (4, 3),
        layers.Conv1D(4, 3, padding="causal", activation="relu"),
        layers.Conv1D(3, 2, padding="causal", dilation_rate=2),
        layers.Dense(2),
    ),  # fmt: skip
    "keywords": lambda: sequential((6, 3, 1), *depthwise_separable()),
}
STATES = {"gru": 1, "lstm": 0, "convolutions": 2, "keywords": 3}


@pytest.mark.parametrize("name", MODELS)
def test_each_step_of_the_files_is_that_of_the_whole_sequence(name: str) -> None:
    model = MODELS[name]()
    x = example_inputs(wrap(model).inputs, 40)
    reference = wrap(model).predict(x)
    costs = Costs(lambda flat, memory: None, lambda flat: None, lambda flat: 0.0)
    options = FORMATS["int8"].options(streaming=True)
    request = FormatRequest("m", wrap(model), None, tuple(x), options, costs, lambda text: None)
    made = FORMATS["int8"].make(request)
    stepping = made.main.stepping
    assert stepping is not None
    assert stepping.hop == (2 if name == "keywords" else 1)
    assert len(stepping.states) == STATES[name]
    assert any(note.startswith("Streaming: one inference reads ") for note in made.notes)
    for artifact in made.artifacts:
        flat = artifact.flat
        assert flat.tensors[flat.inputs[0]].shape[1] == stepping.hop
        for engine in ("litert", "tflm"):
            parity = verify(
                flat, reference=reference, samples=x, engine=engine, kind="values",
                stepping=artifact.stepping,
            )  # fmt: skip
            if artifact.kind == "float32":
                assert parity.max_error < 1e-5
            else:
                assert min(o.r2 for o in parity.outputs if o.r2 is not None) > 0.97
    # The last output depends on what only a state can know.
    other = [np.concatenate([0 * array[:, :1], array[:, 1:]], axis=1) for array in x]
    floats = made.artifacts[0].flat
    ends = [
        run_engine("litert", floats.data, given, stepping=stepping).outputs[0].reshape(40, -1, 2)
        for given in (x, other)
    ]
    assert np.abs(ends[0][:, -1] - ends[1][:, -1]).max() > 1e-3
    if stepping.states:
        check_states(made.main.flat, stepping)
        lost = Stepping(stepping.hop, (0, *stepping.states[1:]), stepping.rows)
        with pytest.raises(ConversionError, match="different types or scales"):
            check_states(made.main.flat, lost)


def test_sequences_that_do_not_fit_are_refused() -> None:
    streamed = stream(wrap(MODELS["keywords"]()), fused=False)
    from edgecompress.converters import float32

    data = float32.convert(streamed.loaded, taps=False).artifact.data
    five = np.zeros((1, 5, 3, 1), np.float32)
    with pytest.raises(EdgeCompressError, match="hold sequences of inputs"):
        run_engine("litert", data, [five], stepping=streamed.stepping)


@pytest.mark.parametrize(("body", "message"), [
    ([layers.Bidirectional(layers.GRU(2), name="both")], "both.*Use its forward layer alone"),
    ([layers.GRU(2, go_backwards=True, name="back")], "back.*starts with the last time step"),
    ([layers.Softmax(axis=1, name="share")], "share.*computes over the time axis"),
    ([layers.Conv1D(2, 3, padding="same", name="wide")], "wide.*looks ahead.*padding='causal'"),
    ([layers.Conv1D(2, 3), layers.GRU(2, name="late")], "late.*first whole window"),
    ([layers.MaxPooling1D(3, 1, name="pool")], "pool.*overlap in time"),
    ([layers.ZeroPadding1D((1, 1), name="pad")], "pad.*pads after the last time step"),
    ([layers.ZeroPadding1D((1, 0)), layers.ReLU(name="read")], "read.*only padding"),
    ([layers.ZeroPadding1D((1, 0))], "output reads time steps that are only padding"),
    ([layers.UpSampling1D(2, name="up")], "up.*not known to compute one time step"),
    ([layers.Conv1D(2, 1, strides=3)], "4 is not a multiple of that"),
])  # fmt: skip
def test_what_cannot_stream_is_refused_by_name(body: list[Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        stream(wrap(sequential((4, 3), *body)), fused=False)


def test_inputs_must_be_sequences_of_one_length() -> None:
    a, b = keras.Input((4, 3)), keras.Input((3,))
    model = keras.Model([a, b], layers.Add()([layers.GRU(3)(a), b]))
    with pytest.raises(UnsupportedModelError, match="sequences of one fixed length"):
        stream(wrap(model), fused=False)
    with pytest.raises(UnsupportedModelError, match="computes over the time axis"):
        stream(wrap(sequential((4,), layers.Dense(2))), fused=False)
