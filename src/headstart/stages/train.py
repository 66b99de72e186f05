"""Stage train: the best head and the frozen encoder → models/model.h5.

Reads features.h5, best_head.json, backbone.h5 and, to fine-tune, images.h5; writes model.h5, what
heads said of development images that they had not seen, reports/train/ with the metrics of each
epoch, and models/run.json, the MLflow run that all of it belongs to.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from headstart.common import files
from headstart.common.cost import graph_cost
from headstart.common.paths import Project, cache_folder, state_folder
from headstart.common.progress import begin_step
from headstart.dataset.pixel_store import ImageStore
from headstart.encoders.onnx_encoder import OnnxEncoder
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import read_head
from headstart.models.assemble import assemble
from headstart.models.model_file import load_encoder, load_model, save_model
from headstart.models.pixels import hold_to_keras
from headstart.models.predictions import write_predictions
from headstart.params.base import Section, Seed
from headstart.params.image import ImageParams
from headstart.params.train import TrainParams
from headstart.stages.run_stage import run_stage
from headstart.tracking.runs import FINE_TUNING_CURVE
from headstart.tracking.training_runs import open_training
from headstart.training.final_fit import TrainedHead, model_metadata, train_model
from headstart.training.tune import Tuned, checkpoint_folder, novelty_of, tune_model


class Sections(Section):
    seed: Seed = 0
    image: ImageParams
    train: TrainParams


def run(project: Project, params: Sections) -> str:
    """Train the head, put it on the encoder, fine-tune both if asked, and save the model."""
    started = time.monotonic()
    begin_step("opening the run")
    best = read_head(project.best_head)
    with (
        FeatureStore(project.features) as store,
        open_training(project, best, store.recipe, store.fingerprint, params.seed) as mlflow_run,
    ):
        begin_step("training the head")
        trained = train_model(store, best, params.train, seed=params.seed)
        begin_step("assembling the model")
        encoder = load_encoder(project.encoder)
        model = assemble(encoder, trained.heads, trained.temperature, trained.layers)
        tuned = None
        options = params.train.fine_tune
        if options.enabled:
            begin_step("fine-tuning")
            cache = cache_folder()
            is_usable = cache.is_dir() and os.access(cache, os.W_OK)
            kept_in = cache if is_usable else state_folder(project.root)
            folder = checkpoint_folder(
                kept_in, trained, store, project.encoder, options, params.seed
            )
            tuned = tune_model(
                model,
                trained,
                store,
                ImageStore(project.images),
                options,
                seed=params.seed,
                checkpoints=folder,
                on_epoch=lambda epoch, metrics: mlflow_run.log_epochs(
                    [metrics], curve=FINE_TUNING_CURVE, first_epoch=epoch
                ),
            )
            # The fine-tuned model where it is better, else the frozen one.
            model, trained = tuned.model, tuned.trained
        begin_step("saving the model")
        kept = tuned.outcome.as_json() if tuned is not None and tuned.outcome.kept else None
        images = ImageStore(project.images) if kept else None
        novelty = novelty_of(store, trained.layers, model, images, seed=params.seed)
        metadata = model_metadata(store, trained, params.image, kept)
        in_onnx = encoder.joined(trained.layers) if isinstance(encoder, OnnxEncoder) else b""
        save_model(project.model, model, metadata, novelty, in_onnx)
        hold_to_keras(load_model(project.model).inference, model)
        write_training_report(project, trained, tuned)
        begin_step("logging the run")
        cost = graph_cost(model.layers)
        if isinstance(encoder, OnnxEncoder):
            cost += encoder.cost(trained.layers)
        costs = {
            "mflops": cost.mflops,
            "model_mb": project.model.stat().st_size / 1e6,
        }
        mlflow_run.log_results(
            {**{f"val_{name}": value for name, value in trained.scores.items()}, **costs},
            f"**Validation accuracy {100 * trained.scores['accuracy']:.1f} %**, log loss "
            f"{trained.scores['log_loss']:.3f}. Stage `evaluate` adds what the test split says.",
            [project.model, project.training_report, project.data_report],
            curve=trained.curve,
        )
        # No metric: a run that is made again has others.
        mlflow_run.set_tags({"train.seconds": f"{time.monotonic() - started:.1f}"})
    return summary(trained, tuned)


def summary(trained: TrainedHead, tuned: Tuned | None) -> str:
    """Say how good the model is on validation images, and what came of fine-tuning."""
    text = (
        f"validation accuracy {trained.scores['accuracy']:.3f}, log loss "
        f"{trained.scores['log_loss']:.3f}, temperature {trained.temperature:.2f}"
    )
    if tuned is None:
        return text
    return f"{text}; fine-tuning {'kept' if tuned.outcome.kept else 'not kept'}"


def write_training_report(project: Project, trained: TrainedHead, tuned: Tuned | None) -> None:
    """Write out_of_fold.csv, and reports/train/ with the curves and summary.json."""
    folder = project.training_report
    write_predictions(project.out_of_fold, [trained.validation], folds=trained.folds)
    _write_curve(folder / "curve.csv", trained.curve)
    if tuned is None:
        (folder / "fine_tune.csv").unlink(missing_ok=True)
    else:
        _write_curve(folder / "fine_tune.csv", tuned.curve)
    outcome = None if tuned is None else tuned.outcome.as_json()
    files.write_json(folder / "summary.json", {**trained.summary(), "fine_tuning": outcome})


def _write_curve(path: Path, curve: Sequence[Mapping[str, float]]) -> None:
    header = ["epoch", *(curve[0] if curve else ())]
    rows = ([epoch, *metrics.values()] for epoch, metrics in enumerate(curve, start=1))
    files.write_csv(path, header, rows)


if __name__ == "__main__":
    run_stage("train", Sections, run)
