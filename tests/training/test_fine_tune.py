"""Fine-tuning from pixels."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.models.assemble import assemble, logits_model
from headstart.params.train import FineTuneParams
from headstart.training.augment import change, draw_views
from headstart.training.checkpoint import as_arrays, read_checkpoint
from headstart.training.fine_tune import Examples, FineTuned, fine_tune
from headstart.training.unfreeze import blocks, unfreeze
from tests.conftest import REPOSITORY
from tests.models.conftest import SIZE, make_encoder, make_head

PLAIN = FineTuneParams(
    blocks=1,
    epochs=3,
    batch_size=16,
    learning_rate=1e-2,
    flip=False,
    rotation_degrees=0.0,
    zoom=0.0,
    shift=0.0,
    contrast=0.0,
)
AUGMENTED = FineTuneParams(blocks=1, epochs=4, batch_size=16, learning_rate=1e-2)


def _images(n: int = 100) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy pictures that are brighter on their left or on their right."""
    generator = np.random.default_rng(0)
    label_ids = generator.integers(0, 2, n)
    pixels = generator.integers(0, 160, (n, SIZE, SIZE, 3))
    pixels[label_ids == 0, :, : SIZE // 2] += 90
    pixels[label_ids == 1, :, SIZE // 2 :] += 90
    return pixels.astype(np.uint8), label_ids.astype(np.int64)


def _examples(first: int, last: int) -> Examples:
    pixels, label_ids = _images()
    rows = np.arange(first, last)
    return Examples(pixels, rows, label_ids[rows], np.ones(len(rows), np.float32))


def _model() -> Any:
    return assemble(make_encoder(), [make_head(n_classes=2, normalisation="none")], 1.0)


def _tune(model: Any, folder: Path, params: FineTuneParams = AUGMENTED) -> FineTuned:
    return fine_tune(
        model, _examples(0, 70), _examples(70, 100), params, seed=0, checkpoints=folder
    )


def test_the_loss_falls_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    model = _model()
    seen: list[int] = []
    tuned = fine_tune(
        model,
        _examples(0, 70),
        _examples(70, 100),
        PLAIN,
        seed=0,
        checkpoints=tmp_path,
        on_epoch=lambda epoch, _: seen.append(epoch),
    )
    losses = [epoch["log_loss"] for epoch in tuned.curve]
    assert seen == list(range(1, len(losses) + 1))
    assert tuned.curve[-1]["loss"] < tuned.curve[0]["loss"]
    assert tuned.best_epoch == int(np.argmin(losses)) + 1
    again = np.asarray(logits_model(model)(_images()[0][70:]))
    assert np.abs(again - tuned.logits).max() < 1e-5


def test_only_layers_from_the_first_on_change_and_no_batch_normalisation(tmp_path: Path) -> None:
    model = _model()
    before = {layer.name: as_arrays(layer.weights) for layer in model.layers}
    _tune(model, tmp_path)
    changed = {
        layer.name
        for layer in model.layers
        if any(
            not np.array_equal(old, new)
            for old, new in zip(before[layer.name], as_arrays(layer.weights), strict=True)
        )
    }
    assert changed == {"block2_conv", "classifier_dense_1", "logits"}


def test_a_model_that_does_not_get_better_stays_as_it_was(tmp_path: Path) -> None:
    model = _model()
    before = as_arrays(model.weights)
    hopeless = PLAIN.model_copy(update={"learning_rate": 1.0, "patience": 2})
    its_answers = np.asarray(model(_images()[0][70:])).argmax(axis=1)
    agreeing = replace(_examples(70, 100), label_ids=its_answers.astype(np.int64))
    tuned = fine_tune(model, _examples(0, 70), agreeing, hopeless, seed=0, checkpoints=tmp_path)
    assert tuned.best_epoch == 0
    assert len(tuned.curve) == 2
    for old, new in zip(before, as_arrays(model.weights), strict=True):
        assert np.array_equal(old, new)


def test_the_step_is_that_of_keras_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch without augmentation equals `model.fit` on the same batches."""
    import keras

    params = PLAIN.model_copy(update={"epochs": 1, "batch_size": 35})
    monkeypatch.setattr("headstart.training.fine_tune.WARMUP_FRACTION", 0.0)
    ours = _model()
    _tune(ours, tmp_path, params)
    theirs = _model()
    unfreeze(theirs, params)
    reference = logits_model(theirs)
    rate = keras.optimizers.schedules.CosineDecay(params.learning_rate, 2)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=params.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    reference.compile(optimizer=optimizer, loss=loss)
    order = np.random.default_rng([0, 1]).permutation(70)
    pixels, label_ids = _images()
    reference.fit(pixels[order], label_ids[order], batch_size=35, shuffle=False, verbose=0)
    for mine, other in zip(as_arrays(ours.weights), as_arrays(theirs.weights), strict=True):
        assert mine == pytest.approx(other, abs=2e-5)


def test_same_seed_same_weights_other_seed_others(tmp_path: Path) -> None:
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        model = _model()
        fine_tune(
            model,
            _examples(0, 70),
            _examples(70, 100),
            AUGMENTED,
            seed=seed,
            checkpoints=tmp_path / str(number),
        )
        weights.append(np.concatenate([array.ravel() for array in as_arrays(model.weights)]))
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    undisturbed, interrupted = _model(), _model()
    _tune(undisturbed, tmp_path / "a")

    heard: list[tuple[int, Mapping[str, float]]] = []
    for attempt in (1, 2):
        heard.clear()

        def stop(epoch: int, metrics: Mapping[str, float], attempt: int = attempt) -> None:
            heard.append((epoch, metrics))
            if epoch == attempt:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fine_tune(
                _model(),
                _examples(0, 70),
                _examples(70, 100),
                AUGMENTED,
                seed=0,
                checkpoints=tmp_path / "b",
                on_epoch=stop,
            )
    checkpoint = read_checkpoint(tmp_path / "b")
    assert checkpoint is not None
    assert heard == list(enumerate(checkpoint.state["curve"], start=1))
    assert len(heard) == 2
    _tune(interrupted, tmp_path / "b")
    for one, other in zip(
        as_arrays(undisturbed.weights), as_arrays(interrupted.weights), strict=True
    ):
        assert np.array_equal(one, other)


def test_a_damaged_checkpoint_begins_anew(tmp_path: Path) -> None:
    first = _tune(_model(), tmp_path)
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:1000])
    assert _tune(_model(), tmp_path).curve == first.curve


@pytest.mark.parametrize(
    "precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_mixed_precision_trains_the_exact_weights(tmp_path: Path, precision: str) -> None:
    model = _model()
    tuned = _tune(model, tmp_path, PLAIN.model_copy(update={"precision": precision}))
    assert tuned.curve[-1]["loss"] < tuned.curve[0]["loss"]
    assert {str(weight.dtype) for weight in model.weights} == {"float32"}
    exact = np.asarray(logits_model(model)(_images()[0][70:]))
    assert np.abs(exact - tuned.logits).max() < 1e-5


_TWO_DEVICES = """
import sys
sys.path.insert(0, sys.argv[1])
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from pathlib import Path
import numpy as np
from headstart.training.checkpoint import as_arrays
from tests.training.test_fine_tune import PLAIN, _model, _tune
weights = []
for devices in ("one", "all"):
    model = _model()
    tuned = _tune(model, Path(devices), PLAIN.model_copy(update={"devices": devices}))
    weights.append(np.concatenate([array.ravel() for array in as_arrays(model.weights)]))
    losses = [epoch["loss"] for epoch in tuned.curve]
    print(losses)
assert np.abs(weights[0] - weights[1]).max() < 1e-4, np.abs(weights[0] - weights[1]).max()
print("equal")
"""


def test_two_devices_train_as_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TWO_DEVICES, str(REPOSITORY)]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
    one, two = (json.loads(line) for line in answer.stdout.splitlines()[:2])
    assert two == pytest.approx(one, abs=1e-4)


def test_views_move_pictures_as_they_say() -> None:
    pixels = np.zeros((2, 9, 9, 3), np.uint8)
    pixels[:, 1, 2] = 200
    still = draw_views(PLAIN, 2, 9, np.random.default_rng(0))
    same = np.asarray(change(pixels, still.transforms, still.contrast))
    assert np.array_equal(same, pixels)
    flipped = replace(still, transforms=still.transforms.copy())
    mirror = draw_views(PLAIN.model_copy(update={"flip": True}), 64, 9, np.random.default_rng(0))
    flips = mirror.transforms[mirror.transforms[:, 0] < 0][:1]
    assert 10 < (mirror.transforms[:, 0] < 0).sum() < 54
    flipped.transforms[1] = flips[0]
    shown = np.asarray(change(pixels, flipped.transforms, still.contrast))
    assert shown[0, 1, 2, 0] == 200
    assert shown[1, 1, 6, 0] == 200
    assert shown[1, 1, 2, 0] == 0


def test_views_stay_in_their_ranges() -> None:
    wide = FineTuneParams(rotation_degrees=20.0, zoom=0.3, shift=0.2, contrast=0.4)
    views = draw_views(wide, 500, 32, np.random.default_rng(0))
    a, b = views.transforms[:, 0], views.transforms[:, 1]
    scale = np.hypot(a, b)
    assert 1 / 1.3 - 1e-6 <= scale.min() < scale.max() <= 1 / 0.7 + 1e-6
    angle = np.rad2deg(np.arcsin(np.abs(b) / scale))
    assert 15 < angle.max() <= 20.001
    assert 0.6 <= views.contrast.min() < views.contrast.max() <= 1.4
    noisy = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    changed = np.asarray(change(noisy, views.transforms[:8], views.contrast[:8]))
    assert changed.dtype == np.uint8
    assert changed.std() > 5


def test_blocks_are_told_by_name() -> None:
    names = ["image", "block1_conv1", "block1_pool", "block_2_expand", "block7a_dwconv"]
    assert blocks(names) == ["block1", "block_2", "block7a"]
    assert blocks(["conv4_block6_out", "conv5_block1_1_conv"]) == ["conv4_block6", "conv5_block1"]
    assert blocks(["conv2d_1", "mixed10", "activation"]) == []


def test_a_named_layer_and_wrong_names() -> None:
    model = _model()
    assert unfreeze(model, FineTuneParams(from_layer="block1_bn")) == "block1_bn"
    assert "block1_conv" not in {weight.path.split("/")[0] for weight in model.trainable_weights}
    with pytest.raises(TrainingError, match=r"has none named block2_con: nearest are block2_conv"):
        unfreeze(model, FineTuneParams(from_layer="block2_con"))
    with pytest.raises(TrainingError, match=r"has none named logits"):
        unfreeze(model, FineTuneParams(from_layer="logits"))


def test_a_encoder_without_named_blocks_asks_for_a_layer() -> None:
    import keras

    image = keras.Input((SIZE, SIZE, 3), dtype="uint8", name="image")
    values = keras.layers.Rescaling(1.0, name="preprocess_cast")(image)
    values = keras.layers.Conv2D(12, 3, name="mixed")(values)
    pooled = keras.layers.GlobalAveragePooling2D(name="features")(values)
    model = assemble(keras.Model(image, pooled), [make_head()], 1.0)
    with pytest.raises(TrainingError, match=r"set train\.fine_tune\.from_layer to a layer"):
        unfreeze(model, FineTuneParams())
    assert unfreeze(model, FineTuneParams(from_layer="mixed")) == "mixed"


def test_a_loss_that_is_no_number_says_what_to_do(tmp_path: Path) -> None:
    params = PLAIN.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.0})
    examples = _examples(0, 70)
    broken = replace(examples, weights=np.full(70, np.nan, np.float32))
    with pytest.raises(TrainingError, match=r"lower train\.fine_tune\.learning_rate"):
        fine_tune(_model(), broken, _examples(70, 100), params, seed=0, checkpoints=tmp_path)
