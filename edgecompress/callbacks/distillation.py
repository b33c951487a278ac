"""Distillation: one or several teachers in the train step of a student."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import ops

from edgecompress.callbacks import backends
from edgecompress.callbacks.base import CompressionCallback
from edgecompress.callbacks.hooks import StateHook, Wrapping, own_training
from edgecompress.callbacks.regressors import Regressors
from edgecompress.callbacks.replicas import replicas
from edgecompress.core.errors import (
    ArgumentError,
    NotFiniteError,
    UnknownNameError,
    UnsupportedModelError,
)
from edgecompress.core.finite import check_weights
from edgecompress.core.keras_graph import (
    GraphNode,
    functional_of,
    graph_nodes,
    loss_weights_of,
    output_names,
    walk_layers,
)
from edgecompress.core.options import named, named_config
from edgecompress.training import LAYER_LOSSES, LOSSES
from edgecompress.training.base import LayerLoss, Outputs, TeacherLoss
from edgecompress.training.specialists import Specialist
from edgecompress.training.teacher_outputs import Found, TeacherOutputs
from edgecompress.training.teachers import (
    OutputKind,
    Teacher,
    checked_teachers,
    joined,
    mean_of_samples,
    model_of,
    normalized,
    of_outputs,
    output_kinds,
    with_specialists,
)


@dataclass(frozen=True)
class _Pair:
    """A layer of the student and the one that teaches it.

    Attributes:
        student: Name of the student's layer.
        layer: It.
        teacher: Name of the teacher's layer.
        output: What the teacher's layer computes, a tensor of its graph.
        channels: The axes of channels of teacher and student.
        widths: Channels of student and teacher, if a regressor is trained between them.
    """

    student: str
    layer: Any
    teacher: str
    output: Any
    channels: tuple[int, int]
    widths: tuple[int, int] | None


class Distillation(CompressionCallback):
    """Trains a student on its labels and on the outputs of one or several teachers.

    In each train step the teachers see the batch that the student sees, and the loss becomes

        (1 - w) * L + w * T + A + R

    with L the compiled loss on the labels, T the loss against the teachers, w its weight, A the
    loss of pairs of layers and R the penalties of layers. T is the sum over the outputs of the
    model, each the mean over the batch times the output's `loss_weights` of `compile`; sample and
    class weights apply to L, T and A as Keras applies them to a loss. Outputs may be logits or
    probabilities, on either side; where neither activation nor loss tells, they are taken for
    logits, and a note says so. Several teachers count as one whose logits are their mean;
    specialists for some classes correct it on these.

    `fit`, data and `compile` stay as they are. Metrics, `val_loss` and `evaluate` are those of the
    labels; the history gains `teacher_loss`, T + A before weighting T, as a mean over the epoch's
    samples. The student is trained as other callbacks have it compute: with int8 arithmetic under
    `QuantizationAwareTraining`. Nothing of the teacher is saved with the student.

    Args:
        teacher: A trained Keras model that takes the same inputs and has as many outputs of the
            same shapes, or several of them, among which may be a `Specialist`; or their
            `TeacherOutputs`, computed beforehand.
        loss: How outputs are compared: a name in `LOSSES`, `NAME:OPTION=VALUE`, or a loss. Its
            `weight` is w. Defaults to `"distillation"`.
        layers: Names of the student's layers -> names of the teacher's that they learn from.
            Where numbers of channels differ, `"hints"` train a regressor between them, which is
            dropped at the end. Defaults to None, outputs alone.
        layer_loss: How layers are compared: a name in `LAYER_LOSSES`, and so on. Defaults to
            `"attention-transfer"`.

    Raises:
        ArgumentError: an argument breaks its rule, or, when training begins, teacher and student do
            not fit each other.
        UnknownNameError: a loss or a layer is unknown.
        UnsupportedModelError: teacher or student is subclassed or not built, or the student has its
            own `train_step` or `compute_loss`.
        NotFiniteError: the teacher has weights or outputs that are NaN or infinite.

    Example:
        >>> model.fit(x, y, callbacks=[Distillation(teacher)])  # doctest: +SKIP
        >>> model.fit(x, y, callbacks=[  # doctest: +SKIP
        ...     Distillation(teacher, layers={"conv2d_3": "conv2d_9"}),
        ...     QuantizationAwareTraining(),
        ... ])
    """

    technique = "distillation"

    def __init__(
        self,
        teacher: Any,
        loss: str | TeacherLoss = "distillation",
        layers: Mapping[str, str] | None = None,
        layer_loss: str | LayerLoss = "attention-transfer",
    ) -> None:
        """Checks the arguments."""
        super().__init__()
        stored = isinstance(teacher, TeacherOutputs)
        teachers = teacher.teachers if stored else checked_teachers(teacher)
        if layers is not None and not isinstance(layers, Mapping):
            raise ArgumentError(
                "layers", "be a dictionary: student's layer -> teacher's layer", layers
            )
        if layers and stored:
            raise ArgumentError(
                "layers", "be left out with TeacherOutputs", dict(layers),
                "Layers are not stored: give the teacher itself.",
            )  # fmt: skip
        if layers and len(teachers) > 1:
            raise ArgumentError(
                "layers", "be left out with several teachers", len(teachers),
                "Name one teacher; its layers teach.",
            )  # fmt: skip
        self.teachers: tuple[Teacher, ...] = teachers
        self.outputs: TeacherOutputs | None = teacher if stored else None
        self.loss: TeacherLoss = named(LOSSES, loss, "loss")
        self.layers = dict(layers or {})
        self.layer_loss: LayerLoss = named(LAYER_LOSSES, layer_loss, "layer_loss")
        self._pairs: list[_Pair] = []
        self._watches: list[Wrapping] = []
        self._calls: list[Callable[[Any], list[Any]]] = []
        self._found: Found | None = None
        self._regressors: Regressors | None = None
        # A replica of a distributed step is traced in its own thread.
        self._seen = threading.local()
        self._new_epoch = self._first_step = False
        self._mean: float | None = None

    def settings(self) -> Mapping[str, Any]:
        """Returns the arguments as JSON values; a teacher by its name and size."""
        return {
            "teachers": [_described(each) for each in self.teachers],
            "loss": named_config(LOSSES, self.loss),
            "layers": self.layers,
            **(
                {"layer_loss": named_config(LAYER_LOSSES, self.layer_loss)} if self.layers else {}
            ),
        }  # fmt: skip

    def results(self) -> Mapping[str, Any]:
        """Returns the loss against the teachers in the last epoch."""
        widths = {pair.student: list(pair.widths) for pair in self._pairs if pair.widths}
        return {"teacher_loss": self._mean, **({"regressors": widths} if widths else {})}

    def attach(self) -> None:
        """Checks that teacher and student fit, and puts the teacher into the loss."""
        self._mean = None
        self._check()
        self._pairs = [self._pair(*names) for names in self.layers.items()]
        self._calls, self._found = [], None
        if self.outputs is not None:
            self._found = self.outputs.tensors()
        else:
            layers = [pair.output for pair in self._pairs]
            self._calls = [_inference(model_of(each), layers) for each in self.teachers]
        self._kinds = [output_kinds(model_of(each)) for each in self.teachers]
        self._student_kinds = output_kinds(self.model)
        self._check_kinds()
        # Values are compared as they are, whatever they end in.
        self._student_kinds, *self._kinds = [
            [replace(each, kind=Outputs()) if student.values else each
             for each, student in zip(kinds, self._student_kinds, strict=True)]
            for kinds in (self._student_kinds, *self._kinds)
        ]  # fmt: skip
        weights = of_outputs(self.model, loss_weights_of(self.model))
        self._loss_weights = [1.0 if weight is None else weight for weight in weights]
        with _scope(self.model):
            # Sum of losses, number of samples, number of batches with a NaN of the teacher, number
            # of samples whose stored outputs are unknown.
            self._counts = [
                keras.Variable(
                    0.0, trainable=False, dtype="float32", name=name, aggregation="sum",
                    synchronization="on_read",
                )
                for name in ("teacher_loss", "teacher_samples", "teacher_faults", "teacher_gaps")
            ]  # fmt: skip
        self.hook(StateHook(self._counts))
        self.hook(Wrapping(self.model, "compute_loss", self._with_teacher))
        self._watch()
        widths = {pair.student: pair.widths for pair in self._pairs if pair.widths}
        self._regressors = Regressors(self.model, widths) if widths else None
        update = self._regressors.hook() if self._regressors else None
        if self._regressors is not None and update is not None:
            self.hook(update)
            self._regressors.prepare()

    def _watch(self) -> None:
        for pair in self._pairs:
            watch = functools.partial(self._watching, pair.student)
            self._watches.append(self.hook(Wrapping(pair.layer, "call", watch)))

    def start_epoch(self, epoch: int) -> None:
        """Starts the mean of the epoch."""
        self._new_epoch = self._first_step = True
        for variable in self._counts:
            variable.assign(ops.zeros_like(variable))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads layers behind all that other callbacks have changed in them since."""
        if not self._new_epoch:
            return
        self._new_epoch = False
        hooks = self.session.hooks
        last = max((hooks.index(watch) for watch in self._watches), default=len(hooks))
        layers = [pair.layer for pair in self._pairs]
        if any(
            isinstance(hook, Wrapping) and any(hook.target is layer for layer in layers)
            for hook in hooks[last + 1 :]
        ):
            with self._stage():
                for watch in self._watches:
                    self.session.detach(watch)
                self._watches = []
                self._watch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Refuses data that the outputs were not computed for, after the first step already."""
        if self._first_step:
            self._first_step = False
            self._check_known()

    def _check_known(self) -> None:
        if self._found is None:
            return
        backends.current().sync(self.model)
        unknown = float(ops.convert_to_numpy(self._counts[3]))
        if unknown:
            with self._stage():
                raise ArgumentError(
                    "x", "be the data that the teacher's outputs were computed for",
                    f"{unknown:.0f} samples that are not among them",
                    "Augmented data are new samples: give the teacher itself.",
                )  # fmt: skip

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the loss against the teachers into the history."""
        self._check_known()
        total, samples, faults, _ = (float(ops.convert_to_numpy(v)) for v in self._counts)
        if faults:
            names = ", ".join(model_of(each).name for each in self.teachers)
            with self._stage():
                raise NotFiniteError(
                    f"What the teacher ({names}) computes is NaN or infinite in {faults:.0f} "
                    f"batches of epoch {epoch + 1}. Check the teacher and the scaling of the data."
                )
        self._mean = total / samples if samples else 0.0
        self.log(epoch, logs, {"teacher_loss": self._mean})

    def detach(self) -> None:
        """Leaves the compiled loss alone again; `fit` does so unless interrupted."""
        super().detach()
        self._watches = []

    def _check(self) -> None:
        """Refuses models that do not fit each other, and callbacks that do not."""
        student = functional_of(self.model)
        own = own_training(self.model)
        if own is not None:
            raise UnsupportedModelError(
                f"Model {self.model.name!r} has its own {own}: Distillation would not know where "
                "its loss belongs. Train it with Keras's own, or add the loss there."
            )
        if any(
            isinstance(h.owner, Distillation) and h.owner is not self for h in self.session.hooks
        ):
            raise ArgumentError(
                "callbacks", "hold one Distillation", "two", "One takes several teachers."
            )
        weights = {id(weight) for weight in self.model.weights}
        for each in self.teachers:
            teacher = model_of(each)
            graph = functional_of(teacher)
            if any(id(weight) in weights for weight in teacher.weights):
                raise ArgumentError(
                    "teacher", "share no weights with the student", teacher.name,
                    "Teach with a copy: keras.models.clone_model, then set_weights.",
                )  # fmt: skip
            for what in ("inputs", "outputs"):
                wanted = [tuple(t.shape[1:]) for t in getattr(student, what)]
                if what == "outputs" and isinstance(each, Specialist):
                    wanted = [_specialist_shape(each, wanted)]
                got = [tuple(t.shape[1:]) for t in getattr(graph, what)]
                if len(got) != len(wanted) or not all(map(_fits, got, wanted)):
                    raise ArgumentError(
                        "teacher", f"have {what} of shapes {wanted}, as the student has", got
                    )
            self._check_names(teacher)
            check_weights(teacher, "Train the teacher again, or load another file of it.")

    def _check_names(self, teacher: Any) -> None:
        """Refuses outputs of which only their names say which is which, if those differ."""
        ours, theirs = (functional_of(model).output for model in (self.model, teacher))
        shapes = [tuple(tensor.shape) for tensor in keras.tree.flatten(ours)]
        if len(set(shapes)) == len(shapes) or not isinstance(ours, (Mapping, list, tuple)):
            return
        wanted, got = (
            ["/".join(map(str, path)) for path, _ in keras.tree.flatten_with_path(structure)]
            for structure in (ours, theirs)
        )
        if wanted != got:
            raise ArgumentError(
                "teacher", f"have outputs {', '.join(wanted)}, as the student has",
                ", ".join(got), "Outputs of one shape are told apart by their names alone.",
            )  # fmt: skip

    def _check_kinds(self) -> None:
        """Refuses losses that the outputs cannot have, and outputs of different meanings."""
        generalists, experts = self._split(self._kinds)
        for teacher, kinds in zip(self._split(self.teachers)[1], experts, strict=True):
            if kinds[0].kind.binary:
                raise ArgumentError(
                    "teacher", "hold specialists with a softmax over their classes and all others",
                    f"{teacher.model.name} with one sigmoid for each",
                )  # fmt: skip
        for position, name in enumerate(output_names(self.model)):
            student = self._student_kinds[position]
            if experts and (student.kind.binary or student.values):
                raise ArgumentError(
                    "teacher", "hold specialists for a student with a softmax over classes", name
                )
            if self.loss.of_classes and student.values:
                raise ArgumentError(
                    "loss", f"compare values, for output {name} is trained on values",
                    named_config(LOSSES, self.loss)["name"], 'Use loss="logits".',
                )  # fmt: skip
            if self.loss.of_classes:
                self._note_unknown(f"Output {name}", student)
            for teacher, kinds in zip(self.teachers, generalists, strict=False):
                if not student.values:
                    self._note_unknown(f"Output {position} of {teacher.name}", kinds[position])
                if kinds[position].kind.binary != student.kind.binary and not student.values:
                    words = {True: "one sigmoid for each class", False: "a softmax over classes"}
                    raise ArgumentError(
                        "teacher", f"have {words[student.kind.binary]} in output {name}, as the "
                        "student has", f"{teacher.name} with {words[kinds[position].kind.binary]}",
                    )  # fmt: skip

    def _note_unknown(self, output: str, kind: OutputKind) -> None:
        if kind.unknown is not None:
            what = "the logit of one class" if kind.kind.binary else "logits of classes"
            self.note(
                f"{output} is taken for {what}: neither its activation nor its loss "
                f"({kind.unknown}) says what it stands for."
            )

    def _pair(self, student: str, teacher: str) -> _Pair:
        """Returns two layers by name."""
        ours = _node(self.model, student, "the student")
        theirs = _node(self.teachers[0], teacher, "the teacher")
        channels = (_channels(theirs.operation), _channels(ours.operation))
        shapes = tuple(theirs.outputs[0].shape), tuple(ours.outputs[0].shape)
        why = self.layer_loss.why_not(*shapes, channels)
        if why is not None:
            raise ArgumentError(
                "layers",
                f"name pairs that can be compared: {why}",
                f"{student} {shapes[1][1:]} and {teacher} {shapes[0][1:]}",
            )
        widths = self.layer_loss.regressor(*shapes, channels)
        return _Pair(student, ours.operation, teacher, theirs.outputs[0], channels, widths)

    def _split(self, values: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns what belongs to generalists, and what to specialists."""
        count = sum(not isinstance(each, Specialist) for each in self.teachers)
        return list(values[:count]), list(values[count:])

    def _watching(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def watching(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            vars(self._seen)[name] = outputs
            return outputs

        return watching

    def _with_teacher(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `compute_loss` with the teacher's share; part of the compiled step."""

        @functools.wraps(compute)
        def compute_loss(
            x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None,
            training: bool = True,
        ) -> Any:  # fmt: skip
            labels = compute(x, y, y_pred, sample_weight, training=training)
            if not training:
                return labels
            taught, of_layers = self._compare(x, y_pred, sample_weight)
            self._count(taught + of_layers, x)
            share, weight = _share_of_replica(self.model), self.loss.weight
            total = labels + ops.cast(share * of_layers, labels.dtype)
            if not weight:
                return total
            # The penalties of layers keep their full weight.
            penalties = [ops.cast(ops.sum(loss), "float32") for loss in self.model.losses]
            whole = share * (taught + sum(penalties))
            return total + weight * (ops.cast(whole, labels.dtype) - labels)

        return compute_loss

    def _compare(self, x: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any]:
        """Returns the losses of outputs and of layers, means over the batch."""
        students = [_in_rows(student) for student in keras.tree.flatten(y_pred)]
        weights = keras.tree.flatten(sample_weight) if sample_weight is not None else [None]
        if len(weights) != len(students):
            weights = [weights[0]] * len(students)
        found = self._taught_outputs(x)
        taught = ops.zeros(())
        finite = [ops.all(ops.isfinite(value)) for outputs in found for value in outputs]
        fault = ops.logical_not(ops.all(ops.stack(finite)))
        self._counts[2].assign(self._counts[2] + ops.cast(fault, "float32"))
        for position, student in enumerate(students):
            kind = self._student_kinds[position].kind
            said = [_in_rows(each[position]) for each in found]
            teacher, logarithms = self._joined(position, said)
            student = kind.to_logits(ops.cast(student, "float32"))
            logarithms = logarithms or normalized([kind])
            if not self._student_kinds[position].values and logarithms:
                teacher, student = (ops.log_softmax(v, axis=-1) for v in (teacher, student))
            losses = self.loss.compare(teacher, student, kind)
            mean = mean_of_samples(losses, weights[position])
            taught = taught + ops.multiply(mean, self._loss_weights[position])
        of_layers = ops.zeros(())
        count = len(students)
        for pair, teacher in zip(self._pairs, found[0][count:], strict=True):
            student = ops.cast(vars(self._seen).pop(pair.student), "float32")
            if self._regressors is not None:
                student = self._regressors(pair.student, student, pair.channels[1])
            losses = self.layer_loss.compare(ops.cast(teacher, "float32"), student, pair.channels)
            weight = self.layer_loss.weight
            of_layers = of_layers + weight * mean_of_samples(losses, weights[0])
        return taught, of_layers

    def _joined(self, position: int, outputs: Sequence[Any]) -> tuple[Any, bool]:
        """Returns what all teachers say of an output, and whether it is logarithms of a softmax."""
        kinds = [each[position].kind for each in self._kinds]
        (generalists, experts), (known, kinds_of_experts) = self._split(outputs), self._split(kinds)
        logits = joined(generalists, known)
        if not experts:
            return logits, normalized(known)
        specialists = self._split(self.teachers)[1]
        asked = list(zip(specialists, experts, kinds_of_experts, strict=True))
        return with_specialists(logits, asked), True

    def _taught_outputs(self, x: Any) -> list[list[Any]]:
        """Returns the outputs of each teacher, and behind them what its layers compute."""
        if self._found is None:
            return [[ops.stop_gradient(value) for value in call(x)] for call in self._calls]
        values, unknown = self._found(x)
        gaps = self._counts[3]
        gaps.assign(gaps + ops.sum(ops.cast(unknown, "float32")))
        count = len(self._student_kinds)
        return [values[start : start + count] for start in range(0, len(values), count)]

    def _count(self, loss: Any, x: Any) -> None:
        samples = ops.cast(ops.shape(keras.tree.flatten(x)[0])[0], "float32")
        # Not the gradient's business.
        total, count = self._counts[:2]
        total.assign(total + ops.stop_gradient(loss) * samples)
        count.assign(count + samples)


def _described(teacher: Teacher) -> dict[str, Any]:
    """Returns what the record says of a teacher."""
    model = model_of(teacher)
    own = {"classes": list(teacher.classes)} if isinstance(teacher, Specialist) else {}
    return {"name": model.name, "parameters": model.count_params(), **own}


def _specialist_shape(teacher: Specialist, outputs: Sequence[tuple[int | None, ...]]) -> Any:
    """Returns the shape that a specialist's output has to have.

    Raises:
        ArgumentError: the student has other outputs than one over classes, or not its classes.
    """
    if len(outputs) != 1 or len(outputs[0]) != 1:
        raise ArgumentError(
            "teacher", "hold specialists for a student with one output of classes", outputs
        )
    count = outputs[0][0]
    if count is None or max(teacher.classes) >= count or len(teacher.classes) >= count:
        raise ArgumentError(
            "teacher", f"hold specialists for some of the student's {count} classes",
            list(teacher.classes),
        )  # fmt: skip
    return (len(teacher.classes) + 1,)


def _inference(model: Any, layers: Sequence[Any]) -> Callable[[Any], list[Any]]:
    """Returns a function of a batch: a model's outputs, then what some of its layers compute."""
    functional = functional_of(model)
    if layers:
        # The graph's own structure of inputs, which the data has.
        model = keras.Model(functional.input, [*functional.outputs, *layers])
    return lambda x: list(keras.tree.flatten(model(x, training=False)))


def _node(model: Any, name: str, whose: str) -> GraphNode:
    """Returns the only use of a layer of a model.

    Raises:
        UnknownNameError: there is none.
        ArgumentError: there are several.
    """
    nodes = [node for node in graph_nodes(model) if node.operation.name == name]
    if not nodes:
        if any(layer.name == name for layer in walk_layers(model)):
            raise ArgumentError(
                "layers", f"name layers of {whose} itself, not of a model nested in it", name,
                "Name the nested model, or build one model of its layers.",
            )  # fmt: skip
        known = [node.operation.name for node in graph_nodes(model)]
        raise UnknownNameError("layers", name, known)
    if len(nodes) > 1 or len(nodes[0].outputs) > 1:
        raise ArgumentError(
            "layers", f"name layers of {whose} that are used once and have one output", name
        )
    return nodes[0]


def _channels(operation: Any) -> int:
    return 1 if getattr(operation, "data_format", None) == "channels_first" else -1


def _in_rows(values: Any) -> Any:
    """Returns outputs with an axis of classes or values behind that of samples."""
    return ops.expand_dims(values, -1) if len(values.shape) == 1 else values


def _fits(one: Sequence[int | None], other: Sequence[int | None]) -> bool:
    return len(one) == len(other) and all(
        a == b or a is None or b is None for a, b in zip(one, other, strict=True)
    )


def _scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Returns the scope in which variables of a distributed step are made."""
    if replicas(model) == 1:
        return contextlib.nullcontext()
    scope: contextlib.AbstractContextManager[Any] = model.distribute_strategy.scope()
    return scope


def _share_of_replica(model: keras.Model) -> float:
    """Returns the factor of a replica's mean: Keras sums the losses of all replicas."""
    return 1.0 / replicas(model)
