"""Phones: adb, and the programs that run a model there."""
