"""Layers and blocks of layers that a model is built from, one file each."""
