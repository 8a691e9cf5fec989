"""The stage train, on the tiny dataset."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import numpy_helper

from stages import fetch, normalize, train
from stages.lib.files import read_array, read_json, write_arrays, write_json
from stages.lib.models import networks, training
from stages.lib.models.networks import import_keras
from stages.lib.models.runtime import read_model
from stages.lib.params import Params, TrainParams, read_params
from stages.lib.results import metrics
from stages.lib.stage import StageError
from tests.helpers import ROOT, Edit, described

keras = import_keras()
import tensorflow  # noqa: E402  # after Keras, which keeps it quiet

Network = Any  # keras.Model, which has no types


@pytest.fixture
def normalized(project: Path) -> Path:
    """The working directory, with all that the stage reads."""
    fetch.main()
    normalize.main()
    return project


def split(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels."""
    return np.load(f"data/normalized/{name}_images.npy"), np.load(
        f"data/normalized/{name}_labels.npy"
    )


def classified(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels of a split, and the model file's probabilities."""
    scaling = read_json(Path("data/normalized/scaling.json"))
    images, labels = split(name)
    published = np.rint(images * scaling["divisor"] + scaling["offset"]).astype(np.uint8)
    return labels, read_model(train.MODEL)(published)


def measured(name: str) -> tuple[float, float]:
    """Loss and accuracy of the model file on a split, without the stage's own code."""
    labels, probabilities = classified(name)
    right = probabilities.argmax(axis=1) == labels
    return metrics.cross_entropy(labels, probabilities), float(right.mean())


def build(params: Params) -> Network:
    """Build the network of params.yaml for the tiny dataset."""
    keras.utils.set_random_seed(params.train.seed)
    return getattr(networks, params.model.kind)(params.model, *described())


def outs() -> tuple[bytes, bytes]:
    return Path("data/model.onnx").read_bytes(), Path("data/history.csv").read_bytes()


def test_seed_determines_model_and_history_files(
    normalized: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    edit("model.mlp.dropout", 0.2)
    keras.utils.clear_session()
    train.main()
    first = outs()
    printed = capsys.readouterr().out
    keras.utils.clear_session()  # number layers from 1 again, as in a new process
    train.main()
    assert outs() == first
    keras.utils.clear_session()
    edit("train.seed", 1)
    train.main()
    assert outs()[0] != first[0]
    assert outs()[1] != first[1]

    assert "Total params: 275" in printed
    assert (
        len(
            re.findall(
                r"^epoch [12]/2  loss [\d.]+  accuracy [\d.]+  val_loss [\d.]+  val_acc",
                printed,
                re.M,
            )
        )
        == 2
    )
    assert re.search(r"^fit \d+\.\d s, model file 0.0 MB$", printed, re.M)
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "history.csv",
        "model.onnx",
        "normalized",
        "raw",
    ]


def test_history_has_validation_scores_of_each_epoch(normalized: Path, edit: Edit) -> None:
    edit("train.epochs", 3)
    train.main()
    history = pd.read_csv("data/history.csv")
    assert {*history} == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}
    assert [*history["epoch"]] == [1, 2, 3]
    assert (*history[["val_loss", "val_accuracy"]].iloc[-1],) == pytest.approx(
        measured("validation"), abs=2e-6
    )


def test_model_file_describes_the_network(normalized: Path) -> None:
    train.main()
    model = read_model(train.MODEL)
    assert (model.dataset, model.title, model.kind) == ("tiny", "Tiny", "mlp")
    assert (model.classes, model.image) == (("bar", "blot", "frame"), (6, 5))
    assert model.background == read_json(train.RAW / "dataset.json")["background"]
    assert model.parameters == 30 * 8 + 8 + 8 * 3 + 3
    assert model.multiply_adds == 30 * 8 + 8 * 3


def test_test_split_is_unused_if_images_are_held_out(normalized: Path) -> None:
    for path in Path("data/normalized").glob("test_*"):
        path.unlink()
    train.main()
    assert Path("data/model.onnx").exists()


def test_scores_of_an_epoch_weight_images_equally(normalized: Path, edit: Edit) -> None:
    """The last batch is smaller."""
    edit("train.batch_size", 7)  # 72 images: ten batches and a smaller one
    edit("train.epochs", 1)
    edit(
        "train.learning_rate", 1e-12
    )  # too small to move a weight: the epoch's mean is that of the saved weights
    train.main()
    history = pd.read_csv("data/history.csv")
    assert (*history[["loss", "accuracy"]].iloc[0],) == pytest.approx(measured("train"), abs=2e-6)


def test_tiny_dataset_is_learned_without_validation(project: Path, edit: Edit) -> None:
    edit("normalize.validation", 0)
    edit("train.epochs", 10)
    edit("train.learning_rate", 0.03)
    fetch.main()
    normalize.main()
    train.main()
    history = pd.read_csv("data/history.csv")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 2
    assert measured("test")[1] > 0.9
    # The tutorial's protocol: the curves are those of the test split.
    assert (*history[["val_loss", "val_accuracy"]].iloc[-1],) == pytest.approx(
        measured("test"), abs=2e-6
    )


def test_loss_of_the_linear_model_includes_its_penalty(normalized: Path, edit: Edit) -> None:
    edit("model.kind", "linear")
    edit("model.linear.l2", 0.5)
    edit("train.batch_size", 1_000)  # more than there are images
    edit("train.learning_rate", 1e-12)
    edit("train.epochs", 1)
    train.main()
    kernel = onnx.load("data/model.onnx").graph.initializer[3]
    penalty = 0.5 * float((numpy_helper.to_array(kernel) ** 2).sum())
    assert pd.read_csv("data/history.csv")["loss"][0] == pytest.approx(
        measured("train")[0] + penalty, abs=1e-4
    )


def test_validation_loss_includes_label_smoothing(normalized: Path, edit: Edit) -> None:
    """A fraction of each label's probability is spread evenly over all classes."""
    edit("train.label_smoothing", 0.3)
    edit("train.learning_rate", 1e-12)
    edit("train.epochs", 1)
    train.main()
    labels, probabilities = classified("validation")
    log_probabilities = np.log(probabilities)
    of_labels = log_probabilities[np.arange(len(labels)), labels]
    expected = -(0.7 * of_labels + 0.3 * log_probabilities.mean(axis=1)).mean()
    history = pd.read_csv("data/history.csv")
    assert history["val_loss"][0] == pytest.approx(expected, abs=2e-6)
    assert history["val_accuracy"][0] == pytest.approx(measured("validation")[1], abs=2e-6)


def test_only_nonzero_label_smoothing_changes_the_model(normalized: Path, edit: Edit) -> None:
    models = []
    for label_smoothing in (0.0, 0, 0.1):
        edit("train.label_smoothing", label_smoothing)
        models.append(trained())
    assert models[0] == models[1] != models[2]


def test_nonfinite_loss_keeps_the_previous_history(normalized: Path) -> None:
    Path("data/history.csv").write_text("of the run before")
    images = split("train")[0]
    images[3, 2, 1] = np.nan
    scaling = read_json(Path("data/normalized/scaling.json"))
    scaling["arrays"] |= write_arrays(Path("data/normalized"), {"train_images": images})
    write_json(Path("data/normalized/scaling.json"), scaling)
    with pytest.raises(
        StageError, match=r"^the loss is no longer finite; lower train.learning_rate$"
    ):
        train.main()
    assert Path("data/history.csv").read_text() == "of the run before"
    assert sorted(path.name for path in Path("data").iterdir()) == [
        "history.csv",
        "normalized",
        "raw",
    ]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_nonfinite_loss_stops_within_the_epoch(normalized: Path, edit: Edit, kind: str) -> None:
    """Training stops after at most 64 of 72 batches."""
    edit("model.kind", kind)
    edit("train.batch_size", 1)
    params, calls = read_params(), []
    model = build(params)
    images = tensorflow.fill(split("train")[0].shape, np.float32("nan"))
    fed = images, tensorflow.constant(split("train")[1])
    counter = keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: calls.append(1))
    with pytest.MonkeyPatch.context() as patch:
        written = training.callbacks
        patch.setattr(training, "callbacks", lambda *args: [counter, *written(*args)])
        with pytest.raises(StageError, match=r"^the loss is no longer finite; lower"):
            training.fit(model, params.train, fed, fed, Path("history.csv"))
    assert len(calls) == 1


def test_nonfinite_validation_loss_stops_training(normalized: Path, edit: Edit) -> None:
    edit("train.epochs", 5)
    params = read_params()
    fed = tensorflow.constant(split("train")[0]), tensorflow.constant(split("train")[1])
    # Logits overflow, because on some CPUs TensorFlow's ReLU turns NaN into zero.
    broken = tensorflow.fill(fed[0].shape, np.float32(1e38)), fed[1]
    with pytest.raises(StageError, match=r"^val_loss is (inf|nan) after epoch 1; lower"):
        training.fit(build(params), params.train, fed, broken, Path("history.csv"))


def test_history_is_written_after_each_epoch(normalized: Path) -> None:
    params, sizes = read_params(), []
    fed = tensorflow.constant(split("train")[0]), tensorflow.constant(split("train")[1])
    model = build(params)
    fit = model.fit

    def watched(*args: Any, callbacks: list[Any], **options: Any) -> None:  # noqa: ANN401
        path = Path("history.csv")
        watcher = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda *_: sizes.append(len(path.read_text().splitlines()))
        )
        fit(*args, callbacks=[*callbacks, watcher], **options)

    model.fit = watched
    training.fit(model, params.train, fed, fed, Path("history.csv"))
    assert sizes == [2, 3]


def epoch_orders(seed: int, *, shuffled: bool) -> list[list[int]]:
    """Return the order of ten images over two epochs, in batches of four."""
    keras.utils.set_random_seed(seed)
    numbers = np.arange(10, dtype=np.uint8)
    images = tensorflow.constant(numbers.reshape(10, 1, 1), "float32")
    fed = training.batches(
        images, tensorflow.constant(numbers), 4, shuffled=shuffled
    ).as_numpy_iterator
    epochs = [[*fed()] for _ in range(2)]
    assert all([len(labels) for _, labels in epoch] == [4, 4, 2] for epoch in epochs)
    assert all((images.ravel() == labels).all() for epoch in epochs for images, labels in epoch)
    return [np.concatenate([labels for _, labels in epoch]).tolist() for epoch in epochs]


def test_each_epoch_is_reshuffled() -> None:
    """Every image occurs once per epoch, and the seed determines the order."""
    first, second = epoch_orders(0, shuffled=True)
    assert sorted(first) == sorted(second) == [*range(10)]
    assert first != second
    assert epoch_orders(0, shuffled=True) == [first, second]
    assert epoch_orders(1, shuffled=True) != [first, second]
    assert epoch_orders(0, shuffled=False) == [[*range(10)]] * 2


def test_autotuning_and_graph_rewrites_are_disabled() -> None:
    """They would wait for a thread and rewrite a graph that contains the images."""
    fed = training.batches(
        tensorflow.zeros((2, 1, 1)), tensorflow.zeros(2, "uint8"), 1, shuffled=True
    )
    assert fed.options().autotune.enabled is False
    assert fed.options().experimental_optimization.apply_default_optimizations is False


def test_fit_uses_the_parameters_given(normalized: Path) -> None:
    params = read_params()
    model = build(params)
    fast = params.train.model_copy(update={"learning_rate": 0.5})
    training.fit(model, fast, split("train"), split("test"), Path("history.csv"))
    assert float(model.optimizer.learning_rate) == 0.5
    assert int(model.optimizer.iterations) == 2 * 8  # epochs, and batches of 10 in 72 images


@pytest.mark.parametrize("size", [10, 12])  # a call per batch, and a loop over six
def test_training_step_is_traced_once(normalized: Path, edit: Edit, size: int) -> None:
    edit("train.batch_size", size)
    params = read_params()
    model = build(params)
    traces: list[None] = []
    step = model.train_step

    def counted(data: object) -> object:
        traces.append(None)
        return step(data)

    model.train_step = counted
    training.fit(model, params.train, split("train"), split("test"), Path("history.csv"))
    assert len(traces) == 1


def test_loop_over_batches_equals_single_steps(normalized: Path, edit: Edit) -> None:
    """The weights are bit-identical."""
    edit("train.batch_size", 12)  # 72 images: six batches, in one loop
    params = read_params()
    weights = []
    for looped in (True, False):
        keras.utils.clear_session()
        keras.utils.set_random_seed(0)
        model = build(params)
        train_split, other = (
            (
                training.tensor(Path(f"data/normalized/{name}_images.npy")),
                training.tensor(Path(f"data/normalized/{name}_labels.npy")),
            )
            for name in ("train", "test")
        )
        if looped:
            training.fit(model, params.train, train_split, other, Path("history.csv"))
        else:
            model.compile(
                keras.optimizers.Adam(params.train.learning_rate),
                "sparse_categorical_crossentropy",
                jit_compile=True,
            )
            model.fit(
                training.batches(*train_split, 12, shuffled=True),
                shuffle=False,
                epochs=2,
                verbose=0,
            )
        assert int(model.optimizer.iterations) == 2 * 6
        weights.append(model.get_weights())
    for one, other_one in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other_one)


@pytest.mark.slow
def test_user_keras_settings_do_not_change_the_model(
    normalized: Path, edit: Edit, tmp_path: Path
) -> None:
    """The CNN depends on the layout of images, and every kind on precision and backend."""
    edit("model.kind", "cnn")
    edit("train.epochs", 1)
    settings = {"backend": "torch", "floatx": "float64", "image_data_format": "channels_first"}
    (tmp_path / "home/.keras").mkdir(parents=True)
    (tmp_path / "home/.keras/keras.json").write_text(json.dumps(settings))
    hostile = {"HOME": str(tmp_path / "home"), "KERAS_HOME": str(tmp_path / "home/.keras")}
    hostile |= {"KERAS_BACKEND": "torch", "KERAS_NNX_ENABLED": "true", "KERAS_MAX_EPOCHS": "1"}
    found = []
    for variables in ({}, hostile):
        env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        subprocess.run([sys.executable, "-m", "stages.train"], env=env, check=True)
        found.append(train.MODEL.read_bytes())
        train.MODEL.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["linear", "cnn"])
def test_seed_determines_models_of_other_kinds(normalized: Path, edit: Edit, kind: str) -> None:
    edit("model.kind", kind)
    edit("model.cnn.filters", [4])
    edit("model.cnn.dropout", 0.25)
    results = []
    for seed in (0, 0, 1):
        edit("train.seed", seed)
        keras.utils.clear_session()
        train.main()
        results.append(outs())
    assert results[0] == results[1]
    assert results[0][0] != results[2][0]


def test_cnn_is_exported_with_its_running_means(normalized: Path, edit: Edit) -> None:
    edit("model.kind", "cnn")
    edit("model.cnn.filters", [4])
    edit("train.epochs", 20)
    edit("train.learning_rate", 0.03)
    train.main()
    history = pd.read_csv("data/history.csv")
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] / 2
    assert (*history[["val_loss", "val_accuracy"]].iloc[-1],) == pytest.approx(
        measured("validation"), abs=1e-5
    )


def with_schedule(schedule: Literal["constant", "one_cycle"]) -> TrainParams:
    return TrainParams(
        seed=0,
        epochs=1,
        batch_size=1,
        learning_rate=0.006,
        schedule=schedule,
        label_smoothing=0,
    )


def rates(steps: int) -> np.ndarray:
    """The learning rate before each step of a cycle, and after the last."""
    schedule: Any = training.learning_rate(with_schedule("one_cycle"), steps)
    return np.array([float(schedule(step)) for step in range(steps + 1)])


def trained() -> bytes:
    """Train as in a new process (Keras numbers layers) and return the model file."""
    keras.utils.clear_session()
    train.main()
    return outs()[0]


def test_constant_learning_rate_is_a_number() -> None:
    assert training.learning_rate(with_schedule("constant"), 100) == 0.006


def test_one_cycle_rises_for_30_percent_of_the_steps() -> None:
    """It then falls to zero."""
    cycle = rates(100)
    assert cycle[0] == 0
    assert cycle.argmax() == 30
    assert cycle[30] == pytest.approx(0.006)
    np.testing.assert_allclose(np.diff(cycle[:31]), 0.006 / 30, rtol=1e-4)
    assert (np.diff(cycle[30:]) < 0).all()
    assert cycle[65] == pytest.approx(0.003)
    assert cycle[100] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2])
def test_one_cycle_is_finite_for_one_or_two_steps(steps: int) -> None:
    assert np.isfinite(rates(steps)).all()


def test_one_cycle_is_reproducible(project: Path, edit: Callable[[str, object], None]) -> None:
    """The model differs from that of a constant learning rate."""
    fetch.main()
    normalize.main()
    weights = []
    for schedule in ("one_cycle", "one_cycle", "constant"):
        edit("train.schedule", schedule)
        weights.append(trained())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


@pytest.mark.parametrize(("least", "shown"), [(17, True), (16, False)])
def test_few_optimizer_steps_are_reported(
    normalized: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    least: int,
    shown: bool,
) -> None:
    monkeypatch.setattr(training, "FEW_STEPS", least)
    trained()
    message = "only 16 optimizer steps: lower train.batch_size or raise train.epochs\n"
    assert (message in capsys.readouterr().out) == shown


def test_unknown_schedule_is_rejected(project: Path, edit: Edit) -> None:
    edit("train.schedule", "cosine")
    with pytest.raises(
        StageError, match=r"train.schedule: expected 'constant' or 'one_cycle', found 'cosine'"
    ):
        read_params()


def test_mapped_files_and_loaded_arrays_train_equally(
    normalized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = trained()
    monkeypatch.setattr(training, "tensor", np.load)
    assert trained() == mapped


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_tensor_shares_memory_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    np.testing.assert_array_equal(training.tensor(path).numpy(), read_array(path))
    tensor = training.tensor(path)
    address = np.asarray(memoryview(tensor)).ctypes.data
    mapped = [
        line.split()[0]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(path) in line
    ]
    assert any(
        int(start, 16) <= address < int(end, 16)
        for start, end in (line.split("-") for line in mapped)
    )


def test_empty_split_is_an_empty_tensor(tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, np.empty((0, 6, 5), np.float32))
    assert training.tensor(path).shape == (0, 6, 5)


@pytest.mark.parametrize(
    "name", ["train_images", "train_labels", "validation_images", "validation_labels"]
)
def test_modified_arrays_are_rejected(normalized: Path, name: str) -> None:
    path = Path(f"data/normalized/{name}.npy")
    np.save(path, 1 - np.load(path))
    with pytest.raises(
        StageError, match=rf"^{path}: expected .* as in data/normalized/scaling.json"
    ):
        train.main()
    assert not Path("data/model.onnx").exists()
