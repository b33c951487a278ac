"""What an output predicts: inferred from its loss, the operator that makes it, its labels.

Pure functions; nothing is run. If the evidence is ambiguous, the answer is `Unclear` and names both
readings: a guessed metric may pass a broken model.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.converters.labels import Labels
from edgecompress.converters.metrics import Form, Wanted
from edgecompress.core.errors import ArgumentError, EdgeCompressError
from edgecompress.core.keras_graph import output_names
from edgecompress.core.reading import JSON_LIMIT, open_archive
from edgecompress.core.structured import parse_json
from edgecompress.flatbuffers.model import FlatModel

# The threshold from which a probability, and a logit, is positive.
PROBABILITY, LOGIT = 0.5, 0.0
# Operators that pass the values of the preceding operator through.
_CARRIERS = frozenset(
    {"QUANTIZE", "DEQUANTIZE", "RESHAPE", "SQUEEZE", "EXPAND_DIMS", "TRANSPOSE", "CAST"}
)
_JOINS = frozenset({"CONCATENATION", "PACK"})
_SOFTMAX = ("SOFTMAX", "LOG_SOFTMAX")
_NUMBERS = ("ARG_MAX", "ARG_MIN")


@dataclass(frozen=True)
class Loss:
    """The loss that an output was trained with.

    Attributes:
        name: As the model calls it, e.g. `binary_crossentropy`.
        kind: A key of `LOSSES`; "" for an unknown loss.
        from_logits: Whether it takes logits.
    """

    name: str
    kind: str = ""
    from_logits: bool = False

    @property
    def text(self) -> str:
        """The loss for people."""
        return f"{self.name}(from_logits=True)" if self.from_logits else self.name


@dataclass(frozen=True)
class Task:
    """What an output predicts.

    Attributes:
        kind: `classes` (one of several), `binary` (yes or no), `multilabel` (several of those), or
            `values`.
        form: The form of labels that fits: see `metrics`.
        metric: Its default metric.
        found: How this was determined, for people.
        cut: The threshold from which an output is positive; None if not applicable.
        normal: Whether the outputs are probabilities.
    """

    kind: str
    form: Form
    metric: str
    found: str
    cut: float | None = None
    normal: bool = True

    @property
    def is_classifier(self) -> bool:
        """Whether it classifies, so that `--min-accuracy` applies."""
        return self.kind != "values"


@dataclass(frozen=True)
class Unclear:
    """Why the task of an output is unknown, and what to specify; one sentence each."""

    reason: str


# --- what the model says ------------------------------------------------------------------------

# Loss -> kind, keyed by its name without underscores. Losses on values carry their metric.
LOSSES: Mapping[str, str] = {
    "categoricalcrossentropy": "classes", "sparsecategoricalcrossentropy": "classes",
    "categoricalfocalcrossentropy": "classes", "categoricalhinge": "classes",
    "kldivergence": "classes", "kullbackleiblerdivergence": "classes", "kld": "classes",
    "binarycrossentropy": "sides", "bce": "sides", "binaryfocalcrossentropy": "sides",
    "hinge": "hinge", "squaredhinge": "hinge",
    "dice": "overlap", "tversky": "overlap",
    "meansquarederror": "mse", "mse": "mse", "meansquaredlogarithmicerror": "mse", "msle": "mse",
    "meanabsoluteerror": "mae", "mae": "mae", "meanabsolutepercentageerror": "mae", "mape": "mae",
    "huber": "mae", "logcosh": "mae", "poisson": "mae",
    "cosinesimilarity": "unjudged", "circle": "unjudged", "ctc": "unjudged",
}  # fmt: skip


@dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes:
        names: What users may call it, the first in messages; never empty.
        loss: The loss it was trained with; None if unknown.
    """

    names: tuple[str, ...]
    loss: Loss | None = None

    @property
    def name(self) -> str:
        """The name in messages."""
        return self.names[0]


def read_loss(entry: Any) -> Loss | None:
    """Returns the loss that an entry of a compiled configuration names, without loading it.

    Args:
        entry: A name, a function, a loss object, or the configuration of one; None for none.

    Example:
        >>> read_loss({"module": "keras.losses", "class_name": "BinaryCrossentropy",
        ...            "config": {"from_logits": True}, "registered_name": None}).text
        'BinaryCrossentropy(from_logits=True)'
    """
    config: Any = {}
    own = False
    if isinstance(entry, Mapping):
        name, config = entry.get("class_name"), entry.get("config")
        # Keras 3 writes its class names along with their modules, Keras 2 without.
        module = entry.get("module")
        if name == "function":
            name, config = config, {}
        elif module is not None or entry.get("registered_name") is not None:
            own = not str(module).startswith(("keras.", "tf_keras.", "builtins"))
    elif isinstance(entry, str):
        name = entry
    elif entry is not None:
        name = getattr(entry, "__name__", None) or type(entry).__name__
        module = getattr(entry, "__module__", None) or ""
        own = not module.startswith(("keras.", "tf_keras."))
        if not own and hasattr(entry, "get_config"):
            config = entry.get_config()
        if name == "LossFunctionWrapper":
            name = getattr(getattr(entry, "fn", None), "__name__", name)
    else:
        return None
    if not isinstance(name, str):
        return None
    kind = "" if own else LOSSES.get(name.replace("_", "").lower(), "")
    logits = isinstance(config, Mapping) and config.get("from_logits") is True
    return Loss(name, kind, logits)


def outputs_of(loaded: Any) -> tuple[Output, ...]:
    """Returns the outputs of a LoadedModel by position, with the losses they were trained with.

    The loss of a file is read from its configuration: the file is loaded without being compiled.
    """
    model = loaded.model
    if loaded.flavour == "saved_model":
        named = sorted(getattr(model, "structured_outputs", {}))
        return tuple(Output((name,)) for name in named)
    names = _keras_names(model)
    losses = _compiled_loss(model, loaded.path)
    if isinstance(losses, Mapping) and "class_name" not in losses:
        entries = [next((losses[n] for n in own if n in losses), None) for own in names]
    elif isinstance(losses, (list, tuple)):
        entries = [*losses, *[None] * len(names)][: len(names)]
    else:
        # A single loss for all outputs.
        entries = [losses] * len(names)
    return tuple(Output(own, read_loss(entry)) for own, entry in zip(names, entries, strict=True))


def output_shapes(loaded: Any) -> list[tuple[int | None, ...]]:
    """Returns the shapes of a LoadedModel's outputs by position, samples first."""
    model = loaded.model
    if loaded.flavour == "saved_model":
        ends = [tensor for _, tensor in sorted(getattr(model, "structured_outputs", {}).items())]
    else:
        ends = list(model.outputs)
    return [tuple(tensor.shape) for tensor in ends]


def _keras_names(model: Any) -> list[tuple[str, ...]]:
    layers = output_names(model)
    structure = getattr(model, "output", None)
    # Outputs in a dictionary come in the order of its keys.
    keys = sorted(structure) if isinstance(structure, Mapping) else []
    if len(keys) == len(layers):
        return [tuple(dict.fromkeys(pair)) for pair in zip(keys, layers, strict=True)]
    return [(name,) for name in layers]


def _compiled_loss(model: Any, path: Path | None) -> Any:
    if path is None:
        return getattr(model, "loss", None) if getattr(model, "compiled", True) else None
    try:
        return stored_loss(path)
    # Configurations of other Keras versions fail in many ways; the model itself did load.
    except (EdgeCompressError, OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def stored_loss(path: Path) -> Any:
    """Returns the loss stored in a .keras or HDF5 file, as read from its JSON; None if absent.

    Raises:
        EdgeCompressError, OSError, ValueError, KeyError, AttributeError, TypeError: the
            configuration is damaged, or of an unknown form.
    """
    label = f"{path}: compile_config"
    if zipfile.is_zipfile(path):
        with open_archive(path) as archive:
            config = parse_json(archive.read("config.json", JSON_LIMIT), label)
        return (config.get("compile_config") or {}).get("loss")
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("training_config")
    return None if text is None else parse_json(text, label).get("loss")


def outputs_of_file(flat: FlatModel) -> tuple[Output, ...]:
    """Returns the outputs of a flatbuffer by position, named as its signature names them."""
    names = signature_outputs(flat)
    return tuple(
        Output((names.get(index) or flat.tensors[index].name or str(position),))
        for position, index in enumerate(flat.outputs)
    )


def signature_outputs(flat: FlatModel) -> dict[int, str]:
    """Returns tensor -> the name that the file's first signature gives it as an output."""
    from ai_edge_litert import schema_py_generated as schema

    found: dict[int, str] = {}
    try:
        table = schema.Model.GetRootAs(flat.data)
        if table.SignatureDefsLength():
            signature = table.SignatureDefs(0)
            for position in range(min(signature.OutputsLength(), len(flat.outputs))):
                entry = signature.Outputs(position)
                found[entry.TensorIndex()] = entry.Name().decode("utf-8")
    # Names of a damaged signature are not a reason to refuse a file that runs.
    except Exception:
        return {}
    return found


def output_operator(flat: FlatModel, position: int) -> str:
    """Returns the operator that makes an output, ignoring reshapes, conversions and joins; or "".

    Joined parts count if all are made by the same operator.
    """
    makers = {index: operator for operator in flat.operators for index in operator.outputs}

    def made_by(index: int, depth: int) -> str:
        operator = makers.get(index)
        if operator is None or depth > len(flat.operators):
            return ""
        inputs = [i for i in operator.inputs if i >= 0]
        if operator.code in _CARRIERS and inputs:
            return made_by(inputs[0], depth + 1)
        if operator.code in _JOINS and inputs:
            parts = {made_by(index, depth + 1) for index in inputs[:64]}
            return parts.pop() if len(parts) == 1 else operator.name
        return operator.name

    return made_by(flat.outputs[position], 0)


# --- the task -----------------------------------------------------------------------------------


def find_task(operator: str, loss: Loss | None, labels: Labels) -> Task | Unclear:
    """Returns what an output is for.

    The compiled loss decides, else the operator that makes the output, else the form of the labels.
    One-hot labels are classes whatever the loss, because they exclude each other.

    Args:
        operator: As `output_operator` returns it.
        loss: As `outputs_of` returns it.
        labels: Of the output.

    Raises:
        ArgumentError: the labels do not fit what the loss or the operator says.

    Example:
        >>> labels = Labels(np.array([0, 1, 1]), (3, 1))  # doctest: +SKIP
        >>> find_task("FULLY_CONNECTED", read_loss("mse"), labels).metric  # doctest: +SKIP
        'mse'
    """
    if operator in _NUMBERS:
        return Task("classes", "numbers", "accuracy", f"the output is made by {operator}")
    made = f"the output is made by {operator}"
    if loss is not None and loss.kind == "unjudged":
        return Unclear(f"the loss {loss.name} has no metric here")
    if loss is None or not loss.kind:
        task = _by_operator(operator, labels, made)
        return task if loss is None else _with_unknown_loss(task, loss)
    basis = f"the compiled loss is {loss.text}"
    if loss.kind == "classes":
        return _classes(labels, basis, operator, loss.from_logits)
    if loss.kind == "hinge":
        return _sides(labels, LOGIT, basis)
    if loss.kind in ("sides", "overlap"):
        if loss.kind == "overlap" and labels.classes > 1:
            return _classes(labels, basis, operator, False)
        if loss.from_logits and operator == "LOGISTIC":
            return Unclear(
                f"{basis}, but {made}: it is a logit for the former and a probability for "
                "the latter"
            )
        return _sides(labels, LOGIT if loss.from_logits else PROBABILITY, basis)
    fits_classes = labels.has_number_shape or labels.one_hot
    if operator in _SOFTMAX and fits_classes:
        return _classes(labels, f"{basis}, {made}", operator, False)
    if operator == "LOGISTIC" and (labels.two_valued or fits_classes):
        return _sides(labels, PROBABILITY, f"{basis}, {made} and the labels are 0 and 1")
    if labels.has_number_shape and not labels.same_shape:
        return _classes(labels, f"{basis}, the labels are class numbers", operator, False)
    labels.values()
    return Task("values", "values", loss.kind, basis)


def _with_unknown_loss(task: Task | Unclear, loss: Loss) -> Task | Unclear:
    if isinstance(task, Unclear):
        return Unclear(f"the compiled loss {loss.name} is not known here, and {task.reason}")
    return task


def _by_operator(operator: str, labels: Labels, made: str) -> Task | Unclear:
    if operator in _SOFTMAX:
        if labels.classes == 1:
            return Unclear(f"{made} over a single value, which is always 1")
        if labels.same_shape and not labels.distributions:
            return Unclear(f"{made}, but the labels are not classes ({labels.got})")
        return _classes(labels, made, operator, False)
    if operator == "LOGISTIC":
        return _sides(labels, PROBABILITY, made)
    if labels.has_number_shape:
        return _classes(labels, "the labels are class numbers", operator, True)
    if labels.one_hot:
        return _classes(labels, "the labels are one-hot rows", operator, True)
    if labels.signs:
        return _sides(labels, LOGIT, "the labels are -1 and 1")
    if labels.two_valued:
        return Unclear(
            "no loss is known and the labels are 0 and 1: the output may be a logit (positive "
            "from 0 up) or a value (positive from 0.5 up)"
        )
    labels.values()
    return Task("values", "values", "r2", "the labels are numbers in the shape of the output")


def _classes(labels: Labels, basis: str, operator: str, logits: bool) -> Task | Unclear:
    if labels.classes < 2:
        return Unclear(f"{basis}, but the output has one value for each sample and no classes")
    if not labels.has_number_shape and not labels.distributions:
        if labels.two_valued:
            return Unclear(f"{basis}, but rows of the labels hold several 1 or none")
        labels.class_numbers()
    return Task(
        "classes", "classes", "accuracy", basis, normal=operator == "SOFTMAX" and not logits
    )


def _sides(labels: Labels, cut: float, basis: str) -> Task | Unclear:
    if labels.classes > 1 and (labels.has_number_shape or labels.one_hot):
        what = "class numbers" if labels.has_number_shape else "one-hot rows"
        return Task(
            "classes", "classes", "accuracy", f"{basis}, the labels are {what}", normal=False
        )
    if labels.two_valued or labels.signs:
        kind = "multilabel" if labels.classes > 1 else "binary"
        metric = "binary_accuracy" if labels.classes > 1 else "accuracy"
        return Task(kind, "sides", metric, basis, cut)
    # Reconstructed images, soft labels: no answer is right or wrong.
    labels.values()
    return Task("values", "values", "mae", f"{basis}, but the labels are not only 0 and 1")


def may_be_classifier(operator: str, loss: Loss | None) -> bool:
    """Returns whether an output without labels may give answers that are right or wrong."""
    if operator in (*_SOFTMAX, *_NUMBERS, "LOGISTIC"):
        return True
    return loss is None or loss.kind not in ("mse", "mae", "unjudged")


def task_for(wanted: Wanted, operator: str, loss: Loss | None, labels: Labels) -> Task | Unclear:
    """Returns the task under which a metric that the user names is measured.

    Raises:
        ArgumentError: the labels do not have a form that the metric takes.
    """
    forms = wanted.metric.forms
    basis = "the metric was named"
    if forms == ("values",):
        labels.values()
        return Task("values", "values", wanted.name, basis)
    if wanted.metric.name == "binary_accuracy" and wanted.parameter is not None:
        labels.sides()
        kind = "multilabel" if labels.classes > 1 else "binary"
        return Task(kind, "sides", wanted.name, basis, wanted.parameter)
    found: Task | Unclear
    try:
        found = find_task(operator, loss, labels)
    except ArgumentError:
        found = Unclear("the labels do not fit its loss")
    if wanted.metric.name == "binary_accuracy":
        if isinstance(found, Task) and found.cut is not None:
            return found
        cut = PROBABILITY if operator in ("SOFTMAX", "LOGISTIC") and _no_logits(loss) else None
        if loss is not None and loss.kind in ("sides", "hinge") and cut is None:
            cut = LOGIT if loss.from_logits or loss.kind == "hinge" else PROBABILITY
            cut = None if loss.from_logits and operator == "LOGISTIC" else cut
        labels.sides()
        if cut is not None:
            kind = "multilabel" if labels.classes > 1 else "binary"
            return Task(kind, "sides", wanted.name, basis, cut)
        reason = found.reason if isinstance(found, Unclear) else "there is no loss and no sigmoid"
        return Unclear(reason)
    if isinstance(found, Task) and found.form in forms:
        return found
    if "classes" in forms and labels.classes > 1 and (
        labels.has_number_shape or labels.one_hot or wanted.metric.name == "mean_iou"
    ):  # fmt: skip
        labels.class_numbers(wanted.parameter if wanted.metric.name == "mean_iou" else None)
        return Task("classes", "classes", wanted.name, basis, normal=operator == "SOFTMAX")
    if wanted.metric.name == "auc":
        labels.sides()
        # Only the order of the outputs counts, so no threshold is needed.
        return Task("binary", "sides", wanted.name, basis)
    if isinstance(found, Unclear):
        return found
    if "sides" in forms and (labels.two_valued or labels.signs):
        return Unclear(f"{found.found}, so it is unknown from which value it counts as a yes")
    raise ArgumentError(
        "--metric", f"fit the labels of its output: {wanted.name} needs class numbers, one-hot "
        "rows or 0 and 1", labels.got,
    )  # fmt: skip


def _no_logits(loss: Loss | None) -> bool:
    return loss is None or not loss.from_logits


def match_labels(labels: Any, outputs: Sequence[Output], argument: str) -> tuple[Any, ...]:
    """Returns the labels of each output by position; None if there are none.

    Args:
        labels: One array, for the only or the first output, or a mapping from `y_<output>`,
            `y0`, `y1`, ... or an output's own name to arrays.
        outputs: The outputs.
        argument: Where they came from, for error messages.

    Raises:
        ArgumentError: a key matches no output, or two keys the same one.
    """
    if not isinstance(labels, Mapping):
        return (labels, *[None] * (len(outputs) - 1))
    found: dict[int, Any] = {}
    for key, array in labels.items():
        named = [i for i, o in enumerate(outputs) if {key, key.removeprefix("y_")} & set(o.names)]
        place = key.removeprefix("y")
        if named:
            position = named[0]
        elif key == "y":
            position = 0
        elif place.isdecimal() and len(place) < 4 and int(place) < len(outputs):
            position = int(place)
        else:
            right = ", ".join(f"y_{o.name} or y{i}" for i, o in enumerate(outputs))
            raise ArgumentError(argument, f"hold labels under {right}", key)
        if position in found:
            raise ArgumentError(
                argument, f"hold labels of output {outputs[position].name!r} once", sorted(labels)
            )
        found[position] = array
    return tuple(found.get(position) for position in range(len(outputs)))
