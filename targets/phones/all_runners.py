"""The runners on phones; importing this module registers the built-in ones."""

from edgecompress.targets.phones import benchmark_model, litert, runners

__all__ = ["benchmark_model", "litert", "runners"]
