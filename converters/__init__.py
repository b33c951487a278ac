"""Conversion to .tflite files, one module per format; comparison with the Keras model."""

# Importing a format registers it.
from edgecompress.converters import binary_weights, compressed, int8, sparse, xnor

__all__ = ["binary_weights", "compressed", "int8", "sparse", "xnor"]
