"""Stage train: the best head and the frozen backbone become models/model.h5.

Reads features.h5, best_head.json and backbone.h5; writes model.h5, models/serving/ for
`mlflow models serve`, the predictions of the validation images, reports/train/ with the metrics of
each epoch, and models/run.json, the MLflow run that all of it belongs to.
"""

from headstart import files
from headstart.features.store import FeatureStore
from headstart.heads.config import read_head
from headstart.models.assemble import assemble
from headstart.models.model_file import load_backbone, save_model
from headstart.models.predictions import write_predictions
from headstart.models.train import TrainedHead, model_metadata, train_model
from headstart.params import ImageParams, TrainParams
from headstart.params.base import Section
from headstart.paths import Project
from headstart.serving.package import save_pyfunc
from headstart.stages.common import run_stage
from headstart.tracking.training import open_training


class Sections(Section):
    """What this stage reads of params.yaml."""

    seed: int
    image: ImageParams
    train: TrainParams


def run(project: Project, params: Sections) -> str:
    """Train the head, put it on the backbone, and save the model."""
    best = read_head(project.best_head)
    with (
        FeatureStore(project.features) as store,
        open_training(project, best, store.contract, store.fingerprint, params.seed) as log,
    ):
        trained = train_model(store, best, params.train, seed=params.seed)
        metadata = model_metadata(store, trained, params.image)
        model = assemble(load_backbone(project.backbone), trained.heads, trained.temperature)
        save_model(project.model, model, metadata)
        write_report(project, trained)
        example = (project.fetched / store.split("train").paths[0]).read_bytes()
        save_pyfunc(project.serving, project.model, store.classes, example)
        log.model(
            project, curve=trained.curve, metrics=trained.scores, reports=[project.training_report]
        )
    return (
        f"validation accuracy {trained.scores['accuracy']:.3f}, "
        f"log loss {trained.scores['log_loss']:.3f}, temperature {trained.temperature:.2f}"
    )


def write_report(project: Project, trained: TrainedHead) -> None:
    """Write validation.csv, and reports/train/ with curve.csv and summary.json."""
    folder = project.training_report
    write_predictions(project.validation_predictions, [trained.validation])
    curve = trained.curve
    header = ["epoch", *(curve[0] if curve else ())]
    rows = [[epoch, *metrics.values()] for epoch, metrics in enumerate(curve, start=1)]
    files.write_csv(folder / "curve.csv", header, rows)
    files.write_json(folder / "summary.json", trained.summary())


if __name__ == "__main__":
    run_stage("train", Sections, run)
