"""Targets: what a device offers, and whether a flatbuffer fits."""
