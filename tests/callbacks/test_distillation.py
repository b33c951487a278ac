"""Distillation in `fit`: the loss of each step, what it leaves alone, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import edgecompress as ec
from edgecompress.core.errors import (
    ArgumentError,
    NotFiniteError,
    UnknownNameError,
    UnsupportedModelError,
)
from edgecompress.core.record import record_of

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(24, 6, 6, 2)).astype("f4")
Y = (X[:, 0, 0, 0] > 0).astype("i4") + (X[:, 1, 1, 0] > 0).astype("i4")


def build(filters: int, seed: int, activation: str | None = None, classes: int = 3) -> Any:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(
                filters, 3, activation="relu", kernel_regularizer="l2", name="conv"
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation, name="classes"),
        ],
        name=f"net{filters}",
    )
    return compiled(model, activation is None)


def compiled(model: Any, logits: bool = True, **more: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(keras.optimizers.SGD(0.1), loss, **more)
    return model


def fit(model: Any, *callbacks: Any, epochs: int = 1, **more: Any) -> dict[str, list[float]]:
    more = {"batch_size": 8, "shuffle": False, "verbose": 0} | more
    return dict(model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **more).history)


def weights(model: Any) -> list[np.ndarray]:
    return [np.array(w) for w in model.get_weights()]


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_the_loss_of_a_step_is_the_formula(activation: str | None) -> None:
    teacher, student = build(5, 1, "softmax"), build(3, 2, activation)
    sample_weight = _RNG.random(24).astype("f4")
    p = np.array(teacher(X)) ** (1 / 2)
    p /= p.sum(-1, keepdims=True)
    out = np.array(student(X))
    logits = out if activation is None else np.log(out)
    q, labels = softmax(logits / 2), softmax(logits)
    crossentropy = np.mean(sample_weight * -np.log(labels[np.arange(24), Y]))
    taught = np.mean(sample_weight * 4 * (p * np.log(p / q)).sum(-1))
    penalty = 0.01 * np.sum(np.square(student.layers[0].kernel))
    maps = []
    for model in (student, teacher):
        found = np.square(np.array(model.layers[0](X))).sum(-1).reshape(24, -1)
        maps.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    attention = np.mean(sample_weight * np.linalg.norm(maps[0] - maps[1], axis=1)) * 0.3 / 2
    callback = ec.Distillation(
        teacher, "distillation:temperature=2,weight=0.7", {"conv": "conv"},
        "attention-transfer:weight=0.3",
    )  # fmt: skip
    before = weights(teacher)
    found = fit(student, callback, batch_size=24, sample_weight=sample_weight)
    want = 0.3 * crossentropy + 0.7 * taught + attention + penalty
    np.testing.assert_allclose(found["loss"][0], want, rtol=1e-4)
    np.testing.assert_allclose(found["teacher_loss"][0], taught + attention, rtol=1e-4)
    for old, new in zip(before, weights(teacher), strict=True):
        np.testing.assert_array_equal(old, new)


def test_at_weight_0_training_is_as_without_a_teacher() -> None:
    plain, student = build(3, 2), build(3, 2)
    want = fit(plain, epochs=2)
    found = fit(student, ec.Distillation(build(5, 1), "distillation:weight=0"), epochs=2)
    assert found["loss"] == want["loss"]
    for one, other in zip(weights(plain), weights(student), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_fit_after_it_trains_plainly_and_the_record_says_who_taught() -> None:
    student = build(3, 2)
    validation = fit(student, ec.Distillation(build(5, 1)), validation_data=(X, Y))["val_loss"]
    # Labels alone, as in `evaluate`.
    np.testing.assert_allclose(validation[0], student.evaluate(X, Y, verbose=0), rtol=1e-5)
    plain = build(3, 2)
    plain.set_weights(student.get_weights())
    assert fit(student) == fit(plain)
    (step,) = record_of(student).steps
    assert step["technique"] == "distillation"
    assert step["teachers"] == [{"name": "net5", "parameters": build(5, 1).count_params()}]
    assert step["teacher_loss"] > 0


@pytest.mark.parametrize(
    "how", [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}], ids=str
)
def test_however_compiled_the_training_is_the_same(how: dict[str, Any]) -> None:
    teacher = build(5, 1)

    def trained(**more: Any) -> Any:
        return fit(
            compiled(build(3, 2), **more),
            ec.Distillation(teacher, layers={"conv": "conv"}),
            epochs=2,
        )

    want, found = trained(), trained(**how)
    for name in ("loss", "teacher_loss"):
        np.testing.assert_allclose(found[name], want[name], rtol=1e-4)


_TWO_DEVICES = """
import keras, numpy as np, tensorflow as tf
import edgecompress as ec
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"],
    cross_device_ops=tf.distribute.HierarchicalCopyAllReduce())
x = np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype("f4")
y = (x[:, 0, 0, 0] > 0).astype("i4")
def build(seed):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4, 4, 2)),
        keras.layers.Conv2D(3, 2, name="conv", kernel_regularizer="l2"),
        keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
teacher = build(1)
def fit(model):
    callback = ec.Distillation(teacher, layers={"conv": "conv"})
    history = model.fit(
        x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[callback])
    return history.history, model.get_weights()
want = fit(build(2))
with strategy.scope():
    student = build(2)
found = fit(student)
for name in ("loss", "teacher_loss"):
    np.testing.assert_allclose(found[0][name], want[0][name], rtol=1e-4)
for one, other in zip(want[1], found[1], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.slow
def test_two_devices_train_as_one_does(run_python: Callable[..., Any]) -> None:
    done = run_python(["-P", "-c", _TWO_DEVICES])
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_student_learns_its_teacher_in_half_precision_and_accumulated_gradients() -> None:
    teacher = build(5, 1)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = build(3, 2)
    finally:
        keras.config.set_dtype_policy(policy)
    optimizer = keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)
    student.compile(optimizer, student.loss)
    found = fit(student, ec.Distillation(teacher, "logits:weight=1", {"conv": "conv"}), epochs=12)
    assert found["teacher_loss"][-1] < 0.7 * found["teacher_loss"][0]


def test_layers_are_read_as_quantization_computes_them() -> None:
    """With a student equal to its teacher, only rounding keeps them apart."""
    found = {}
    for order in (1, -1):
        teacher, student = build(4, 1), build(4, 1)
        student.optimizer.learning_rate = 0.0
        callback = ec.Distillation(teacher, "logits", {"conv": "conv"}, "hints:weight=1e6")
        callbacks = [callback, ec.QuantizationAwareTraining(ec.Int8())][::order]
        found[order] = fit(student, *callbacks)["teacher_loss"][0]
    # Rounding of weights and, on the way out, of activations; in any order of the callbacks.
    np.testing.assert_allclose(found[1], found[-1], rtol=1e-5)
    plain = fit(build(4, 1), ec.Distillation(build(4, 1), "logits", {"conv": "conv"}, "hints"))
    assert found[1] > 1 and plain["teacher_loss"][0] < 1


def test_several_inputs_and_outputs() -> None:
    def two(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
        both = keras.layers.Concatenate()([a, b])
        outputs = {
            "kind": keras.layers.Dense(3, name="kind")(both),
            "flag": keras.layers.Dense(1, "sigmoid", name="flag")(both),
        }
        model = keras.Model({"a": a, "b": b}, outputs)
        model.compile(
            "sgd",
            {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
             "flag": "binary_crossentropy"},
        )  # fmt: skip
        return model

    x = {"a": _RNG.normal(size=(16, 4)).astype("f4"), "b": _RNG.normal(size=(16, 3)).astype("f4")}
    y = {"kind": np.arange(16) % 3, "flag": (np.arange(16) % 2).astype("f4")}
    teacher, student = two(1), two(2)
    t, s = ({k: np.array(v) for k, v in m(x).items()} for m in (teacher, student))
    p, q = softmax(t["kind"] / 4), softmax(s["kind"] / 4)
    want = np.mean(16 * (p * np.log(p / q)).sum(-1))
    a, b = (1 / (1 + ((1 - v["flag"]) / v["flag"]) ** 0.25) for v in (t, s))
    want += np.mean(16 * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))))
    found = student.fit(x, y, batch_size=16, verbose=0, callbacks=[ec.Distillation(teacher)])
    np.testing.assert_allclose(found.history["teacher_loss"][0], want, rtol=1e-3)


def _two_heads(seed: int, names: tuple[str, str] = ("kind", "value"), sizes: Any = (3, 2)) -> Any:
    """The names of the layers are not the keys of the outputs."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4,))
    return keras.Model(
        inputs, {name: keras.layers.Dense(n)(inputs) for name, n in zip(names, sizes, strict=True)}
    )


_ROWS = _RNG.normal(size=(16, 4)).astype("f4")


def _halves(teacher: Any, student: Any) -> float:
    return float(np.mean(np.square(np.array(teacher) - np.array(student)).sum(-1)) / 2)


def test_values_in_a_dictionary_of_outputs_are_not_taken_for_classes() -> None:
    teacher, student = _two_heads(1), _two_heads(2)
    of_classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile("sgd", {"kind": of_classes, "value": "mse"})
    y = {"kind": np.arange(16) % 3, "value": _ROWS[:, :2]}
    with pytest.raises(ArgumentError, match="trained on values"):
        student.fit(_ROWS, y, verbose=0, callbacks=[ec.Distillation(teacher)])


def test_loss_weights_weigh_the_teacher_too() -> None:
    teacher, student = _two_heads(1), _two_heads(2)
    losses, factors = {"kind": "mse", "value": "mae"}, {"kind": 3.0, "value": 0.1}
    student.compile("sgd", losses, loss_weights=factors)
    t, s = teacher(_ROWS), student(_ROWS)
    want = 3 * _halves(t["kind"], s["kind"]) + 0.1 * _halves(t["value"], s["value"])
    y = {"kind": _ROWS[:, :3], "value": _ROWS[:, :2]}
    found = student.fit(
        _ROWS, y, batch_size=16, verbose=0, callbacks=[ec.Distillation(teacher, "logits")]
    ).history
    np.testing.assert_allclose(found["teacher_loss"][0], want, rtol=1e-4)


def test_outputs_of_one_shape_need_the_same_names() -> None:
    student = _two_heads(2, sizes=(2, 2))
    student.compile("sgd", "mse")
    y = {"kind": _ROWS[:, :2], "value": _ROWS[:, 2:]}
    for names, text in ((("kind", "other"), "kind, other"), (("kind", "value"), "")):
        callback = ec.Distillation(_two_heads(1, names, (2, 2)), "logits")
        if not text:
            student.fit(_ROWS, y, verbose=0, callbacks=[callback])
            continue
        with pytest.raises(ArgumentError, match=f"outputs kind, value.*{text}"):
            student.fit(_ROWS, y, verbose=0, callbacks=[callback])


@pytest.mark.parametrize("compiled_teacher", [False, True])
@pytest.mark.parametrize("end", [None, "sigmoid"])
def test_regression_compares_values_whatever_they_end_in(
    end: str | None, compiled_teacher: bool
) -> None:
    def build_one(seed: int, activation: str | None) -> Any:
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation)])

    teacher, student = build_one(1, end), build_one(2, "sigmoid")
    student.compile("sgd", "mse")
    if compiled_teacher:
        teacher.compile("sgd", "mse")
    want = _halves(teacher(_ROWS), student(_ROWS))
    found = student.fit(
        _ROWS, _ROWS[:, :2], batch_size=16, verbose=0,
        callbacks=[ec.Distillation(teacher, "logits")],
    ).history  # fmt: skip
    np.testing.assert_allclose(found["teacher_loss"][0], want, rtol=1e-4)


def test_a_single_output_may_have_no_axis_of_classes() -> None:
    def flat(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4,))
        outputs = keras.ops.squeeze(keras.layers.Dense(1, "sigmoid")(inputs), -1)
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "binary_crossentropy")
        return model

    teacher, student, weight = flat(1), flat(2), _RNG.random(16).astype("f4")
    a, b = (
        1 / (1 + ((1 - p) / p) ** 0.25) for p in (np.array(m(_ROWS)) for m in (teacher, student))
    )
    want = np.mean(weight * 16 * (a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))))
    found = student.fit(
        _ROWS, np.arange(16) % 2, sample_weight=weight, batch_size=16, verbose=0,
        callbacks=[ec.Distillation(teacher)],
    ).history  # fmt: skip
    np.testing.assert_allclose(found["teacher_loss"][0], want, rtol=1e-3)


def test_what_an_output_is_taken_for_is_said() -> None:
    student = build(3, 2)
    student.compile("sgd", lambda y, outputs: keras.ops.mean(outputs, axis=-1))
    callback = ec.Distillation(build(5, 1))
    fit(student, callback)
    (note,) = callback.notes
    assert "Output classes is taken for logits of classes" in note and "lambda" in note
    assert callback.notes == record_of(student).notes


def test_several_teachers_count_as_their_mean() -> None:
    one, two, student = build(4, 1), build(5, 3), build(3, 2)
    mean = (np.array(one(X)) + np.array(two(X))) / 2
    want = np.mean(np.square(np.array(student(X)) - mean).sum(-1) / 2)
    found = fit(student, ec.Distillation([one, two], "logits"), batch_size=24)
    np.testing.assert_allclose(found["teacher_loss"][0], want, rtol=1e-4)


def test_stored_outputs_teach_as_their_teachers_do(tmp_path: Any) -> None:
    """Shuffled, weighted, compiled and after loading the stored outputs again."""
    teachers = [build(5, 1), build(4, 3, "softmax")]
    weight = _RNG.random(24).astype("f4")
    want = fit(build(3, 2), ec.Distillation(teachers), sample_weight=weight, epochs=2)
    for _ in range(2):
        stored = ec.TeacherOutputs(teachers, X, tmp_path / "outputs")
        student = build(3, 2)
        found = fit(student, ec.Distillation(stored), sample_weight=weight, epochs=2)
        for name in ("loss", "teacher_loss"):
            np.testing.assert_allclose(found[name], want[name], rtol=1e-5)
    assert [t["name"] for t in record_of(student).steps[0]["teachers"]] == ["net5", "net4"]
    keras.utils.set_random_seed(7)
    shuffled = fit(build(3, 2), ec.Distillation(stored), shuffle=True)
    keras.utils.set_random_seed(7)
    live = fit(build(3, 2), ec.Distillation(teachers), shuffle=True)
    np.testing.assert_allclose(shuffled["teacher_loss"], live["teacher_loss"], rtol=1e-5)


def test_stored_outputs_of_other_data_are_not_taken_for_these(tmp_path: Any) -> None:
    stored = ec.TeacherOutputs(build(5, 1), X[:23], tmp_path)
    with pytest.raises(ArgumentError, match="`x` must be the data.*1 samples.*Augmented"):
        fit(build(3, 2), ec.Distillation(stored))
    with pytest.raises(ArgumentError, match="24 samples"):
        moved = X + np.float32(1e-6)
        build(3, 2).fit(
            moved, Y, batch_size=24, verbose=0,
            callbacks=[ec.Distillation(ec.TeacherOutputs(build(5, 1), X, tmp_path / "all"))],
        )  # fmt: skip
    with pytest.raises(ArgumentError, match="`layers` must be left out with TeacherOutputs"):
        ec.Distillation(stored, layers={"conv": "conv"})


def test_specialists_correct_the_generalist_on_their_classes() -> None:
    from edgecompress.training.specialists import combined

    generalist, model, student = build(5, 1), build(4, 3), build(3, 2)
    expert = ec.Specialist(model, (2, 0), oversampled=3.0)
    logits = np.array(model(X))
    logits[:, 2] += np.log(3)
    log_q = np.array(combined(softmax(np.array(generalist(X))), [((2, 0), softmax(logits))]))
    p, own = softmax(log_q / 4), softmax(np.array(student(X)) / 4)
    want = np.mean(16 * (p * np.log(p / own)).sum(-1))
    # The order of the teachers does not matter.
    found = fit(student, ec.Distillation([expert, generalist]), batch_size=24)
    np.testing.assert_allclose(found["teacher_loss"][0], want, rtol=1e-4)
    (step,) = record_of(student).steps
    assert [teacher.get("classes") for teacher in step["teachers"]] == [None, [2, 0]]


def test_specialists_for_other_classes_are_refused() -> None:
    generalist, three = build(5, 1), build(4, 3)
    with pytest.raises(ArgumentError, match="all classes beside specialists"):
        ec.Distillation(ec.Specialist(three, (0, 1)))
    for expert, text in (
        (ec.Specialist(three, (0, 3)), "some of the student's 3 classes"),
        (ec.Specialist(build(4, 3, "sigmoid"), (0, 1)), "net4 with one sigmoid for each"),
        (ec.Specialist(three, (0,)), r"outputs of shapes \[\(2,\)\].*\(3,\)"),
    ):
        with pytest.raises(ArgumentError, match=text):
            fit(build(3, 2), ec.Distillation([generalist, expert]))


def _regressor(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    most = np.sqrt(6 / (inputs + outputs))
    return np.random.default_rng(0).uniform(-most, most, (inputs, outputs)), np.zeros(outputs)


def test_a_regressor_between_other_widths_learns_and_is_dropped() -> None:
    """Gradient descent by hand; the layer is frozen, so that the labels' loss knows nothing."""
    teacher, student, plain = build(5, 1), build(3, 2), build(3, 2)
    for model in (student, plain):
        model.get_layer("conv").trainable = False
        compiled(model)
    ours, theirs = (np.array(model.layers[0](X)).astype("f8") for model in (student, teacher))
    (kernel, bias), want = _regressor(3, 5), []
    for _ in range(4):
        apart = ours @ kernel + bias - theirs
        want.append(0.7 * np.mean(np.square(apart)) / 2)
        slope = 0.7 * apart / apart.size
        kernel = kernel - 0.1 * np.tensordot(ours, slope, ([0, 1, 2], [0, 1, 2]))
        bias = bias - 0.1 * slope.sum((0, 1, 2))
    callback = ec.Distillation(
        teacher, "distillation:weight=0", {"conv": "conv"}, "hints:weight=0.7"
    )
    found = fit(student, callback, epochs=4, batch_size=24)["loss"]
    labels = fit(plain, epochs=4, batch_size=24)["loss"]
    np.testing.assert_allclose(np.subtract(found, labels), want, rtol=1e-4)
    assert want[3] < 0.999 * want[0]
    assert [w.shape for w in student.weights] == [w.shape for w in plain.weights]
    (step,) = record_of(student).steps
    assert step["regressors"] == {"conv": [3, 5]}


def test_a_layer_learns_through_its_regressor() -> None:
    teacher, student, plain = build(5, 1), build(3, 2), build(3, 2)
    conv = student.get_layer("conv")
    before = np.array(conv.kernel)
    with tf.GradientTape() as tape:
        kernel, bias = _regressor(3, 5)
        apart = conv(X) @ kernel.astype("f4") + bias.astype("f4") - teacher.layers[0](X)
        loss = tf.reduce_mean(tf.square(apart)) / 2
    slope = np.array(tape.gradient(loss, conv.kernel.value))
    callback = ec.Distillation(teacher, "distillation:weight=0", {"conv": "conv"}, "hints")
    fit(student, callback, batch_size=24)
    fit(plain, batch_size=24)
    apart = np.array(conv.kernel) - np.array(plain.get_layer("conv").kernel)
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(apart, -0.1 * slope, atol=1e-6)
    assert np.abs(before - np.array(conv.kernel)).max() > 0


@pytest.mark.parametrize(
    "how", [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}], ids=str
)
def test_however_compiled_regressor_and_stored_outputs_do_the_same(
    how: dict[str, Any], tmp_path: Any
) -> None:
    teacher = build(5, 1)
    stored = ec.TeacherOutputs(teacher, X, tmp_path)

    def trained(**more: Any) -> list[Any]:
        hints = ec.Distillation(teacher, layers={"conv": "conv"}, layer_loss="hints")
        return [
            fit(compiled(build(3, 2), **more), callback, epochs=2)
            for callback in (hints, ec.Distillation(stored))
        ]

    for want, found in zip(trained(), trained(**how), strict=True):
        for name in ("loss", "teacher_loss"):
            np.testing.assert_allclose(found[name], want[name], rtol=1e-4)


def test_nothing_of_the_teacher_is_saved(tmp_path: Any) -> None:
    class Save(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.save(tmp_path / "during.keras")

    student = build(3, 2)
    fit(student, ec.Distillation(build(5, 1), layers={"conv": "conv"}), Save())
    loaded = keras.saving.load_model(tmp_path / "during.keras")
    assert [w.shape for w in loaded.weights] == [w.shape for w in student.weights]
    np.testing.assert_allclose(loaded(X), student(X), rtol=1e-5, atol=1e-6)


def test_a_fit_that_was_interrupted_continues(tmp_path: Any) -> None:
    teacher = build(5, 1)

    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 1:
                raise KeyboardInterrupt

    def callbacks() -> list[Any]:
        return [ec.Distillation(teacher), keras.callbacks.BackupAndRestore(tmp_path)]

    student = build(3, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(student, *callbacks(), Stop(), epochs=2)
    again, whole = build(3, 2), build(3, 2)
    fit(again, *callbacks(), epochs=2)
    fit(whole, ec.Distillation(teacher), epochs=2)
    for one, other in zip(weights(again), weights(whole), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# --- what it refuses ----------------------------------------------------------------------------


class _Own(keras.Model):  # type: ignore[misc]
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


class _Subclassed(keras.Model):  # type: ignore[misc]
    def call(self, inputs: Any) -> Any:
        return inputs


def _broken() -> Any:
    teacher = build(5, 1)
    teacher.layers[0].kernel.assign(teacher.layers[0].kernel * np.nan)
    return teacher


def test_models_that_cannot_teach_or_learn_are_refused() -> None:
    student = build(3, 2)
    for teacher, error, text in (
        (build(5, 1, classes=4), ArgumentError, r"outputs of shapes \[\(3,\)\].*\(4,\)"),
        (build(5, 1, "sigmoid"), ArgumentError, "softmax over classes.*one sigmoid"),
        (student, ArgumentError, "share no weights"),
        (_Subclassed(name="hidden"), UnsupportedModelError, "hidden"),
        (
            keras.Sequential([keras.layers.Dense(3)], name="unbuilt"),
            UnsupportedModelError,
            "unbuilt",
        ),
        (_broken(), NotFiniteError, "conv.*NaN"),
    ):
        with pytest.raises(error, match=text):
            fit(student, ec.Distillation(teacher))
    graph = build(3, 2)
    own = compiled(_Own(graph.inputs, graph.outputs))
    with pytest.raises(UnsupportedModelError, match="own compute_loss"):
        fit(own, ec.Distillation(build(5, 1)))
    with pytest.raises(ArgumentError, match="one Distillation"):
        fit(student, ec.Distillation(build(5, 1)), ec.Distillation(build(5, 1)))
    student.compile("sgd", "mse")
    with pytest.raises(ArgumentError, match='Use loss="logits"'):
        fit(student, ec.Distillation(build(5, 1)))


def test_layers_that_cannot_be_compared_are_refused() -> None:
    student, teacher = build(3, 2), build(5, 1)
    for layers, loss, error, text in (
        ({"convv": "conv"}, "hints", UnknownNameError, "convv.*conv"),
        ({"conv": "con"}, "hints", UnknownNameError, "con"),
        ({"conv": "classes"}, "hints", ArgumentError, r"sizes.*conv \(4, 4, 3\) and classes"),
        ({"classes": "classes"}, "attention-transfer", ArgumentError, "places"),
    ):
        with pytest.raises(error, match=text):
            fit(student, ec.Distillation(teacher, layers=layers, layer_loss=loss))
    outer = compiled(keras.Sequential([keras.Input((6, 6, 2)), build(3, 2)]))
    with pytest.raises(ArgumentError, match="the student itself, not of a model nested in it"):
        fit(outer, ec.Distillation(teacher, layers={"conv": "conv"}))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"teacher": "net.keras"}, "`teacher` must be a Keras 3 model"),
        ({"teacher": []}, "`teacher`"),
        ({"loss": "soft"}, "soft"),
        ({"layer_loss": "soft"}, "soft"),
        ({"layers": ["conv"]}, "`layers` must be a dictionary"),
        ({"teacher": [build(3, 1), build(3, 2)], "layers": {"conv": "conv"}}, "several teachers"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        ec.Distillation(**{"teacher": build(3, 1)} | arguments)


def test_a_teacher_that_computes_nan_is_named() -> None:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6, 6, 2))
    values = keras.ops.log(keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    teacher = keras.Model(inputs, values, name="logs")
    with pytest.raises(NotFiniteError, match="teacher .logs. computes is NaN.*epoch 1"):
        fit(build(3, 2), ec.Distillation(teacher))
