"""`--format binary-weights`: int8 activations and weights of few bits, on stock phone runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgecompress.core.errors import ArgumentError, ConversionError
from edgecompress.core.units import format_size, format_time
from edgecompress.flatbuffers.model import FlatModel, read_tflite
from edgecompress.pipeline.formats import Job, Product, int8_source, proven_parity, register

if TYPE_CHECKING:
    from edgecompress.converters.binary_weights import FormatResult


@register(
    "binary-weights",
    from_tflite=True,
    targets=("phone", "host"),
    why="For microcontrollers take --format compressed.",
    options=("weight_format", "smallest"),
)
def make(job: Job) -> Product:
    """Makes every form of the weights; the one that was asked for, int8 by default, is checked."""
    from edgecompress.converters.binary_weights import compare
    from edgecompress.converters.weight_formats import WEIGHT_FORMATS

    chosen = str(job.options.get("weight_format", "smallest" if job.options else "int8"))
    if job.options.get("smallest") and chosen != "smallest":
        raise ArgumentError("--smallest", "be left out beside --weight-format", chosen)
    _ = WEIGHT_FORMATS[chosen]  # Refuses unknown names.
    source = int8_source(job)

    def latency(flat: FlatModel) -> float:
        from edgecompress.targets.bench import bench_host

        job.progress(f"Measuring latency of {format_size(len(flat.data))} on this computer")
        return bench_host(flat.data, processes=3).measured

    job.progress("Storing the weights in fewer bits and comparing the outputs")
    made = compare(source.plain, latency=latency)
    # Of the forms that change nothing, the one that was asked for is enough.
    results: Mapping[str, FormatResult] = {
        result.format: result for result in made.results if result.stored or result.format == chosen
    }
    unchanged = [result.format for result in made.results if result.format not in results]
    if chosen not in results:
        raise ConversionError(
            f"The weight format {chosen} cannot be made: {made.failures.get(chosen, 'no reason')}"
        )
    main = results[chosen]
    table = [
        f"{name}: {format_size(result.bytes)}, {format_size(result.compressed_bytes)} in a "
        f"download, {format_time(result.latency_us or 0.0)} on this computer ({result.kernels}); "
        f"outputs at most {result.steps:g} steps from the int8 file's"
        + "".join(
            f"; not in {engine}: {why.rstrip('.')}" for engine, why in result.engines.items() if why
        )
        + "."
        for name, result in results.items()
    ]
    before = (
        f"int8 file before: {format_size(made.bytes_before)}, "
        f"{format_size(made.compressed_before)} in a download, "
        f"{format_time(made.latency_before_us or 0.0)} on this computer."
    )
    if unchanged:
        table.append(f"No file of its own for {', '.join(unchanged)}: no weights would change.")
    failed = [f"No file with {name} weights: {why}" for name, why in made.failures.items()]
    return Product(
        artifacts=(*source.artifacts, *(result.artifact for result in results.values())),
        main=main.artifact,
        flat=read_tflite(main.artifact.data),
        layers=source.layers,
        parity=proven_parity(job, "litert", main.samples, main.steps),
        field_runtime=False,
        latencies={
            result.artifact.kind: result.latency_us
            for result in results.values()
            if result.latency_us is not None
        },
        parameters=source.flat.parameters(),
        notes=(*source.notes, *main.notes, before, *table, *failed),
    )
