"""Quantizers: pure functions over keras.ops."""
