"""What the run of a trained model says: who it is, from what it came, what it holds.

The same names in every run, so that MLflow's pages compare runs well.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headstart.common.paths import Project
from headstart.heads.config import BestHead, HeadConfig
from headstart.params.whole_file import load_params
from headstart.tracking.lineage import Lineage, flatten, gather
from headstart.tracking.run_names import data_in_words, head_in_words, run_name
from headstart.tracking.runs import (
    FINE_TUNING_CURVE,
    Run,
    training_run,
    write_record,
)

# Sections that do not change the model; evaluate and register say theirs by tags.
_NOT_OF_THE_MODEL = ("evaluate", "register")


@dataclass(frozen=True)
class TrainingLog:
    """The open run of a model in training; `about` begins its description."""

    run: Run
    about: str

    def fine_tuning_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch of fine-tuning while it goes on; the first is 1."""
        self.run.log_epochs([metrics], curve=FINE_TUNING_CURVE, first_epoch=epoch)

    def model(
        self,
        project: Project,
        *,
        curve: Sequence[Mapping[str, float]],
        metrics: Mapping[str, float],
        reports: Sequence[Path],
    ) -> None:
        """Log everything about the trained model, and write models/run.json.

        Args:
            curve: metrics of each epoch, of one head or as a mean over folds.
            metrics: of the validation split by the model that leaves, without prefix.
            reports: folders that become artifacts under their own names; those that are there.
        """
        # The curve comes second: MLflow's comparison opens with the metric that was logged first.
        self.run.log_metrics({f"val_{name}": value for name, value in metrics.items()})
        self.run.log_epochs(curve)
        self.run.set_tags({"mlflow.note.content": f"{self.about}\n\n{_validated(metrics)}"})
        self.run.log_artifact(project.model)
        for report in reports:
            if report.is_dir():
                self.run.log_artifact(report, report.name)
        write_record(project.run, self.run.record)


@contextlib.contextmanager
def open_training(
    project: Project, best: BestHead, contract: Mapping[str, Any], fingerprint: str, seed: int
) -> Iterator[TrainingLog]:
    """Open the run before the work starts, with its lineage, params and inputs.

    Args:
        contract: what the feature fingerprint covers.
    """
    facts = {
        "headstart.kind": "model",
        "fingerprint": fingerprint,
        "seed": str(seed),
        "study": best.study,
        "trial": str(best.trial),
        # As resolved: params.yaml may say auto.
        "extract.runtime": str(contract["runtime"]),
        "extract.precision": str(contract["precision"]),
    }
    lineage = gather(project, "train", facts)
    resolved = load_params(project.params)
    head = head_in_words(best.config)
    about = (
        f"A {head} head on features of {contract['backbone']}, for the images of "
        f"{data_in_words(resolved.data.source)}; seed {seed}."
    )
    params = model_params(project, best.config)
    with training_run(project, run_name(resolved, head), lineage, params) as run:
        run.set_tags({"mlflow.note.content": about})
        features = [o for o in lineage.inputs if o.path == "data/features.h5"]
        others = [o for o in lineage.inputs if o not in features]
        contexts = [(o, "training") for o in [*features, *others]]
        contexts += [(o, "validation") for o in features]
        if lineage.source is not None and lineage.source.md5:
            contexts.append((lineage.source, "training"))
        run.log_inputs(contexts, lineage)
        log_provenance(run, project, lineage)
        yield TrainingLog(run, about)


def log_provenance(run: Run, project: Project, lineage: Lineage) -> None:
    """What the run can be made again from, and compared by: params, lock, splits, the diff."""
    run.log_text(project.params.read_text(encoding="utf-8"), "params.yaml", "provenance")
    resolved = load_params(project.params).model_dump(mode="json", by_alias=True)
    text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
    run.log_text(text, "resolved_params.yaml", "provenance")
    if project.dvc_lock.is_file():
        run.log_text(project.dvc_lock.read_text(encoding="utf-8"), "dvc.lock", "provenance")
    for path in (project.splits, project.manifest):
        if path.is_file():
            run.log_artifact(path, "provenance")
    if lineage.git.diff:
        run.log_text(lineage.git.diff, "uncommitted.patch", "provenance")


def model_params(project: Project, head: HeadConfig) -> dict[str, str]:
    """All resolved params of the stages up to train, and those of the head, as `section.field`."""
    everything = load_params(project.params).model_dump(mode="json", by_alias=True)
    for section in _NOT_OF_THE_MODEL:
        del everything[section]
    # The space is the study's, and recorded on its parent run.
    everything["search"].pop("space", None)
    return flatten({**everything, "head": head.model_dump(mode="json")})


def _validated(metrics: Mapping[str, float]) -> str:
    return (
        f"**Validation accuracy {100 * metrics['accuracy']:.1f} %**, log loss "
        f"{metrics['log_loss']:.3f}. Stage `evaluate` adds what the test split says."
    )
