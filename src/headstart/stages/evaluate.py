"""Stage evaluate: the test split, read here alone.

Reads features.h5, model.h5, run.json and the images themselves; writes metrics.json,
predictions.csv (validation and test) and reports/evaluation/.
"""

from headstart import files
from headstart.features.store import FeatureStore
from headstart.models.evaluation import Evaluation, evaluate_model
from headstart.models.model_file import load_model
from headstart.models.predictions import read_predictions, write_predictions
from headstart.params import EvaluateParams
from headstart.params.base import Section
from headstart.paths import Project
from headstart.stages.common import run_stage
from headstart.tracking.evaluating import open_evaluation


class Sections(Section):
    """What this stage reads of params.yaml; the seed draws the bootstrap."""

    seed: int
    evaluate: EvaluateParams


def run(project: Project, params: Sections) -> str:
    """Evaluate the model and write what it says of each image."""
    loaded = load_model(project.model)
    with FeatureStore(project.features) as store, open_evaluation(project) as log:
        evaluation = evaluate_model(
            store,
            loaded,
            project.fetched,
            n_bootstrap=params.evaluate.n_bootstrap,
            seed=params.seed,
        )
        validation = read_predictions(project.training_report / "validation.csv", "validation")
        write_predictions(project.predictions, [validation, evaluation.test])
        metrics = evaluation.flat_metrics()
        files.write_json(project.metrics, {**metrics, "run_id": log.run.run_id})
        log.evaluation(metrics, store.classes, [project.predictions, project.metrics])
    return line(evaluation)


def line(evaluation: Evaluation) -> str:
    """What the user is told."""
    metrics = evaluation.flat_metrics()
    return (
        f"test accuracy {metrics['accuracy']:.3f} (95 % interval "
        f"{metrics['accuracy_ci95_low']:.3f} to {metrics['accuracy_ci95_high']:.3f}) on "
        f"{metrics['n_test']} images"
    )


if __name__ == "__main__":
    run_stage("evaluate", Sections, run)
