"""Answers of a teacher that are wrong, set right."""

from __future__ import annotations

import numpy as np

from edgecompress.training.knowledge_adjustment import adjusted


def test_only_wrong_answers_change_and_become_right() -> None:
    random = np.random.default_rng(0)
    outputs, classes = random.normal(size=(50, 7, 4)), random.integers(0, 4, (50, 7))
    before = outputs.copy()
    found = adjusted(outputs, classes)
    np.testing.assert_array_equal(outputs, before)
    assert (found.argmax(-1) == classes).all()
    wrong = outputs.argmax(-1) != classes
    assert 0 < wrong.sum() < wrong.size
    np.testing.assert_array_equal(found[~wrong], outputs[~wrong])
    for row, new, right in zip(outputs[wrong], found[wrong], classes[wrong], strict=True):
        top = row.argmax()
        assert new[right] == row[top] and new[top] == row[right]
        others = [place for place in range(4) if place not in (top, right)]
        assert new[others].tolist() == row[others].tolist()
