"""The space of a search: the model's other structures, each found once, and what they cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgecompress.searching.knobs import Value
from edgecompress.searching.screening import Costs, Screen, Targets, thinnest
from edgecompress.searching.structures import Structure, removable_filters
from edgecompress.searching.techniques import Technique, own_values
from edgecompress.searching.techniques.channels import Channels

# Structures in memory: finding one again takes a few conversions.
_KEPT = 24


class Space:
    """What a model becomes by the techniques that change its structure.

    Args:
        model: A built Keras model.
        targets: Where files have to fit.
        loss: The Keras loss of its training.
        batches: Returns inputs and labels by which criteria score filters.
        techniques: Name -> technique; more may be added to it later.
    """

    def __init__(
        self,
        model: Any,
        targets: Targets,
        loss: Any,
        batches: Callable[[], Sequence[tuple[Any, Any]]],
        techniques: Mapping[str, Technique],
    ) -> None:
        self.targets = targets
        self._model, self._loss, self._batches = model, loss, batches
        self._techniques = techniques
        # Each holds weights of its own: only those asked for last are kept.
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._structures: OrderedDict[tuple[str, str | None], Structure] = OrderedDict()
        self._least: dict[tuple[str, str | None], Costs] = {}
        self._screened = 0

    @property
    def screened(self) -> int:
        """How many candidates have been judged without being built."""
        return self._screened + sum(found.screen.screened for found in self._structures.values())

    @property
    def channels(self) -> Channels | None:
        """The technique that removes channels; None if it is of no use."""
        found = self._techniques.get("channels")
        return found if isinstance(found, Channels) and found.reason is None else None

    def file_options(self, values: Mapping[str, Value]) -> dict[str, Any]:
        """Returns the options of the int8 format."""
        found: dict[str, Any] = {}
        for name, technique in self._techniques.items():
            own = own_values(values, name)
            if own:
                found |= technique.file(own)
        return found

    def least(self, values: Mapping[str, Value]) -> Costs:
        """Returns what a structure takes at least, with one channel of each kind."""
        name, model, precision = self._reshaped(values)
        if (name, precision) not in self._least:
            found = thinnest(model, removable_filters(model)[0], self.targets, precision)
            self._least[name, precision] = found
        return self._least[name, precision]

    def structure(self, values: Mapping[str, Value]) -> Structure:
        """Returns a structure with all its channels."""
        return self._structure(*self._reshaped(values))

    def _structure(self, name: str, model: Any, precision: str | None) -> Structure:
        if (name, precision) not in self._structures:
            found = self._found(model, precision)
            if precision is not None and not found.screen.exact:
                like = self._structure(name, model, None).screen
                if like.exact:
                    found = self._found(model, precision, like)
            self._structures[name, precision] = found
            if len(self._structures) > _KEPT:
                self._screened += self._structures.popitem(last=False)[1].screen.screened
        self._structures.move_to_end((name, precision))
        return self._structures[name, precision]

    def _found(self, model: Any, precision: str | None, like: Screen | None = None) -> Structure:
        return Structure(model, self.targets, self._loss, self._batches(), precision, like)

    def _reshaped(self, values: Mapping[str, Value]) -> tuple[str, Any, str | None]:
        """Returns what names a structure, its model, and the number format of its file."""
        reshaping = {
            name: own
            for name, technique in self._techniques.items()
            if technique.reshapes and (own := own_values(values, name))
        }
        name = repr(sorted(reshaping.items()))
        if name not in self._models:
            model = self._model
            for technique, own in reshaping.items():
                model = self._techniques[technique].reshape(model, own)
            self._models[name] = model
            if len(self._models) > _KEPT:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        precision = self.file_options(values).get("precision")
        return name, self._models[name], None if precision is None else str(precision)
