"""Stage evaluate: the test split, read here alone.

Reads features.h5, model.h5, run.json and the images themselves; writes metrics.json,
predictions.csv (validation and test), the tables of the plots, the page reports/evaluation/ and
the model card.
"""

from headstart.common import files
from headstart.common.paths import Project
from headstart.common.progress import begin_step
from headstart.dataset.manifest import read_manifest
from headstart.evaluation.evaluate_model import Evaluation, evaluate_model
from headstart.features.feature_store import FeatureStore
from headstart.models.model_file import load_model
from headstart.models.predictions import read_predictions, write_predictions
from headstart.params.base import Section, Seed
from headstart.params.data import DataParams
from headstart.params.evaluate import EvaluateParams
from headstart.reports.evaluation_report import (
    Subject,
    error_pictures,
    write_evaluation_report,
    write_tables,
)
from headstart.reports.model_card import model_card
from headstart.stages.run_stage import run_stage
from headstart.tracking.runs import recorded_run


class Sections(Section):
    """The seed draws the bootstrap; the model card names the source of the data."""

    seed: Seed = 0
    data: DataParams
    evaluate: EvaluateParams


def run(project: Project, params: Sections) -> str:
    """Evaluate the model, and write its predictions, figures and page."""
    begin_step("loading the model")
    loaded = load_model(project.model)
    manifest = read_manifest(project.manifest)
    with (
        FeatureStore(project.features) as store,
        recorded_run(project, "evaluate", reads="test") as mlflow_run,
    ):
        begin_step("evaluating the test images")
        evaluation = evaluate_model(
            store,
            loaded,
            project.fetched,
            n_bootstrap=params.evaluate.n_bootstrap,
            seed=params.seed,
            max_pixels=manifest.max_pixels,
        )
        subject = Subject(
            evaluation=evaluation,
            validation=read_predictions(project.out_of_fold, "validation"),
            loaded=loaded,
            store=store,
            manifest=manifest,
            fetched=project.fetched,
            summary=files.read_json(project.training_report / "summary.json"),
            n_bootstrap=params.evaluate.n_bootstrap,
            seed=params.seed,
        )
        begin_step("writing the report")
        write_evaluation_report(project.evaluation_report, subject)
        write_tables(project.plots, evaluation)
        write_predictions(project.predictions, [subject.validation, evaluation.test])
        files.write_text(project.model_card, model_card(subject, params.data.source))
        begin_step("logging the evaluation")
        metrics = evaluation.flat_metrics()
        files.write_json(project.metrics, {**metrics, "run_id": mlflow_run.run_id})
        classes = store.classes
        listed = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
        low, high = metrics["accuracy_ci95_low"], metrics["accuracy_ci95_high"]
        mlflow_run.log_results(
            {f"test_{name}": value for name, value in metrics.items()},
            f"**Test accuracy {100 * metrics['accuracy']:.1f} %** (95 % interval {100 * low:.1f} "
            f"to {100 * high:.1f}), log loss {metrics['log_loss']:.3f}, on {metrics['n_test']:.0f} "
            f"images of {len(classes)} classes: {listed}.\n\n"
            "Open `evaluation/index.html` among the artifacts for the errors one by one.",
            [project.predictions, project.metrics, project.model_card, project.evaluation_report],
        )
        mlflow_run.log_images("worst_errors", error_pictures(subject))
    return summary(evaluation)


def summary(evaluation: Evaluation) -> str:
    """Say the test accuracy and its interval."""
    metrics = evaluation.flat_metrics()
    return (
        f"test accuracy {metrics['accuracy']:.3f} (95 % interval "
        f"{metrics['accuracy_ci95_low']:.3f} to {metrics['accuracy_ci95_high']:.3f}) on "
        f"{metrics['n_test']} images"
    )


if __name__ == "__main__":
    run_stage("evaluate", Sections, run)
