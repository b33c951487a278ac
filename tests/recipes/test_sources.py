"""Training data of every kind, each beside one that is broken."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import edgecompress.recipes.sources as sources
from edgecompress.converters.loaders import LoadedModel, wrap
from edgecompress.core.errors import ArgumentError
from edgecompress.recipes.data import Data, load
from edgecompress.recipes.samples import Samples, Stream
from edgecompress.recipes.sources import SOURCES, source_of
from edgecompress.recipes.task import find_task, first_outputs
from edgecompress.recipes.training import Trainer
from edgecompress.training.distillation import Distillation

pytestmark = pytest.mark.slow

_RNG = np.random.default_rng(0)
_X = _RNG.normal(size=(40, 6)).astype("float32")
_Y = np.arange(40) % 3


def _loaded(shape: tuple[int, ...] = (6,), units: int = 3, dtype: str = "float32") -> LoadedModel:
    keras.utils.set_random_seed(1)
    return wrap(
        keras.Sequential([keras.Input(shape, dtype=dtype), layers.Flatten(), layers.Dense(units)])
    )


def _dataset(x: Any = _X, y: Any = _Y, batch: int = 8) -> Any:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


class _Sequence(keras.utils.PyDataset):
    def __init__(self, batches: int = 5, endless: bool = False) -> None:
        super().__init__()
        self._batches = None if endless else batches
        self.ended = 0

    @property
    def num_batches(self) -> int | None:
        return self._batches

    def __getitem__(self, at: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(8 * (at % 5), 8 * (at % 5) + 8)
        return _X[rows], _Y[rows]

    def on_epoch_end(self) -> None:
        self.ended += 1


def _load(data: Any, validation: Any = (_X[:8], _Y[:8]), **asked: Any) -> Data:
    return load(data, validation, _loaded(), 0.25, 0, **asked)


def _stream(data: Data) -> Stream:
    if data.stream is None:
        raise AssertionError("samples in memory")
    return data.stream


def _epoch(stream: Stream) -> list[Samples]:
    return [batch for batch, _ in zip(stream.batches(), range(stream.steps), strict=False)]


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Returns a function that makes a module with a function, and returns its name."""

    def make(function: Any) -> str:
        module = ModuleType("user_data")
        module.make = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "user_data", module)
        return "user_data:make"

    return make


_GIVEN = {
    "folder": lambda: Path(__file__).parent,
    "function": lambda: "my.data:train",
    "dataset": _dataset,
    "arrays": lambda: {"x": _X, "y": _Y},
}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_each_kind_is_told_from_the_others(name: str) -> None:
    given = _GIVEN[name]()
    assert source_of(given) is SOURCES[name]
    taking = [kind.name for kind in SOURCES.values() if kind.takes(given)]
    assert taking == ([] if name == "arrays" else [name])
    for other in (Path("train.npz"), "C:\\data", "https://a.b:80", (_X, _Y), _X):
        assert source_of(other).name == "arrays"


class TestDatasets:
    @pytest.mark.parametrize("made", [_dataset, _Sequence])
    def test_batches_of_an_epoch(self, made: Callable[[], Any]) -> None:
        data = _load(made())
        stream = _stream(data)
        assert stream.steps == data.steps(64) == 5
        batches = _epoch(stream)
        np.testing.assert_array_equal(np.concatenate([b.x[0] for b in batches]), _X)
        np.testing.assert_array_equal(np.concatenate([b.y for b in batches]), _Y)
        np.testing.assert_array_equal(data.train.x[0], _X)
        assert len(data.validation) == 8

    def test_the_next_epoch_is_read_anew(self) -> None:
        given = _Sequence()
        batches = _stream(_load(given)).batches()
        before = given.ended
        first = [next(batches).x[0] for _ in range(5)]
        np.testing.assert_array_equal(next(batches).x[0], first[0])
        assert given.ended == before + 1

    @pytest.mark.parametrize("made", [lambda: _dataset().repeat(), lambda: _Sequence(endless=True)])
    def test_without_an_end_the_steps_are_asked_for(self, made: Callable[[], Any]) -> None:
        with pytest.raises(ArgumentError, match="--steps-per-epoch.*be given with --data"):
            _load(made())
        stream = _stream(_load(made(), steps_per_epoch=7))
        assert stream.steps == 7 and len(_epoch(stream)) == 7

    def test_only_a_bounded_number_is_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "SAMPLED", 10)
        data = _load(_dataset())
        assert len(data.train) == 10
        monkeypatch.setattr(sources, "MOST_VALIDATION", 39)
        assert len(_load((_X, _Y), _dataset(_X[:39], _Y[:39])).validation) == 39
        with pytest.raises(ArgumentError, match="--validation.*39 samples at most"):
            _load((_X, _Y), _dataset())
        with pytest.raises(ArgumentError, match="--validation.*39 samples at most"):
            _load((_X, _Y), _dataset().repeat())

    def test_inputs_by_name(self) -> None:
        inputs = {"b": keras.Input((2,), name="b"), "a": keras.Input((4,), name="a")}
        model = keras.Model(
            inputs, layers.Dense(3)(layers.Concatenate()([inputs["a"], inputs["b"]]))
        )
        parts = {"a": _X[:, :4], "b": _X[:, 4:]}
        data = load(_dataset(parts), _dataset(parts), wrap(model), 0.25, 0)
        names = [spec.name for spec in wrap(model).inputs]
        for samples in (data.validation, _epoch(_stream(data))[0]):
            for name, array in zip(names, samples.x, strict=True):
                np.testing.assert_array_equal(array, parts[name][: len(samples)])
        with pytest.raises(ArgumentError, match="yield the input"):
            load(_dataset({"a": _X[:, :4]}), _dataset(parts), wrap(model), 0.25, 0)

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (lambda: _dataset().unbatch(), "yield batches.*single samples"),
            (lambda: _dataset(_X[:, :5]), r"shape \(6\)"),
            (lambda: _dataset(_X[:0], _Y[:0]), "at least one batch"),
            (lambda: _dataset(np.where(_X > 2, np.nan, _X)), "finite numbers"),
            (lambda: _dataset(y=np.where(_Y > 1, np.nan, 0.0)), "finite labels"),
            (lambda: _dataset(y={"a": _Y}), "labels of one output"),
            (lambda: tf.data.Dataset.from_tensor_slices((_X, _Y, _Y)).batch(8), "3 values"),
            (lambda: (row for row in _X), "hold arrays, or be a dataset"),
        ],
    )
    def test_broken_ones(self, given: Callable[[], Any], text: str) -> None:
        with pytest.raises(ArgumentError, match=f"--data.*{text}"):
            _load(given())
        if "arrays" not in text:
            with pytest.raises(ArgumentError, match=f"--validation.*{text}"):
                _load((_X, _Y), given())

    def test_without_labels(self) -> None:
        bare = tf.data.Dataset.from_tensor_slices(_X).batch(8)
        with pytest.raises(ArgumentError, match="--validation.*hold no labels"):
            _load(bare)
        data = _load(bare, _X[:8])
        loaded = _loaded()
        with pytest.raises(ArgumentError, match="--data.*hold labels"):
            find_task(loaded, data, first_outputs(loaded, data.train), None)

    def test_a_dataset_is_not_divided(self) -> None:
        with pytest.raises(ArgumentError, match="--validation.*given with a dataset"):
            _load(_dataset(), None)

    def test_arrays_have_a_length(self) -> None:
        with pytest.raises(ArgumentError, match="--steps-per-epoch.*go with a dataset"):
            _load((_X, _Y), steps_per_epoch=3)

    def test_a_sorted_dataset_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "SAMPLED", 10)
        order = np.argsort(_Y, kind="stable")
        assert any("shuffle it" in note for note in _load(_dataset(_X[order], _Y[order])).notes)
        assert not any("shuffle it" in note for note in _load(_dataset()).notes)


@pytest.mark.parametrize(("shared", "told"), [(0, ()), (3, ("3 of 20 ",)), (20, ("20 of 20 ",))])
def test_validation_samples_that_were_trained_on_are_counted(
    shared: int, told: tuple[str, ...]
) -> None:
    x = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    x[:shared] = _X[:shared]
    notes = load((_X, _Y), (x, _Y[:20]), _loaded(), 0.1, 0).notes
    assert len(notes) == len(told)
    assert all(note.startswith(text) for note, text in zip(notes, told, strict=True))


@pytest.mark.parametrize(
    ("labels", "told"), [(np.ones(10), True), (np.arange(10) % 2, False), (np.ones((10, 3)), False)]
)
def test_labels_that_are_all_the_same_are_named(labels: np.ndarray, told: bool) -> None:
    x = np.random.default_rng(1).normal(size=(10, 6)).astype(np.float32)
    train = np.repeat(labels, 4, 0)
    notes = load((_X, train), (x, labels), _loaded(), 0.1, 0).notes
    assert any("All 10 validation labels are 1" in note for note in notes) is told
    divided = load((_X, train), None, _loaded(), 0.25, 0).notes
    assert any("All 10 validation labels are 1" in note for note in divided) is told


@pytest.mark.parametrize("kind", ["mapping", "file", "tuple", "inputs"])
def test_weights_of_samples_do_not_go_unnoticed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "train.npz"
    np.savez(path, x=_X, y=_Y, sample_weight=_Y)
    given = {
        "mapping": {"x": _X, "y": _Y, "sample_weight": _Y},
        "file": path,
        "tuple": (_X, _Y, _Y),
        "inputs": ([_X], _Y, _Y),
    }[kind]
    with pytest.raises(ArgumentError, match="--data.*weights are not supported"):
        load(given, None, _loaded(), 0.25, 0)
    # Whatever else a file holds is nobody's business.
    assert len(load({"x": _X, "y": _Y, "subject": _Y}, None, _loaded(), 0.25, 0).train) == 30


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -0.1, "a", None])
def test_a_share_is_a_share(share: Any) -> None:
    with pytest.raises(ArgumentError, match="--validation-split"):
        load((_X, _Y), None, _loaded(), share, 0)


@pytest.mark.parametrize("given", [{"pixels": "0-1"}, {"steps_per_epoch": 0.5}])
def test_what_only_some_data_need_is_checked_all_the_same(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="--(pixels|steps-per-epoch)"):
        load((_X, _Y), None, _loaded(), 0.25, 0, **given)


def test_texts_are_no_labels() -> None:
    with pytest.raises(ArgumentError, match="numpy.unique"):
        load((_X, np.array(["a", "b"])[_Y % 2]), None, _loaded(), 0.25, 0)


@pytest.mark.parametrize(("batches", "ends"), [(5, True), (6, False)])
def test_validation_without_an_end_is_refused_however_batches_add_up(
    batches: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_VALIDATION", 40)
    held = _dataset().repeat().take(batches) if ends else _dataset().repeat()
    if ends:
        assert len(load((_X, _Y), held, _loaded(), 0.1, 0).validation) == 40
        return
    with pytest.raises(ArgumentError, match="--validation.*end after 40 samples"):
        load((_X, _Y), held, _loaded(), 0.1, 0)


def test_an_error_of_a_generator_is_its_own_line() -> None:
    def fails() -> Any:
        yield _X[:8], _Y[:8]
        raise RuntimeError("the disk is gone")

    form = (tf.TensorSpec((None, 6), tf.float32), tf.TensorSpec((None,), tf.int64))
    made = tf.data.Dataset.from_generator(fails, output_signature=form)
    with pytest.raises(ArgumentError) as raised:
        load((_X, _Y), made, _loaded(), 0.1, 0)
    assert "Error: RuntimeError: the disk is gone'" in str(raised.value)


class TestChanges:
    """A finished stage is not reused for other data."""

    def test_the_hash_follows_the_content(self) -> None:
        same, again = (_load(_dataset()).sha256() for _ in range(2))
        other = _load(_dataset(_X + 1)).sha256()
        assert same == again != other
        assert _load(_dataset(), steps_per_epoch=4).sha256() != same
        assert _load(_dataset(batch=5)).sha256() != same

    def test_a_random_pipeline_is_seeded(self, user: Callable[..., str]) -> None:
        def make() -> Any:
            return _dataset().shuffle(40).map(lambda x, y: (x + tf.random.normal((6,)), y))

        name = user(make)
        assert _load(name).sha256() == _load(name).sha256()

    def test_one_without_a_seed_says_what_it_cannot_notice(self, user: Callable[..., str]) -> None:
        def make() -> Any:
            x = np.random.default_rng().normal(size=(40, 6)).astype("float32")
            return _dataset(x)

        name = user(make)
        data = _load(name)
        assert data.sha256() == _load(name).sha256()
        assert any("other samples each time" in note for note in data.notes)


class TestFunctions:
    @pytest.mark.parametrize("made", [(_X, _Y), {"x": _X, "y": _Y}])
    def test_arrays(self, made: Any, user: Callable[..., str]) -> None:
        data = load(user(lambda: made), None, _loaded(), 0.25, 0)
        assert data.stream is None and (len(data.train), len(data.validation)) == (30, 10)

    def test_a_dataset_and_its_validation(self, user: Callable[..., str]) -> None:
        name = user(_dataset)
        data = _load(name, name)
        assert _stream(data).steps == 5 and len(data.validation) == 40

    @pytest.mark.parametrize("made", [None, "train.npz", 3.0, lambda: _X, iter([_X])])
    def test_other_things(self, made: Any, user: Callable[..., str]) -> None:
        with pytest.raises(ArgumentError, match="--data"):
            _load(user(lambda: made))

    def test_failures_are_one_line(self, user: Callable[..., str]) -> None:
        def fails() -> Any:
            raise KeyError("images")

        with pytest.raises(ArgumentError, match="--data.*KeyError: 'images'"):
            _load(user(fails))
        with pytest.raises(ArgumentError, match="--data.*SystemExit: 0"):
            _load(user(lambda: sys.exit(0)))
        with pytest.raises(ArgumentError, match="--data.*no function 'other'"):
            _load(user(fails).replace("make", "other"))
        with pytest.raises(ArgumentError, match="--validation.*No module named 'no_such'"):
            _load((_X, _Y), "no_such:train")

    def test_from_the_current_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "beside_me.py").write_text(
            "import numpy as np\ndef train():\n    "
            "return np.ones((8, 6), 'float32'), np.arange(8) % 3\n"
        )
        monkeypatch.chdir(tmp_path)
        before = list(sys.path)
        assert len(load("beside_me:train", None, _loaded(), 0.25, 0).train) == 6
        assert sys.path == before
        sys.modules.pop("beside_me")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes: dark ones, and bright ones whose last channel is 0."""
    place = tmp_path_factory.mktemp("images")
    for name, value in (("bright", 200), ("dark", 20)):
        (place / name).mkdir()
        for number in range(6):
            image = np.full((10, 8, 3), value + number, "uint8")
            keras.utils.save_img(place / name / f"{number}.png", image, scale=False)
    return place


class TestFolders:
    @pytest.mark.parametrize(
        ("pixels", "dark", "bright"),
        [("0..255", 22.5, 202.5), ("0..1", 22.5 / 255, 202.5 / 255),
         ("-1..1", 22.5 / 127.5 - 1, 202.5 / 127.5 - 1)],
    )  # fmt: skip
    @pytest.mark.parametrize("channels", [1, 3])
    def test_sizes_channels_and_range(
        self, folder: Path, pixels: str, dark: float, bright: float, channels: int
    ) -> None:
        loaded = _loaded((5, 4, channels), 2)
        data = load(folder, folder, loaded, 0.25, 0, pixels)
        assert data.train.x[0].shape == (12, 5, 4, channels)
        for number, value in enumerate((bright, dark)):
            images = data.validation.x[0][data.validation.y == number]
            assert images.mean() == pytest.approx(value, abs=0.01)
            assert len(images) == 6
        assert "bright = 0, dark = 1" in data.notes[0] and data.count == 12

    def test_integers(self, folder: Path) -> None:
        data = load(folder, folder, _loaded((5, 4, 3), 2, "uint8"), 0.25, 0)
        assert data.train.x[0].dtype == np.uint8 and data.train.x[0].max() == 205

    def test_a_part_is_held_out(self, folder: Path) -> None:
        data = load(folder, None, _loaded((5, 4, 1), 2), 0.25, 0, "0..1")
        assert (_stream(data).count, len(data.validation)) == (9, 3)
        both = [*data.train.x[0], *data.validation.x[0]]
        assert len({float(image[0, 0, 0]) for image in both}) == 12

    def test_a_changed_image_changes_the_hash(self, folder: Path, tmp_path: Path) -> None:
        import shutil

        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        hashes = [
            load(place, folder, _loaded((5, 4, 1), 2), 0.25, 0, "0..1").sha256()
            for place in (folder, copy)
        ]
        keras.utils.save_img(copy / "dark" / "3.png", np.full((10, 8, 3), 90, "uint8"), scale=False)
        hashes.append(load(copy, folder, _loaded((5, 4, 1), 2), 0.25, 0, "0..1").sha256())
        assert hashes[0] == hashes[1] != hashes[2]

    def test_an_order_that_never_changes(self, folder: Path) -> None:
        """The images of each epoch, to the bit, whichever batch they are in."""
        data = load(folder, folder, _loaded((5, 4, 3), 2), 0.25, 0, "-1..1")
        inputs, content = data.fixed_inputs(_loaded((5, 4, 3), 2).model) or ([], "")
        orders = [[x.tobytes() for (batch,) in inputs for x in batch] for _ in range(2)]
        assert orders[0] == orders[1] and len(set(orders[0])) == 12
        assert content == data.sha256()
        epoch = _stream(data).epoch
        shuffled = [[x.tobytes() for batch, _ in epoch() for x in batch] for _ in range(2)]
        assert shuffled[0] != shuffled[1]
        assert set(shuffled[0]) == set(shuffled[1]) == set(orders[0])
        assert _load(_dataset()).fixed_inputs(_loaded().model) is None

    def test_the_range_is_asked_for(self, folder: Path) -> None:
        with pytest.raises(ArgumentError, match=r"--pixels.*given with a folder.*0\.\.255"):
            load(folder, None, _loaded((5, 4, 1), 2), 0.25, 0)

    @pytest.mark.parametrize(
        ("shape", "units", "text"),
        [
            ((5, 4, 1), 3, r"hold 3 subfolders.*2 in .*\(bright, dark\)"),
            ((6,), 2, "takes images of a fixed size"),
            ((None, None, 3), 2, "takes images of a fixed size"),
        ],
    )
    def test_models_that_do_not_match(
        self, folder: Path, shape: tuple[int, ...], units: int, text: str
    ) -> None:
        keras.utils.set_random_seed(1)
        image = keras.Input(shape)
        pooled = (
            layers.GlobalAveragePooling2D()(image) if None in shape else layers.Flatten()(image)
        )
        loaded = wrap(keras.Model(image, layers.Dense(units)(pooled)))
        with pytest.raises(ArgumentError, match=f"--data.*{text}"):
            load(folder, None, loaded, 0.25, 0, "0..1")

    def test_empty_and_damaged_folders(self, folder: Path, tmp_path: Path) -> None:
        loaded = _loaded((5, 4, 1), 2)
        with pytest.raises(ArgumentError, match="--data.*hold 2 subfolders"):
            load(tmp_path, None, loaded, 0.25, 0, "0..1")
        for name in ("bright", "dark"):
            (tmp_path / name).mkdir()
        with pytest.raises(ArgumentError, match="--data.*images in each subfolder.*bright"):
            load(tmp_path, None, loaded, 0.25, 0, "0..1")
        for name in ("bright", "dark"):
            (tmp_path / name / "0.png").write_bytes(b"no image")
        with pytest.raises(ArgumentError, match=r"--validation.*decoded.*0\.png'\. Unknown image"):
            load(folder, tmp_path, loaded, 0.25, 0, "0..1")

    def test_classes_of_validation_are_those_of_training(
        self, folder: Path, tmp_path: Path
    ) -> None:
        import shutil

        shutil.copytree(folder / "bright", tmp_path / "bright")
        shutil.copytree(folder / "dark", tmp_path / "gloomy")
        with pytest.raises(ArgumentError, match="--validation.*classes of --data.*bright, gloomy"):
            load(folder, tmp_path, _loaded((5, 4, 1), 2), 0.25, 0, "0..1")


class TestTraining:
    def _trainer(self, data: Data, loaded: LoadedModel, taught: bool) -> Trainer:
        task = find_task(loaded, data, first_outputs(loaded, data.train), None)
        loss = Distillation(3.0, 0.6) if taught else None
        teacher = _loaded().model
        return Trainer(task, data, teacher, loss, 8, 0.01, lambda epoch: None)

    @pytest.mark.parametrize("taught", [False, True])
    def test_a_dataset_trains_like_its_arrays(self, taught: bool) -> None:
        """Without an order of its own, the first step of both has the same loss."""
        found = []
        for given in ((_X, _Y), _dataset(batch=40)):
            keras.utils.set_random_seed(9)
            loaded = wrap(keras.Sequential([keras.Input((6,)), layers.Dense(3)]))
            data = load(given, (_X, _Y), loaded, 0.25, 0)
            task = find_task(loaded, data, first_outputs(loaded, data.train), None)
            loss = Distillation(3.0, 0.6) if taught else None
            trainer = Trainer(task, data, _loaded().model, loss, 40, 0.01, lambda epoch: None)
            found.append(trainer.fit(loaded.model, "stage", 3, []))
        for name in ("loss", "accuracy", "val_accuracy"):
            np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4)

    def test_what_is_wrong_later_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "SAMPLED", 8)
        x = _X.copy()
        x[35] = np.inf
        loaded = _loaded()
        data = load(_dataset(x), (_X, _Y), loaded, 0.25, 0)
        trainer = self._trainer(data, loaded, taught=False)
        with pytest.raises(ArgumentError, match="--data.*finite numbers"):
            trainer.fit(loaded.model, "stage", 1, [])


def test_a_dataset_feeds_a_model_of_two_inputs() -> None:
    import keras
    import tensorflow as tf

    from edgecompress.converters.loaders import wrap
    from edgecompress.recipes.data import load as load_data

    inputs = [keras.Input((3,)), keras.Input((2,))]
    joined = keras.layers.Concatenate()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(joined))
    random = np.random.default_rng(0)
    a, b = (random.normal(size=(40, n)).astype("float32") for n in (3, 2))
    y = random.integers(0, 2, 40)
    batches = tf.data.Dataset.from_tensor_slices(((a, b), y)).batch(8)
    data = load_data(batches, (a, b, y), wrap(model), 0.1, 0)
    feed = data.feed(model, 8, lambda samples: samples.y.astype("float32"))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()[0].copy()
    with feed.errors():
        model.fit(**feed.arguments(), verbose=0, shuffle=False)
    assert (model.get_weights()[0] != before).any()


class TestJoined:
    """Validation samples among those of a dataset: each once in an epoch, some in each batch."""

    @pytest.mark.parametrize("kind", ["ends", "endless", "mapping", "unlabelled"])
    def test_each_sample_once_an_epoch(self, kind: str) -> None:
        x = np.arange(40, dtype="float32")[:, None]
        more = -1 - np.arange(13, dtype="float32")[:, None]
        y, labels = np.arange(40) % 3, np.arange(13) % 3
        model = keras.Sequential([keras.Input((1,), name="a"), layers.Dense(3)])
        train: Any = (x, y)
        if kind == "mapping":
            train = ({"a": x}, y)
        elif kind == "unlabelled":
            model, train = keras.Sequential([keras.Input((1,)), layers.Dense(1)]), x
        made = tf.data.Dataset.from_tensor_slices(train).batch(8)
        made = made.repeat() if kind == "endless" else made
        held = more if kind == "unlabelled" else (more, labels)
        steps = 5 if kind == "endless" else None
        data = load(made, held, wrap(model), 0.2, 0, steps_per_epoch=steps)
        both = data.joined()
        stream = _stream(both)
        assert (stream.steps, stream.count) == (5, _stream(data).count)
        batches = stream.batches()
        epochs = [[next(batches) for _ in range(5)] for _ in range(2)]
        for epoch in epochs:
            found = [batch.x[0][:, 0] for batch in epoch]
            assert sorted(np.concatenate(found)) == [*range(-13, 0), *range(40)]
            assert {int((values < 0).sum()) for values in found} == {2, 3}
            if kind != "unlabelled":
                for batch in epoch:
                    values = batch.x[0][:, 0]
                    wanted = np.where(values < 0, -1 - values, values) % 3
                    np.testing.assert_array_equal(batch.y, wanted)
        orders = [np.concatenate([b.x[0][b.x[0] < 0] for b in epoch]) for epoch in epochs]
        assert not np.array_equal(*orders)
        assert both.sha256() != data.sha256()

    def test_a_folder_stays_fixed(self, folder: Path) -> None:
        loaded = _loaded((5, 4, 1), 2)
        data = load(folder, None, loaded, 0.25, 0, "0..1")
        both = data.joined()
        assert both.count == 12 and both.is_fixed
        inputs, _ = both.fixed_inputs(loaded.model) or ([], "")
        found = {image.tobytes() for (batch,) in inputs for image in batch}
        assert found == {image.tobytes() for each in _epoch(_stream(both)) for image in each.x[0]}
        assert len(found) == 12

    def test_labels_have_one_form(self) -> None:
        rows = np.eye(3)[_Y[:8]]
        for data in (_load((_X, _Y), (_X[:8], rows)), _load(_dataset(), (_X[:8], rows))):
            with pytest.raises(ArgumentError, match=r"--refit` must go with labels of one form"):
                data.joined()
        assert _load((_X, _Y), (_X[:8], _Y[:8])).joined().count == len(_X) + 8
