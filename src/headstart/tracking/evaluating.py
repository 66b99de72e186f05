"""What evaluate adds to the run of a trained model: test metrics, reports, a short description."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.common.paths import Project
from headstart.tracking.lineage import gather
from headstart.tracking.runs import Run, continued_run

_CARRIED_TAGS = ("git.commit", "git.dirty")


@dataclass(frozen=True)
class EvaluationLog:
    """The run that evaluate goes on with."""

    run: Run

    def evaluation(
        self, metrics: Mapping[str, float], classes: Sequence[str], artifacts: Sequence[Path]
    ) -> None:
        """Log test metrics, reports and the description that MLflow's pages show first."""
        self.run.log_metrics({f"test_{name}": value for name, value in metrics.items()})
        for path in artifacts:
            self.run.log_artifact(path, path.name if path.is_dir() else None)
        self.run.set_tags({"mlflow.note.content": _note(metrics, classes)})


@contextlib.contextmanager
def open_evaluation(project: Project) -> Iterator[EvaluationLog]:
    """Go on in the run of models/run.json; its lineage as a model's stays as train wrote it."""
    lineage = gather(project, "evaluate", {})
    tags = {
        f"evaluate.{name}": lineage.tags[name] for name in _CARRIED_TAGS if name in lineage.tags
    }
    tags["dvc.stage.evaluate"] = "done"
    with continued_run(project, tags) as run:
        features = [(o, "test") for o in lineage.inputs if o.path == "data/features.h5"]
        run.log_inputs(features, lineage)
        yield EvaluationLog(run)


def _note(metrics: Mapping[str, float], classes: Sequence[str]) -> str:
    names = ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
    return (
        f"**Test accuracy {100 * metrics['accuracy']:.1f} %** (95 % interval "
        f"{100 * metrics['accuracy_ci95_low']:.1f} to {100 * metrics['accuracy_ci95_high']:.1f}), "
        f"log loss {metrics['log_loss']:.3f}, on {metrics['n_test']:.0f} images of "
        f"{len(classes)} classes: {names}.\n\n"
        "Open `evaluation/index.html` among the artifacts for the errors one by one."
    )
