"""Layers found by the names of graph nodes."""

from __future__ import annotations

from edgecompress.converters.layer_paths import layer_of


def test_layer_of() -> None:
    known = ["block", "conv_1", "conv", "dense"]
    assert layer_of("model_1/block_2/conv_1/Relu;other/dense", known) == "conv_1"
    assert layer_of("model/conv_3/BiasAdd", known) == "conv"
    assert layer_of("model/pool/Mean", known) is None


def test_layer_of_finds_the_nested_model_of_layers_called_the_same() -> None:
    known = ["left/conv", "right/conv", "conv", "right/inner/conv", "right/inner/dense"]
    for name, expected in (
        ("model_1/left_2/conv_1/Relu", "left/conv"),
        ("model_1/right_1/conv/Relu", "right/conv"),
        ("model_1/right_1/inner/conv_3/Relu", "right/inner/conv"),
        ("model_1/conv_1/Relu", "conv"),
        ("model_1/elsewhere/conv_1/Relu", "conv"),
        ("right/conv/conv_2d", "right/conv"),
        ("model_1/right/inner/dense/MatMul", "dense"),
        ("model_1/right/inner/dense/conv_1", "dense"),
        ("conv", "conv"),
    ):
        assert layer_of(name, known) == expected
