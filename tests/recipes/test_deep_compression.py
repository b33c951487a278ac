"""The recipe from a model to the file that ships: what it does, writes, resumes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import keras
import numpy as np
import pytest
from keras import layers

import edgecompress as ec
from edgecompress.converters.accuracy import accuracy
from edgecompress.converters.real_values import quantize
from edgecompress.core.errors import (
    ArgumentError,
    EdgeCompressError,
    ModelFileError,
    UnknownNameError,
    UnsupportedModelError,
)
from edgecompress.core.record import record_of
from edgecompress.engines.run import run_engine
from edgecompress.flatbuffers.reading import read_tflite
from edgecompress.recipes import RECIPES, Epoch, deep_compression
from edgecompress.recipes.deep_compression_settings import DeepCompression
from edgecompress.recipes.deep_compression_stages import STAGES, cluster_counts, pruning_groups
from edgecompress.recipes.results import CompressionResult

from .conftest import CLASSES, Case, Run, classifier, labelled

pytestmark = pytest.mark.slow

_SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "compression.schema.json").read_text())


def _files(folder: Path) -> list[str]:
    """Returns the files of an output folder, but for what teachers computed."""
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return [name for name in found if not name.startswith("teacher_outputs/")]


class TestWholeRun:
    def test_files(self, whole: Run) -> None:
        names = _files(whole.folder)
        assert names == sorted(
            [
                "compression.html", "compression.json", "report.html", "report.json",
                "quarters_compressed.keras", "quarters_compressed.keras.edgecompress.json",
                "quarters_compressed.tflite", "quarters_compressed.tflite.edgecompress.json",
                "quarters_float32.tflite", "quarters_float32.tflite.edgecompress.json",
                "quarters_int8.tflite", "quarters_int8.tflite.edgecompress.json",
                "stages/cluster.keras", "stages/cluster.keras.edgecompress.json",
                "stages/prune.keras", "stages/prune.keras.edgecompress.json",
                "stages/remove.keras", "stages/remove.keras.edgecompress.json",
                "stages/state.json",
            ]
        )  # fmt: skip
        assert set(whole.result.files) <= set(names)
        # Of training and validation data.
        assert len(list((whole.folder / "teacher_outputs").glob("*/000000000.npz"))) == 2

    def test_json_is_what_the_schema_says(self, whole: Run) -> None:
        stored = json.loads((whole.folder / "compression.json").read_text())
        jsonschema.validate(stored, _SCHEMA)
        assert stored == json.loads(whole.result.to_json())
        assert stored["report"] == json.loads((whole.folder / "report.json").read_text())
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**stored, "drop": {}}, _SCHEMA)

    def test_the_keras_model_is_what_the_stages_say(self, whole: Run) -> None:
        model = keras.saving.load_model(whole.folder / "quarters_compressed.keras")
        kernels = {name: np.asarray(model.get_layer(name).kernel) for name in ("stem", "hidden")}
        # Half of 8 filters and half of 32 neurons are gone, and what hangs on them.
        assert kernels["stem"].shape == (3, 3, 1, 4)
        assert kernels["hidden"].shape == (16 * 4, 16)
        for name, most in (("stem", 31), ("hidden", 15)):
            values = np.unique(kernels[name])
            assert len(values[values != 0]) <= most
        pruned = [model.get_layer(n).kernel for n in ("stem", "hidden", "head")]
        zeros = sum(int((np.asarray(k) == 0).sum()) for k in pruned)
        size = sum(int(np.prod(k.shape)) for k in pruned)
        assert zeros / size == pytest.approx(0.7, abs=0.01)
        assert not model.compiled
        x, y = labelled(120, seed=1)
        shown = whole.result.stages[-2].metric
        assert (model.predict(x, verbose=0).argmax(1) == y).mean() == pytest.approx(shown)

    def test_stages(self, whole: Run) -> None:
        stages = whole.result.stages
        assert [s.name for s in stages] == [
            "original",
            "int8",
            "remove",
            "prune",
            "cluster",
            "file",
        ]
        assert [s.engine for s in stages] == ["keras", "tflm", "keras", "keras", "keras", "tflm"]
        assert [s.epochs for s in stages] == [0, 0, 2, 2, 2, 0]
        assert not any(stage.resumed for stage in stages)
        # Every stage makes the weights take less.
        sizes = [s.stored_bytes for s in stages if s.stored_bytes is not None]
        assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
        original = stages[0]
        assert original.weights == original.kept == 72 + 72 + 16 * 8 * 32 + 32 * 4
        assert original.stored_bytes == 4 * original.weights

    def test_the_task_is_learnt_and_kept(self, whole: Run) -> None:
        assert whole.result.drop.before > 0.9
        assert whole.result.drop.after > 0.8
        assert whole.result.exit_code == 0 and whole.result.verdict == "pass"

    def test_the_drop_is_that_of_the_file_in_its_engine(self, whole: Run, case: Case) -> None:
        x, y = labelled(120, seed=1)
        data = (whole.folder / "quarters_compressed.tflite").read_bytes()
        found = accuracy(data, x, y, engine="tflm").top1
        before = float((case.model.predict(x, verbose=0).argmax(1) == y).mean())
        drop = whole.result.drop
        assert (drop.before, drop.after) == pytest.approx((before, found))
        assert drop.drop == pytest.approx(before - found) and drop.samples == 120

    def test_the_coded_file_is_bit_exact(self, whole: Run) -> None:
        files = [
            (whole.folder / f"quarters_{kind}.tflite").read_bytes()
            for kind in ("int8", "compressed")
        ]
        x = np.random.default_rng(5).integers(-128, 128, (20, 8, 8, 1), np.int8)
        outputs = [run_engine("tflm", file, [x]).outputs[0] for file in files]
        np.testing.assert_array_equal(*outputs)
        assert "TFLM_DECODE" in read_tflite(files[1]).histogram()

    def test_totals_are_those_of_the_files(self, whole: Run) -> None:
        totals = whole.result.totals
        assert totals.file_bytes == (whole.folder / "quarters_compressed.tflite").stat().st_size
        assert totals.file_rate == totals.float_bytes / totals.file_bytes
        assert totals.paper_rate == totals.original_bytes / totals.huffman_bytes
        assert totals.weights == whole.result.stages[0].weights
        assert totals.kept == whole.result.stages[-1].kept
        assert totals.parameters_before > totals.parameters_after
        # 36 and 16 places, 8 and then 4 channels; half of the neurons.
        assert totals.macs == 36 * 72 + 16 * 72 + 128 * 32 + 32 * 4
        assert totals.macs_left == 36 * 36 + 16 * 36 + 64 * 16 + 16 * 4
        latency = totals.latency
        assert latency.before and latency.uncoded and latency.after
        # Removed channels are faster, decoding is slower.
        assert latency.before > latency.uncoded < latency.after
        assert latency.rate == latency.before / latency.after

    def test_progress(self, whole: Run) -> None:
        stages = [text for text in whole.progress if text.startswith("Stage")]
        assert stages == ["Stage 1 of 3: remove", "Stage 2 of 3: prune", "Stage 3 of 3: cluster"]
        told = [(e.stage, e.epoch, e.epochs) for e in whole.epochs]
        assert told == [(stage, n, 2) for stage in ("remove", "prune", "cluster") for n in (1, 2)]
        assert whole.epochs[-1].values["clusters"] <= 31
        assert {"loss", "val_accuracy", "sparsity"} <= set(whole.epochs[2].values)

    def test_notes_name_what_was_left(self, whole: Run) -> None:
        text = " ".join(whole.result.notes)
        assert "sparse_categorical_crossentropy(from_logits=True), the model's own" in text
        assert "depth is not pruned: DepthwiseConv2D layers are pruned only if named." in text
        assert "depth is not clustered" in text
        assert "First and last layer (stem, head): pruned like the others." in text
        assert "soft labels at temperature 4 are 90% of the loss" in text
        assert "Outputs of teachers are computed once, and kept in teacher_outputs." in text
        # The validation data are new to the model.
        assert "overstated" not in text

    def test_the_model_that_came_in_is_not_changed(self, whole: Run, case: Case) -> None:
        stored = keras.saving.load_model(case.path)
        for one, other in zip(stored.get_weights(), case.model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


class _Stop(Exception):
    """Ends a run where its export would begin."""


class TestResume:
    def _train(
        self, case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any
    ) -> list[str]:
        """Runs the stages alone; returns what was told of them."""
        told: list[str] = []
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(name="flat"), layers.Dense(4, name="head")],
            name="small",
        )

        def stop(*_: Any) -> None:
            raise _Stop

        monkeypatch.setattr(deep_compression, "_measure_baseline", lambda *_: None)
        monkeypatch.setattr(deep_compression, "_build", stop)
        options: dict[str, Any] = {"epochs": 1, "sparsity": 0.6, **more}
        with pytest.raises((_Stop, KeyboardInterrupt)):
            ec.compress(model, (case.x, case.y), output=folder, progress=told.append, **options)
        return [text for text in told if text.startswith("Stage")]

    def test_an_interrupted_run_goes_on(
        self, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(epoch: Epoch) -> None:
            if epoch.stage == "cluster":
                raise KeyboardInterrupt

        both = ["Stage 1 of 2: prune", "Stage 2 of 2: cluster"]
        second = ["Stage prune was finished by an earlier run", "Stage 2 of 2: cluster"]
        folder = tmp_path / "out"
        assert self._train(case, folder, monkeypatch, on_epoch=interrupt) == both
        assert _files(folder) == [
            "stages/prune.keras", "stages/prune.keras.edgecompress.json", "stages/state.json",
        ]  # fmt: skip
        state = json.loads((folder / "stages" / "state.json").read_text())
        assert [stage["name"] for stage in state["stages"]] == ["prune"]

        assert self._train(case, folder, monkeypatch) == second
        # As if nothing had happened.
        assert self._train(case, tmp_path / "whole", monkeypatch) == both
        stored = [
            keras.saving.load_model(place / "stages" / "cluster.keras").get_weights()
            for place in (folder, tmp_path / "whole")
        ]
        for one, other in zip(*stored, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)

        # Limits change no stage, clusters the last one alone.
        finished = self._train(case, folder, monkeypatch, max_drop=0.9, targets=["cortex-m7"])
        assert all("finished by an earlier run" in text for text in finished)
        assert self._train(case, folder, monkeypatch, clusters=7) == second

    @pytest.mark.usefixtures("in_process")
    def test_the_result_says_what_was_resumed(self, whole: Run, case: Case, tmp_path: Path) -> None:
        told: list[str] = []
        shutil.copytree(whole.folder, tmp_path / "copy")
        result = ec.compress(
            case.path, case.npz, validation=labelled(120, seed=1), output=tmp_path / "copy",
            targets=["nucleo-l4r5zi"], remove_channels=0.5, sparsity=0.7, epochs=2,
            learning_rate=5e-3, max_drop=0.0, min_accuracy=1.0, progress=told.append,
            argv=("edgecompress", "compress"),
        )  # fmt: skip
        assert sum("finished by an earlier run" in text for text in told) == 3
        assert [s.resumed for s in result.stages if s.epochs] == [True, True, True]
        assert [s.metric for s in result.stages] == [s.metric for s in whole.result.stages]
        assert result.layers == whole.result.layers
        assert result.report.model.sha256 == whole.result.report.model.sha256
        # What is allowed is not part of the stages.
        assert (result.exit_code, result.verdict) == (4, "fail")


class TestOtherModels:
    def test_an_autoencoder_learns_its_own_input(self, tmp_path: Path) -> None:
        keras.utils.set_random_seed(0)
        x = np.random.default_rng(0).normal(size=(120, 12)).astype("float32")
        x[:, 6:] = x[:, :6]
        model = keras.Sequential(
            [
                keras.Input((12,)),
                layers.Dense(24, activation="relu"),
                layers.Dense(12),
            ],
            name="auto",
        )
        model.compile(keras.optimizers.Adam(0.02), "mse")
        model.fit(x, x, epochs=20, shuffle=False, verbose=0)
        result = ec.compress(model, x, output=tmp_path, epochs=1, sparsity=0.5, max_drop=1e-9)
        assert result.data["kind"] == "values"
        assert result.drop.metric == "mean_squared_error"
        assert result.settings["distill"] is False
        assert result.drop.drop == result.drop.after - result.drop.before > 0
        # A single epoch costs something, and more than nothing was not allowed.
        assert (result.drop.verdict, result.exit_code, result.report.exit_code) == ("fail", 4, 0)
        assert "overstated" in " ".join(result.notes)
        assert "mean_squared_error" in " ".join(result.notes)

    def test_stages_can_be_left_out(self, case: Case, tmp_path: Path) -> None:
        result = ec.compress(
            case.model, (case.x, case.y), output=tmp_path, epochs=1, sparsity=0, distill=False,
            clusters={"hidden": 4},
        )  # fmt: skip
        assert [s.name for s in result.stages] == ["original", "int8", "cluster", "file"]
        by_name = {layer.name: layer.storage for layer in result.layers}
        assert by_name["hidden"].values == 4 and by_name["hidden"].index_bits == 0
        assert by_name["head"].weight_bits == 32
        assert "soft labels" not in " ".join(result.notes)
        assert "teachers" not in " ".join(result.notes)
        assert not (tmp_path / "teacher_outputs").exists()


def _wide() -> keras.Model:
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(5)])


@pytest.fixture(scope="module")
def parts(case: Case, tmp_path_factory: pytest.TempPathFactory) -> CompressionResult:
    import tensorflow as tf

    teachers = [classifier(), classifier()]
    for number, teacher in enumerate(teachers):
        teacher.name = f"teacher_{number}"
    return ec.compress(
        case.model,
        tf.data.Dataset.from_tensor_slices((case.x, case.y)).batch(64),
        validation=labelled(120, seed=1),
        teachers=teachers,
        output=tmp_path_factory.mktemp("parts"),
        remove_channels={"hidden": 0.5},
        sparsity={"hidden": 0.6},
        clusters={"hidden": 7},
        cluster_start="density",
        cluster_rounded=True,
        epochs={"remove": 2, "*": 1},
        learning_rate={"*": 2e-3, "cluster": 5e-4},
        temperature=3.0,
        metric=keras.metrics.F1Score(average="macro"),
        max_drop=0.9,
    )


class TestParts:
    """What is set by layer and by stage, teachers of one's own, and batches instead of arrays."""

    def test_only_what_was_named_changes(self, parts: CompressionResult) -> None:
        by_name = {layer.name: layer for layer in parts.layers}
        hidden, stem = by_name["hidden"], by_name["stem"]
        assert hidden.storage.weights == hidden.weights / 2
        assert hidden.storage.values == 7
        assert hidden.storage.kept == pytest.approx(0.4 * hidden.storage.weights, abs=1)
        assert stem.storage.weights == stem.weights == stem.storage.kept
        assert [s.name for s in parts.stages if s.epochs] == ["remove", "prune", "cluster"]

    def test_the_result_tells_them(self, parts: CompressionResult) -> None:
        notes = " ".join(parts.notes)
        assert "teacher_0, teacher_1 teach" in notes and "batches of a dataset, 5 an epoch" in notes
        assert "Outputs of teachers are computed in every step" in notes
        assert parts.settings["learning_rate"] == {"*": 2e-3, "cluster": 5e-4}
        assert parts.settings["cluster_rounded"] is True

    def test_it_is_judged_by_the_metric(self, parts: CompressionResult) -> None:
        x, y = labelled(120, seed=1)
        file = Path(str(parts.report.model.path)).read_bytes()
        flat = read_tflite(file)
        codes = quantize(x, flat.tensors[flat.inputs[0]])
        found = run_engine("tflm", file, [codes]).outputs[0].reshape(120, CLASSES).argmax(1)
        scores = [
            2 * np.sum((found == k) & (y == k)) / (np.sum(found == k) + np.sum(y == k))
            for k in range(CLASSES)
        ]
        assert parts.drop.metric == parts.data["metric"] == "f1_score"
        assert parts.drop.after == pytest.approx(np.mean(scores), abs=1e-5)
        assert parts.drop.drop == parts.drop.before - parts.drop.after
        assert parts.drop.verdict == "pass"

    def test_the_file_has_the_ranges_of_training(self, parts: CompressionResult) -> None:
        folder = Path(str(parts.report.model.path)).parent
        record = json.loads((folder / "quarters_compressed.keras.edgecompress.json").read_text())
        assert {"hidden", "head"} <= set(record["record"]["ranges"])

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"remove_channels": {"hiden": 0.5}}, "--remove-channels.*hidden"),
            ({"teachers": [classifier()], "distill": False}, "left out with --no-distill"),
            ({"teachers": [_wide()]}, r"`--teacher` must have outputs of shapes \[\(4,\)\]"),
        ],
    )
    def test_what_does_not_fit_the_model(
        self, settings: dict[str, Any], text: str, case: Case, tmp_path: Path
    ) -> None:
        with pytest.raises(ArgumentError, match=text):
            ec.compress(case.model, (case.x, case.y), output=tmp_path, **settings)

    def test_a_rate_of_one_stage_is_part_of_that_stage(self) -> None:
        one, other = (
            [
                stage.identity(DeepCompression(learning_rate={"*": 1e-3, "cluster": rate}))
                for stage in STAGES
            ]
            for rate in (1e-3, 1e-4)
        )
        changed = [s.name for s, a, b in zip(STAGES, one, other, strict=True) if a != b]
        assert changed == ["cluster"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"sparsity": 1.0}, "`--sparsity` must be a share, at least 0 and below 1. Got 1.0."),
            ({"sparsity": {"head": -1}}, "`--sparsity head` must be a share"),
            ({"scope": "all"}, "`--scope` must be global or layer"),
            ({"first_last": "kept"}, "keep"),
            ({"clusters": 1}, "`--clusters` must be a whole number, 2 or more, or 0 for none"),
            ({"clusters": {"*": 2.5}}, "`--clusters` must be a whole number"),
            ({"remove_channels": 1}, "`--remove-channels` must be a share"),
            ({"remove_channels": {"hidden": 2}}, "`--remove-channels hidden` must be a share"),
            ({"remove_channels": {"*": 0.5, "stem": 0.2}}, "be one share for all layers, or name"),
            ({"learning_rate": {"prun": 1e-3}}, "prune"),
            ({"cluster_start": "dense"}, "density"),
            ({"epochs": 0}, "`--epochs` must be a whole number, 1 or more"),
            ({"epochs": {"prun": 3}}, "prune"),
            ({"remove_channels": 0.5, "epochs": 1}, "`--epochs` must give the stage remove 2"),
            ({"batch_size": 0}, "`--batch-size` must be a whole number, 1 or more"),
            ({"learning_rate": float("nan")}, "`--learning-rate` must be a number greater than 0"),
            ({"temperature": 0}, "`--temperature` must be a number greater than 0"),
            ({"soft_weight": 1.0}, "`--soft-weight` must lie between 0 and 1"),
            ({"validation_split": 0}, "`--validation-split` must lie between 0 and 1"),
            ({"index_bits": 17}, "`--index-bits` must be a whole number, 1 to 16"),
            ({"seed": -1}, "`--seed` must be a whole number, 0 or more"),
            ({"max_drop": -0.1}, "`--max-drop` must be a number, 0 or more"),
            ({"sparsty": 0.5}, "sparsity"),
        ],
    )
    def test_settings(self, settings: dict[str, Any], text: str) -> None:
        with pytest.raises(ArgumentError) as caught:
            ec.compress("model.keras", "data.npz", **settings)
        assert text in str(caught.value)

    def test_unknown_recipe(self) -> None:
        with pytest.raises(UnknownNameError, match="deep-compression"):
            ec.compress("model.keras", "data.npz", recipe="deep-compresion")
        assert list(RECIPES) == ["deep-compression"]

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"targets": ["pixel-8"]}, "be a microcontroller"),
            ({"targets": ["nowhere"]}, "known name"),
            ({"max_ram": "much"}, "--max-ram"),
            ({"min_accuracy": 2}, "--min-accuracy"),
            ({"kernels": "fast"}, "--kernels"),
            ({"output": __file__}, "be a folder"),
        ],
    )
    def test_what_the_export_would_refuse_is_refused_at_once(
        self, options: dict[str, Any], text: str, tmp_path: Path
    ) -> None:
        # Before the model is even looked for.
        with pytest.raises(ArgumentError, match=text):
            ec.compress("no.keras", "no.npz", **{"output": tmp_path, **options})

    @pytest.mark.usefixtures("in_process")
    def test_models(self, case: Case, tmp_path: Path) -> None:
        data = (case.x, case.y)
        frozen = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(4)])
        frozen.trainable = False
        with pytest.raises(UnsupportedModelError, match="no trainable weights"):
            ec.compress(frozen, data, output=tmp_path)
        inputs = keras.Input((8, 8, 1))
        flat = layers.Flatten()(inputs)
        two = keras.Model(inputs, [layers.Dense(4)(flat), layers.Dense(4)(flat)])
        with pytest.raises(UnsupportedModelError, match="2 outputs"):
            ec.compress(two, data, output=tmp_path)
        (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(20))
        with pytest.raises(ModelFileError, match="already converted"):
            ec.compress(tmp_path / "m.tflite", data, output=tmp_path)
        with pytest.raises(ArgumentError, match="another folder"):
            path = tmp_path / "m_compressed.keras"
            case.model.save(tmp_path / "m.keras")
            (tmp_path / "m.keras").rename(path)
            loop = tmp_path / "m_compressed_compressed.keras"
            loop.symlink_to(path)
            ec.compress(path, data, output=tmp_path)
        broken = keras.models.clone_model(case.model)
        broken.get_layer("head").bias.assign(np.full(4, np.nan))
        with pytest.raises(
            EdgeCompressError, match="'head'.*its weight 'bias' are NaN or infinite"
        ):
            ec.compress(broken, data, output=tmp_path)

    def test_classifiers_alone_are_distilled(self, tmp_path: Path) -> None:
        model = keras.Sequential([keras.Input((6,)), layers.Dense(6)])
        x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
        with pytest.raises(ArgumentError, match="--distill.*classifier"):
            ec.compress(model, x, output=tmp_path, distill=True)
        with pytest.raises(ArgumentError, match="--min-accuracy.*classifier"):
            ec.compress(model, x, output=tmp_path, min_accuracy=0.5)

    def test_models_without_removable_filters_are_named(self, tmp_path: Path) -> None:
        model = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="only")])
        x = np.random.default_rng(0).normal(size=(40, 6)).astype("float32")
        with pytest.raises(ArgumentError, match="--remove-channels.*be left out.*only"):
            ec.compress(model, x, output=tmp_path, remove_channels=0.5)

    def test_training_that_comes_apart_ends_it(
        self, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(deep_compression, "_measure_baseline", lambda *_: None)
        with pytest.raises(EdgeCompressError, match="Training diverged: lower the learning rate"):
            ec.compress(
                case.model, (case.x, case.y), output=tmp_path / "out", learning_rate=1e30,
                epochs=2, clusters=0,
            )  # fmt: skip
        assert _files(tmp_path / "out") == []


class TestChoices:
    def _names(self, settings: DeepCompression) -> dict[tuple[float, str], list[str]]:
        groups, _ = pruning_groups(classifier(), settings)
        return {(g.sparsity, g.scope): [layer.name for layer in g.layers] for g in groups}

    def test_one_share_for_all(self) -> None:
        assert self._names(DeepCompression(sparsity=0.8)) == {
            (0.8, "global"): ["stem", "hidden", "head"]
        }
        assert self._names(DeepCompression(sparsity=0.8, scope="layer")) == {
            (0.8, "layer"): ["stem", "hidden", "head"]
        }

    def test_first_and_last(self) -> None:
        assert self._names(DeepCompression(sparsity=0.8, first_last="half")) == {
            (0.4, "layer"): ["stem", "head"],
            (0.8, "global"): ["hidden"],
        }
        keep = DeepCompression(sparsity=0.8, first_last="keep")
        assert self._names(keep) == {(0.8, "global"): ["hidden"]}
        notes = pruning_groups(classifier(), keep)[1]
        assert "First and last layer (stem, head): not pruned." in notes

    def test_by_name(self) -> None:
        named = DeepCompression(sparsity={"*": 0.8, "head": 0.3, "depth": 0.5}, first_last="keep")
        assert self._names(named) == {
            (0.3, "layer"): ["head"],
            (0.5, "layer"): ["depth"],
            (0.8, "global"): ["hidden"],
        }
        assert self._names(DeepCompression(sparsity={"hidden": 0.9})) == {
            (0.9, "layer"): ["hidden"]
        }

    def test_clusters(self) -> None:
        def counts(clusters: Any) -> dict[str, int]:
            found, _ = cluster_counts(classifier(), DeepCompression(clusters=clusters))
            return {layer.name: number for layer, number in found}

        assert counts(None) == {"stem": 31, "hidden": 15, "head": 15}
        assert counts(7) == {"stem": 7, "hidden": 7, "head": 7}
        assert counts({"head": 3}) == {"head": 3}
        assert counts({"*": 7, "depth": 4, "head": 0}) == {"stem": 7, "depth": 4, "hidden": 7}

    def test_names_are_checked(self) -> None:
        with pytest.raises(UnknownNameError, match="hidden"):
            pruning_groups(classifier(), DeepCompression(sparsity={"hiden": 0.5}))
        with pytest.raises(ArgumentError, match="relu.*ReLU"):
            cluster_counts(classifier(), DeepCompression(clusters={"relu": 5}))

    def test_frozen_layers_are_left_and_named(self) -> None:
        model = classifier()
        model.get_layer("hidden").trainable = False
        _, notes = pruning_groups(model, DeepCompression())
        assert "hidden is not pruned: it is frozen (trainable=False)." in notes
        for name in ("stem", "head"):
            model.get_layer(name).trainable = False
        with pytest.raises(ArgumentError, match="at least one layer to prune"):
            pruning_groups(model, DeepCompression())

    def test_learnt_ranges_are_dropped(self, whole: Run) -> None:
        model = keras.saving.load_model(whole.folder / "quarters_compressed.keras")
        assert record_of(model).ranges == {}
