"""A toy plugin: a recipe with an option, Deep Compression that only prunes."""

import dataclasses
from dataclasses import dataclass

from edgecompress.core.options import option, share
from edgecompress.recipes.deep_compression import run
from edgecompress.recipes.deep_compression_settings import DeepCompression
from edgecompress.recipes.registry import RECIPES, Recipe, Request
from edgecompress.recipes.results import CompressionResult


@dataclass(frozen=True)
class Thinning(DeepCompression):
    """The settings of Deep Compression, and the share to prune."""

    thinness: float = option(0.5, "Share of weights to prune.", share())


def thin(request: Request) -> CompressionResult:
    """Prunes and converts."""
    asked = request.settings
    settings = dataclasses.replace(asked, sparsity=asked.thinness, clusters=0, epochs=1)
    return run(dataclasses.replace(request, settings=settings))


RECIPES.register("thinning")(Recipe("thinning", Thinning, thin))
