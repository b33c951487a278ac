"""Sparsity schedules: pure functions from a training step to a value."""
