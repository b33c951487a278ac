"""Phones: adb, and the programs that run a model on them."""
