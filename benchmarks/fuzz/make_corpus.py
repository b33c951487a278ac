"""Writes the seeds of the harnesses: small files of every form that the readers take.

Usage: `python benchmarks/fuzz/make_corpus.py MODEL.tflite ...`. The models are those that
`tests/tiny_models.py` makes, the others are made here; the same calls give the same files.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import mutations
import numpy as np

from edgecompress.core.bundle import Bundle, BundleModel, BundleTensor, Golden
from edgecompress.core.files import sha256
from edgecompress.core.record import CompressionRecord, sidecar_text

HERE = Path(__file__).resolve().parent / "corpus"
ROOT = HERE.parents[2]


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip archive that is the same each time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, data in members.items():
            made.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def arrays() -> dict[str, bytes]:
    """Returns .npy and .npz files, and what harnesses put before them."""
    floats = np.arange(12, dtype=np.float32).reshape(3, 4)
    npy = {
        "float": _npy(floats), "fortran": _npy(np.asfortranarray(floats)),
        "scalar": _npy(np.array(7, np.int64)), "empty": _npy(np.zeros((0, 3), np.uint8)),
        "text": _npy(np.array(["a", "bc"])), "bool": _npy(np.array([True, False])),
        "big": _npy(np.arange(3, dtype=">i2")), "objects": _npy(np.array([None])),
        "fields": _npy(np.zeros(2, [("a", "<f4"), ("b", "<i2")])),
    }  # fmt: skip
    members = {"x.npy": npy["float"], "y.npy": npy["scalar"]}
    made = {f"{name}.npy": data for name, data in npy.items()}
    made["stored.npz"] = archive(members)
    made["deflated.npz"] = archive(members, zipfile.ZIP_DEFLATED)
    return made


def archives() -> dict[str, bytes]:
    """Returns zip archives of several makers."""
    keras = {
        "metadata.json": b'{"keras_version": "3.12.0"}',
        "config.json": b'{"class_name": "Sequential", "config": {"name": "m", "layers": []}}',
        "model.weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(64),
    }
    folder = io.BytesIO()
    with zipfile.ZipFile(folder, "w") as made:
        made.writestr(zipfile.ZipInfo("assets/"), b"")
        with made.open(zipfile.ZipInfo("assets/a"), "w", force_zip64=True) as member:
            member.write(b"abc")
        made.comment = b"a comment"
    return {
        "model.keras": archive(keras),
        "deflated.keras": archive(keras, zipfile.ZIP_DEFLATED),
        "zip64.zip": folder.getvalue(),
        "empty.zip": archive({}),
        "app.zip": archive({"AndroidManifest.xml": b"io.edgecompress.demo", "lib/x/y.so": b"1"}),
    }


def texts() -> dict[str, bytes]:
    """Returns JSON files of every schema that is read."""
    tensor = BundleTensor("image", (1, 1), "int8", 0.5, 3)
    # Every file that it names holds this, so a bundle with all of them beside it can be read.
    digest = sha256(mutations.FILE)
    golden = Golden(1, ("golden/i.bin",), ("golden/o.bin",),
                    {"golden/i.bin": digest, "golden/o.bin": digest}, "LiteRT", "2.1", "xnnpack",
                    1, 1e-3)  # fmt: skip
    model = BundleModel("m.tflite", "int8", digest, 1, "litert", (tensor,), (tensor,), golden)
    budgets = {"max_latency_us": 5.0, "max_file_size": 9, "max_ram": None, "min_accuracy": 0.5}
    record = CompressionRecord(({"technique": "magnitude_pruning", "sparsity": 0.5},),
                               {"input:0": (0.0, 1.0)}, {"conv": (8, 4)}, ("a note",))  # fmt: skip
    bundle = Bundle("m", "pixel-8", (model,), budgets, "0.1", ("a", "b"), record.to_dict())
    return {
        "bundle.json": bundle.to_json().encode(),
        "measurement.json": json.dumps(_measurement(digest)).encode(),
        "record.json": sidecar_text(record, b"model").encode(),
        "values.json": json.dumps([[], {}, None, True, 1.5e-3, -7, "\u00e9\u202e"]).encode(),
    }


def _measurement(digest: str) -> dict[str, object]:
    latency = dict.fromkeys(
        ("init", "first", "min", "p5", "median", "p95", "max", "mean", "std", "warmup", "p90"), 9.5
    )
    state = {"thermal_before": 0, "thermal_after": None}
    one = {
        "tier": "measured_device", "target": "pixel-8",
        "model": {"sha256": digest, "bytes": 1, "kind": "int8", "file": "m.tflite"},
        "runtime": {"name": "LiteRT", "version": "2", "api": "interpreter", "kernels": None},
        "config": {"threads": 1, "xnnpack": True, "warmup": 2, "runs": 5, "min_s": 0.5,
                   "repeats": 2, "processes": 1, "input": "golden"},
        "state": state,
        "latency_us": {**latency, "spread_pct": 1.5, "samples": 5, "inferences_per_sample": 1,
                       "repeat_medians": [9.0, 9.5],
                       "histogram": {"edges": [1.0, 2.0], "counts": [3]}},
        "memory_kb": {"init": 1.5, "overall": None, "peak": 7},
        "golden": {"checked": 1, "equal": 1, "max_steps": 0, "max_error": None, "passed": True,
                   "kernels": "xnnpack"},
        "checks": [{"rule": "latency", "verdict": "pass"}],
        "output_sha256": digest, "error": None, "time": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return {
        "schema": "edgecompress.measurement/1", "tool": {"name": "edgecompress", "version": "1"},
        "time": "2026-01-01T00:00:00Z",
        "bundle": {"name": "m", "target": "pixel-8", "sha256": digest},
        "device": {"manufacturer": "Google", "model": "Pixel 8"}, "state": state,
        "measurements": [one], "error": None,
    }  # fmt: skip


def tables() -> dict[str, bytes]:
    """Returns TOML files: profiles, configuration, and each kind of value."""
    profiles = ("cortex-m4", "nucleo-l4r5zi", "pixel-8", "host")
    made = {f"{n}.toml": (ROOT / "targets" / f"{n}.toml").read_bytes() for n in profiles}
    made["config.toml"] = (
        b'target = ["cortex-m4", "own.toml"]\nmax_ram = "96KiB"\nmax_flash = 1000000\n'
        b'max-latency = "60ms"\nmin_accuracy = 0.9\nkernels = "reference"\nquiet = true\n'
    )
    made["values.toml"] = (
        b"a = [1, 0x1f, 0b1, 1_000, -1.5e3, inf, nan]\nb.c = {d = 1}\n[e.\"f g\"]\nh = '''x\ny'''\n"
        b"[[i]]\nj = 2026-01-01T00:00:00Z\n[[i]]\nk = 07:32:00\n"
    )
    return made


def main() -> None:
    """Writes all seeds."""
    made = {
        "archive": archives(),
        "json": texts(),
        "npz": {name: (b"m" if name.endswith(".npy") else b"r") + data
                for name, data in arrays().items()},
        "toml": tables(),
        "flatbuffer": {Path(name).name: Path(name).read_bytes() for name in sys.argv[1:]},
    }  # fmt: skip
    for kind, files in made.items():
        folder = HERE / kind
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    print(sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()), "bytes of seeds")


if __name__ == "__main__":
    main()
