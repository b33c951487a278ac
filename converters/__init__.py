"""Converters: a Keras model or a flatbuffer in, a flatbuffer out; and its verification."""
