"""The space of a search: the model's other structures, each found once, and what they cost."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgecompress.searching.forms import FileForm
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
        self._structures: OrderedDict[tuple[str, str], Structure] = OrderedDict()
        self._least: dict[tuple[str, str], Costs] = {}
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

    def form(self, values: Mapping[str, Value], model: Any) -> FileForm:
        """Returns the form of a candidate's file.

        Args:
            values: A candidate's.
            model: It, with or without all of its channels.

        """
        options: dict[str, Any] = {}
        for name, technique in self._techniques.items():
            own = own_values(values, name)
            if own:
                options |= technique.file(own, model)
        coding = self._coding(values)
        if coding is None or options:
            return FileForm(options=options)
        technique, own, file_format = coding
        return FileForm(
            file_format, {}, repr(sorted(own.items())), functools.partial(technique.stand_in, own)
        )

    def resting(self, values: Mapping[str, Value], model: Any) -> str | None:
        """Returns the technique whose format has no place for what others ask of the file.

        Args:
            values: A candidate's.
            model: It, with or without all of its channels.
        """
        coding = self._coding(values)
        if coding is None or self.form(values, model).format == coding[2]:
            return None
        return next(name for name, found in self._techniques.items() if found is coding[0])

    def _coding(
        self, values: Mapping[str, Value]
    ) -> tuple[Technique, dict[str, Value], str] | None:
        """Returns the technique that chooses the format, with its values and the format's name."""
        for name, technique in self._techniques.items():
            own = own_values(values, name)
            file_format = technique.file_format(own) if own else None
            if file_format is not None:
                return technique, own, file_format
        return None

    def least(self, values: Mapping[str, Value]) -> Costs:
        """Returns what a structure takes at least, with one channel of each kind."""
        name, model = self._reshaped(values)
        form = self.form(values, model)
        key = name, repr(form)
        if key not in self._least:
            self._least[key] = thinnest(model, removable_filters(model)[0], self.targets, form)
        return self._least[key]

    def structure(self, values: Mapping[str, Value]) -> Structure:
        """Returns a structure with all its channels."""
        name, model = self._reshaped(values)
        return self._structure(name, model, self.form(values, model))

    def _structure(self, name: str, model: Any, form: FileForm) -> Structure:
        key = name, repr(form)
        if key not in self._structures:
            like = None
            if form.weights:
                # How well weights can be coded follows no formula of their number.
                like = self._structure(name, model, FileForm()).screen
            found = self._found(model, form, like)
            if like is None and not form.is_plain and not found.screen.exact:
                like = self._structure(name, model, FileForm()).screen
                if like.exact:
                    found = self._found(model, form, like)
            self._structures[key] = found
            if len(self._structures) > _KEPT:
                self._screened += self._structures.popitem(last=False)[1].screen.screened
        self._structures.move_to_end(key)
        return self._structures[key]

    def _found(self, model: Any, form: FileForm, like: Screen | None = None) -> Structure:
        return Structure(model, self.targets, self._loss, self._batches(), form, like)

    def _reshaped(self, values: Mapping[str, Value]) -> tuple[str, Any]:
        """Returns what names a structure, and its model."""
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
        return name, self._models[name]
