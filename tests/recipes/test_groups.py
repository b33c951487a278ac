"""Groups of samples: whole ones are held out, and bad ones are refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecompress.converters.loaders import wrap
from edgecompress.core.errors import ArgumentError
from edgecompress.recipes.data import load
from edgecompress.recipes.groups import held_out

keras = pytest.importorskip("keras")


@pytest.fixture(scope="module")
def loaded() -> Any:
    return wrap(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))


def some(groups: Any, seed: int = 0, **more: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    count = len(groups)
    x = random.normal(size=(count, 3)).astype("float32")
    return {"subject": np.array(groups), "x": x, "y": np.arange(count) % 2, **more}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_whole_groups_are_on_one_side(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    groups = random.integers(0, 9, 200)
    held = held_out(groups, share, seed)
    inside, outside = set(groups[held].tolist()), set(groups[~held].tolist())
    assert not inside & outside
    assert min(len(inside), len(outside)) >= 2
    # No further from the share than a group is large, unless two groups are already more.
    most = np.bincount(groups).max()
    assert abs(held.sum() - share * 200) <= most or len(inside) == 2
    assert (held_out(groups, share, seed) == held).all()
    assert any((held_out(groups, share, other) != held).any() for other in range(20))


def test_two_groups_are_one_each_and_names_may_be_texts() -> None:
    held = held_out(np.array(["anna", "ben", "anna", "ben"]), 0.1, 0)
    assert held.sum() == 2
    assert held[0] != held[1]


def test_data_are_split_by_groups(loaded: Any, tmp_path: Path) -> None:
    groups = np.repeat(["a", "b", "c", "d", "e"], 8)
    arrays = some(groups)
    np.savez(tmp_path / "train.npz", **arrays)
    for source in (tmp_path / "train.npz", arrays):
        found = load(source, None, loaded, 0.4, 1, groups="subject")
        ours, theirs = found.validation.groups, found.train.groups
        assert not set(ours) & set(theirs)
        assert (len(ours), len(theirs)) == (16, 24)
        assert found.split == (
            f"16 of 40 samples, 2 of 5 groups ({', '.join(np.unique(ours))}), drawn with seed 1"
        )
        np.testing.assert_array_equal(
            found.validation.x[0], arrays["x"][np.isin(groups, np.unique(ours))]
        )


def test_the_array_of_groups_is_neither_an_input_nor_a_label(loaded: Any) -> None:
    # It is the first array, and named like a label.
    arrays = {"y_who": np.arange(20) % 5, "signal": some(range(20))["x"], "y": np.arange(20) % 2}
    found = load(arrays, None, loaded, 0.4, 0, groups="y_who")
    assert found.train.x[0].shape[1:] == (3,)
    assert found.train.y.ndim == 1


def test_groups_do_not_change_what_data_are(loaded: Any) -> None:
    train, held = some([1, 1, 2, 2]), some([3, 3, 4, 4], 1)
    with_groups = load(train, held, loaded, 0.1, 0, groups="subject")
    without = [{k: v for k, v in part.items() if k != "subject"} for part in (train, held)]
    plain = load(*without, loaded, 0.1, 0)
    assert with_groups.validation.sha256() == plain.validation.sha256()
    assert with_groups.sha256() == plain.sha256()
    assert with_groups.notes == ()


def test_groups_on_both_sides_are_named(loaded: Any) -> None:
    train, held, test = some([1, 1, 2, 2, 3]), some([3, 3, 4, 4], 1), some([4, 4, 5, 5], 2)
    found = load(train, held, loaded, 0.1, 0, groups="subject", test=test)
    assert [note.partition(":")[0] for note in found.notes] == [
        "1 of 2 groups of --validation are in --data, too (3)",
        "1 of 2 groups of --test are in --validation, too (4)",
    ]
    assert len(found.test) == 4
    apart = load(train, some([8, 9, 9], 3), loaded, 0.1, 0, groups="subject", test=some([7, 7], 4))
    assert apart.notes == ()


def test_test_samples_that_trained_or_chose_are_counted(loaded: Any) -> None:
    train, held = some([1] * 4), some([2] * 4, 1)
    found = load(train, held, loaded, 0.1, 0, test=some([3] * 4, 1))
    assert found.notes == (
        "4 of 4 test samples have the inputs of a validation sample: the metric says little about "
        "samples that did not choose.",
    )
    found = load(train, held, loaded, 0.1, 0, test=train)
    assert "4 of 4 test samples have the inputs of a training sample" in found.notes[0]


def dataset() -> Any:
    import tensorflow as tf

    arrays = some([0] * 8)
    return tf.data.Dataset.from_tensor_slices((arrays["x"], arrays["y"])).batch(4)


@pytest.mark.parametrize(
    ("data", "validation", "name", "text"),
    [
        (some([1, 1, 2, 2]), None, "person",
         r"`--groups` must name an array of --data\. Got 'person'\. It holds subject, x, y"),
        (some([1, 1, 2, 2]), some([1, 2], 1, subject=np.ones((2, 2))), "subject",
         r"one number or text for each sample of --validation\. Got 'array of shape \(2, 2\)"),
        (some([1] * 4, subject=np.arange(3)), None, "subject",
         r"as many groups as --data has samples, 4\. Got 3"),
        (some([1] * 4), None, "subject", r"at least 2 groups of --data apart\. Got '1'"),
        (some([1, 2] * 2), some([7] * 4, 1), "subject",
         r"at least 2 groups of --validation apart\. Got '7'"),
        (some([1, 2] * 2), None, "y", r"another array than the inputs and the labels"),
        (some([1.0, np.nan] * 2), None, "subject", r"groups of --data that are known"),
        ((some([1, 2])["x"], np.arange(2)), None, "subject", r"no named arrays: give an \.npz"),
    ],
)  # fmt: skip
def test_bad_groups_are_refused(
    loaded: Any, data: Any, validation: Any, name: str, text: str
) -> None:
    with pytest.raises(ArgumentError, match=text) as raised:
        load(data, validation, loaded, 0.25, 0, groups=name)
    assert "\n" not in str(raised.value)


def test_datasets_have_no_groups(loaded: Any) -> None:
    held = some([1, 2] * 2, 1)
    found = load(dataset(), held, loaded, 0.1, 0, groups="subject")
    assert "whether a group of --validation is in --data" in " ".join(found.notes).lower().replace(
        "--Data", "--data"
    )
    with pytest.raises(ArgumentError, match="go with arrays: --validation is a dataset"):
        load(some([1, 2] * 2), dataset(), loaded, 0.1, 0, groups="subject")
