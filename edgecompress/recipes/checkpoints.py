"""Finished stages on disk: an interrupted run resumes after the last of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecompress.core import isolation
from edgecompress.core.errors import ProcessError
from edgecompress.core.files import jsonable, sha256, write_together
from edgecompress.core.folders import temporary_folder
from edgecompress.core.record import sidecar_path

STATE_SCHEMA = "edgecompress.compression-state/1"
_STATE = "state.json"


@dataclass(frozen=True)
class Finished:
    """A finished stage.

    Attributes:
        name: The stage's name.
        key: Hash of everything its result depends on.
        sha256: Of its model file.
        metric: On the validation data.
        epochs: It was trained for.
        seconds: It took.
        history: Training curves, one value an epoch.
        notes: What was skipped or done differently.
    """

    name: str
    key: str
    sha256: str
    metric: float
    epochs: int
    seconds: float
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {f.name: jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finished:
        """Returns what `to_dict` described.

        Raises:
            ProcessError: a value is missing, or of another type.
        """
        return isolation.decode(cls, data)


def chain_key(before: str, settings: Mapping[str, Any]) -> str:
    """Returns the key of a stage: a hash of the key before it and of its own settings.

    Example:
        >>> first = chain_key("model and data", {"sparsity": 0.8})
        >>> first == chain_key("model and data", {"sparsity": 0.9})
        False
    """
    text = json.dumps([before, jsonable(settings)], sort_keys=True)
    return sha256(text.encode())


class Checkpoints:
    """The stages in `<output>/stages`: one model file each, and `state.json`.

    A stage is reused if its key matches and its file has the stored hash; from the first mismatch
    on, all later stages are repeated. Model file and state are replaced together, so an
    interruption leaves the previous stage as the last one.

    Args:
        folder: The output folder.
        fresh: Ignore existing stages.
    """

    def __init__(self, folder: Path, fresh: bool = False) -> None:
        """Reads the state."""
        self._folder = folder / "stages"
        self._kept: dict[str, Finished] = {}
        self._stored = {} if fresh else self._read()
        self.notes: list[str] = []

    def path(self, name: str) -> Path:
        """Returns the model file of a stage."""
        return self._folder / f"{name}.keras"

    def find(self, name: str, key: str) -> Finished | None:
        """Returns a finished stage; None if it has to be run."""
        found = self._stored.get(name)
        if found is None or found.key != key:
            self._stored = {}
            return None
        try:
            data = self.path(name).read_bytes()
        except OSError:
            data = b""
        if sha256(data) != found.sha256:
            self._stored = {}
            self.notes.append(
                f"{self.path(name)} is not what this recipe wrote there: the stage is done again."
            )
            return None
        self._kept[name] = found
        return found

    def store(self, stage: Finished, model: Any) -> Finished:
        """Writes a stage's model, its record and the state; returns it with the file's hash."""
        name = self.path(stage.name).name
        files = saved_model(model, name)
        stage = dataclasses.replace(stage, sha256=sha256(files[name]))
        self._kept[stage.name] = stage
        state = {
            "schema": STATE_SCHEMA,
            "stages": [kept.to_dict() for kept in self._kept.values()],
        }
        write_together(
            self._folder, {**files, _STATE: json.dumps(state, indent=1, allow_nan=False) + "\n"}
        )
        return stage

    def _read(self) -> dict[str, Finished]:
        try:
            state = json.loads((self._folder / _STATE).read_text(encoding="utf-8"))
            if state["schema"] != STATE_SCHEMA:
                return {}
            return {entry["name"]: Finished.from_dict(entry) for entry in state["stages"]}
        # Missing, damaged or of another version: there is nothing to resume from.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ProcessError):
            return {}


def saved_model(model: Any, name: str) -> dict[str, bytes]:
    """Returns the files of a saved Keras model: name -> bytes, its record next to it."""
    # Keras writes in pieces, so it writes elsewhere first and no partial file is ever visible.
    with temporary_folder() as folder:
        place = folder / name
        model.save(place)
        paths = [path for path in (place, sidecar_path(place)) if path == place or path.exists()]
        return {path.name: path.read_bytes() for path in paths}
