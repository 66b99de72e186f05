"""Stage train: the best head and the frozen backbone become models/model.h5.

Reads features.h5, best_head.json, backbone.h5 and, to fine-tune, images.h5; writes model.h5, the
predictions of the validation images, reports/train/ with the metrics of each epoch, and
models/run.json, the MLflow run that all of it belongs to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.common import files
from headstart.common.paths import Project, state_folder
from headstart.common.progress import begin_step
from headstart.dataset.pixel_store import ImageStore
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import BestHead, read_head
from headstart.models.assemble import assemble
from headstart.models.model_file import load_backbone, save_model
from headstart.models.predictions import write_predictions
from headstart.params.base import Section, Seed
from headstart.params.image import ImageParams
from headstart.params.train import TrainParams
from headstart.stages.common import run_stage
from headstart.tracking.training import TrainingLog, open_training
from headstart.training.final_fit import TrainedHead, model_metadata, train_model
from headstart.training.tune import Tuned, checkpoint_folder, finish_tuning, tune_model

if TYPE_CHECKING:
    import keras


class Sections(Section):
    """What this stage reads of params.yaml."""

    seed: Seed = 0
    image: ImageParams
    train: TrainParams


def run(project: Project, params: Sections) -> str:
    """Train the head, put it on the backbone, fine-tune it if asked, and save the model."""
    begin_step("opening the run")
    best = read_head(project.best_head)
    with (
        FeatureStore(project.features) as store,
        open_training(project, best, store.contract, store.fingerprint, params.seed) as log,
    ):
        made = _make(project, params, best, store, log)
        begin_step("saving the model")
        metadata = model_metadata(store, made.trained, params.image, made.fine_tuned)
        save_model(project.model, made.model, metadata)
        write_report(project, made)
        begin_step("logging the run")
        scores = made.trained.scores
        log.model(
            project,
            curve=made.trained.curve,
            metrics=scores,
            reports=[project.training_report, project.data_report],
        )
        if made.checkpoints is not None:
            finish_tuning(made.checkpoints)
    return made.line


@dataclass(frozen=True)
class Made:
    """The model that is saved, and how it came about."""

    model: "keras.Model"
    trained: TrainedHead
    tuned: Tuned | None = None
    checkpoints: Path | None = None

    @property
    def fine_tuned(self) -> dict[str, Any] | None:
        """What model.h5 says of fine-tuning; None where the backbone is the frozen one."""
        kept = self.tuned is not None and self.tuned.outcome.kept
        return self.tuned.outcome.as_json() if self.tuned is not None and kept else None

    @property
    def line(self) -> str:
        """What the user is told."""
        scores = self.trained.scores
        text = (
            f"validation accuracy {scores['accuracy']:.3f}, log loss {scores['log_loss']:.3f}, "
            f"temperature {self.trained.temperature:.2f}"
        )
        if self.tuned is None:
            return text
        return f"{text}; fine-tuning {'kept' if self.tuned.outcome.kept else 'not kept'}"


def _make(
    project: Project, params: Sections, best: BestHead, store: FeatureStore, log: TrainingLog
) -> Made:
    begin_step("training the head")
    trained = train_model(store, best, params.train, seed=params.seed)
    begin_step("assembling the model")
    model = assemble(load_backbone(project.backbone), trained.heads, trained.temperature)
    options = params.train.fine_tune
    if not options.enabled:
        return Made(model, trained)
    begin_step("fine-tuning")
    state = state_folder(project.root)
    folder = checkpoint_folder(state, trained, project.backbone, options, params.seed)
    tuned = tune_model(
        model,
        trained,
        store,
        ImageStore(project.images),
        options,
        seed=params.seed,
        checkpoints=folder,
        on_epoch=log.fine_tuning_epoch,
    )
    return Made(tuned.model, tuned.trained, tuned, folder)


def write_report(project: Project, made: Made) -> None:
    """Write validation.csv, and reports/train/ with the curves and summary.json."""
    folder = project.training_report
    write_predictions(project.validation_predictions, [made.trained.validation])
    _write_curve(folder / "curve.csv", made.trained.curve)
    outcome = None
    if made.tuned is not None:
        outcome = made.tuned.outcome.as_json()
        _write_curve(folder / "fine_tune.csv", made.tuned.curve)
    else:
        (folder / "fine_tune.csv").unlink(missing_ok=True)
    files.write_json(folder / "summary.json", {**made.trained.summary(), "fine_tuning": outcome})


def _write_curve(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    header = ["epoch", *(curve[0] if curve else ())]
    rows = ([epoch, *metrics.values()] for epoch, metrics in enumerate(curve, start=1))
    files.write_csv(path, header, rows)


if __name__ == "__main__":
    run_stage("train", Sections, run)
