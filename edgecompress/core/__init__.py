"""Shared by all parts: errors, registry, results, files, options, Keras graph reading."""
