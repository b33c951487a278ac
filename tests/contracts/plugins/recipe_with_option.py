"""A toy plugin: a recipe with an option, Deep Compression that only prunes."""

import dataclasses
from dataclasses import dataclass

from edgecompress.core.options import option, share
from edgecompress.recipes.deep_compression import run
from edgecompress.recipes.deep_compression_settings import DeepCompression
from edgecompress.recipes.registry import RECIPES, Recipe, Request
from edgecompress.recipes.results import CompressionResult


@dataclass(frozen=True)
class Thinning:
    """The settings of the recipe."""

    thinness: float = option(0.5, "Share of weights that goes.", share())


def thin(request: Request) -> CompressionResult:
    """Prunes, and converts."""
    settings = DeepCompression(sparsity=request.settings.thinness, clusters=0, epochs=1)
    result = run(dataclasses.replace(request, settings=settings))
    return dataclasses.replace(result, notes=(*result.notes, "Thinned by a toy."))


RECIPES.register("thinning")(Recipe("thinning", Thinning, thin))
