"""Trying fine-tuning, and keeping it only if it helps."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from headstart.common.errors import TrainingError
from headstart.common.paths import Project
from headstart.dataset.pixel_store import ImageStore
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import read_head
from headstart.models.assemble import assemble
from headstart.models.model_file import load_encoder
from headstart.params.pack import PackParams
from headstart.params.train import FineTuneParams, TrainParams
from headstart.training.checkpoint import read_checkpoint
from headstart.training.final_fit import TrainedHead, train_model
from headstart.training.fine_tune import Examples, FineTuned, Trainer
from headstart.training.tune import (
    Tuned,
    checkpoint_folder,
    grouped_error,
    judge,
    tune_model,
)
from tests.models.conftest import IMAGE, pack_pixels

HELPFUL = FineTuneParams(blocks=2, epochs=6, batch_size=32, learning_rate=1e-2)
HOPELESS = FineTuneParams(blocks=1, epochs=1, batch_size=32, learning_rate=1e-9)


@pytest.fixture(scope="module")
def store(workspace: Project) -> Iterator[FeatureStore]:
    """The features of the small workspace."""
    with FeatureStore(workspace.features) as opened:
        yield opened


@pytest.fixture(scope="module")
def trained(workspace: Project, store: FeatureStore) -> TrainedHead:
    """The frozen head."""
    return train_model(store, read_head(workspace.best_head), TrainParams(splits="train"), seed=0)


@pytest.fixture(scope="module")
def images(workspace: Project) -> ImageStore:
    """images.h5 of the training and validation split."""
    pack_pixels(workspace)
    return ImageStore(workspace.images)


def _tune(
    workspace: Project,
    store: FeatureStore,
    trained: TrainedHead,
    images: ImageStore,
    params: FineTuneParams,
    folder: Path,
) -> Tuned:
    model = assemble(load_encoder(workspace.encoder), trained.heads, trained.temperature)
    return tune_model(model, trained, store, images, params, seed=0, checkpoints=folder)


def test_what_helps_is_kept(
    workspace: Project,
    store: FeatureStore,
    trained: TrainedHead,
    images: ImageStore,
    tmp_path: Path,
) -> None:
    tuned = _tune(workspace, store, trained, images, HELPFUL, tmp_path)
    assert tuned.outcome.kept
    assert tuned.trained.scores["log_loss"] < trained.scores["log_loss"]
    assert tuned.outcome.difference > tuned.outcome.standard_error > 0
    assert tuned.outcome.sentence.endswith("it is kept.")
    rows = [images.sha256.index(sha256) for sha256 in store.split("validation").sha256]
    direct = np.asarray(tuned.model(images[rows]))
    assert np.abs(direct - tuned.trained.validation.probabilities).max() < 1e-5
    assert read_checkpoint(tmp_path) is not None


def test_the_same_run_again_trains_no_epoch_and_a_damaged_result_is_trained_anew(
    workspace: Project,
    store: FeatureStore,
    trained: TrainedHead,
    images: ImageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    epochs: list[int] = []
    run_epoch = Trainer.run_epoch

    def counted(self: Trainer, train: Examples, epoch: int) -> float:
        epochs.append(epoch)
        return run_epoch(self, train, epoch)

    monkeypatch.setattr(Trainer, "run_epoch", counted)
    first = _tune(workspace, store, trained, images, HELPFUL, tmp_path)
    n_epochs = len(epochs)
    assert n_epochs == len(first.curve) > 0
    again = _tune(workspace, store, trained, images, HELPFUL, tmp_path)
    assert len(epochs) == n_epochs
    assert (again.outcome, again.curve) == (first.outcome, first.curve)
    for one, other in zip(first.model.get_weights(), again.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    path = tmp_path / "last.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    anew = _tune(workspace, store, trained, images, HELPFUL, tmp_path)
    assert len(epochs) == 2 * n_epochs
    for one, other in zip(first.model.get_weights(), anew.model.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_what_does_not_help_leaves_the_frozen_model(
    workspace: Project,
    store: FeatureStore,
    trained: TrainedHead,
    images: ImageStore,
    tmp_path: Path,
) -> None:
    tuned = _tune(workspace, store, trained, images, HOPELESS, tmp_path)
    assert not tuned.outcome.kept
    assert tuned.trained is trained
    assert "too little to tell from chance" in tuned.outcome.sentence
    frozen = assemble(load_encoder(workspace.encoder), trained.heads, trained.temperature)
    for one, other in zip(tuned.model.get_weights(), frozen.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_what_harms_is_called_worse(store: FeatureStore, trained: TrainedHead) -> None:
    validation = store.split("validation")
    frozen = trained.validation.probabilities
    outcome = FineTuned(None, np.zeros((1, 1), np.float32), (), 0, "")
    judged = judge(validation, frozen, np.roll(frozen, 1, axis=1), outcome)
    assert not judged.kept
    assert judged.sentence.endswith("it is worse, so the frozen model stays.")


def test_the_error_counts_groups_and_not_images() -> None:
    values = np.random.default_rng(0).normal(size=40)
    names = [str(row) for row in range(40)]
    alone = grouped_error(values, names)
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(40))
    # each image four times over says no more than once
    assert grouped_error(np.repeat(values, 4), np.repeat(names, 4).tolist()) == pytest.approx(alone)
    assert grouped_error(values, ["one"] * 40) == 0.0


def test_images_that_are_not_packed_are_an_error_with_the_remedy(
    workspace: Project, store: FeatureStore, trained: TrainedHead, tmp_path: Path
) -> None:
    pack_pixels(workspace, tmp_path / "images.h5", params=PackParams(splits=("train",)))
    with pytest.raises(TrainingError, match=r"60 of 180 are missing: set pack\.splits to \[train"):
        _tune(
            workspace, store, trained, ImageStore(tmp_path / "images.h5"), HELPFUL, tmp_path / "ck"
        )
    pack_pixels(workspace, tmp_path / "images.h5", IMAGE.model_copy(update={"size": 32}))
    with pytest.raises(
        TrainingError, match=r"images of 16 px, but .* has 32: run `dvc repro pack`"
    ):
        _tune(
            workspace, store, trained, ImageStore(tmp_path / "images.h5"), HELPFUL, tmp_path / "ck"
        )


def test_the_checkpoint_folder_names_all_that_decides(
    workspace: Project, store: FeatureStore, trained: TrainedHead, tmp_path: Path
) -> None:
    def folder(params: FineTuneParams = HELPFUL, seed: int = 0) -> Path:
        return checkpoint_folder(tmp_path, trained, store, workspace.encoder, params, seed)

    assert folder() == folder()
    assert folder(HOPELESS) != folder()
    assert folder(seed=1) != folder()


def test_fine_tuning_needs_validation_images() -> None:
    with pytest.raises(ValidationError, match=r"set splits: train or fine_tune\.enabled: false"):
        TrainParams(splits="train+validation", fine_tune=FineTuneParams(enabled=True))
