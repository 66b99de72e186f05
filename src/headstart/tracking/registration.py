"""The model in the workspace becomes a registered version, and champion if it earns that.

Decided on validation images, never on the test split.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.machine import library_version
from headstart.common.paths import Project
from headstart.evaluation.comparison import Comparison, compare_models, latency_ratio
from headstart.models.predictions import read_predictions_table
from headstart.params.register import RegisterParams
from headstart.tracking.lineage import DvcState
from headstart.tracking.registry import CHALLENGER, CHAMPION, Promotion, Registry
from headstart.tracking.runs import recorded_run
from headstart.tracking.store import answering, tracking_uri

PREDICTIONS = "predictions.csv"
_MIN_COMMON_IMAGES = 20
# A difference of latency below a tenth is as likely the machine's.
_CLEARLY_FASTER = 0.9

# A version's tag: accuracy on validation images beyond what to expect on new ones.
_OPTIMISM = "validation.optimism"

# What databases of MLflow take.
_MAX_DESCRIPTION = 5000

Alias = Literal["champion", "challenger"]


def compare_predictions(
    old: pd.DataFrame,
    new: pd.DataFrame,
    split: str,
    seed: int,
    groups: Mapping[str, str],
    optimism: tuple[float, float] = (0.0, 0.0),
) -> Comparison | None:
    """Compare on the images of a split that both have, with the same label; None if too few.

    Args:
        groups: sha256 of an image → key of its group; images of a group are no independent proof.
            An image that it does not name is a group of its own.
        optimism: of old and new, where the images are those that they were chosen on.
    """
    classes = _class_columns(new)
    if set(classes) != set(_class_columns(old)):
        return None
    now, before = (
        table[table["split"] == split].drop_duplicates("sha256").set_index("sha256")
        for table in (new, old)
    )
    both = now.join(before.add_suffix("_old"), how="inner")
    both = both[both["label"].astype(str) == both["label_old"].astype(str)]
    if len(both) < _MIN_COMMON_IMAGES:
        return None
    ids = {name[2:-1]: index for index, name in enumerate(classes)}
    theirs, ours = (
        both[columns].to_numpy(dtype=np.float64)
        for columns in ([f"{name}_old" for name in classes], classes)
    )
    labels = np.asarray(both["label"].astype(str).map(ids), dtype=np.int64)
    keys = [groups.get(str(sha256), str(sha256)) for sha256 in both.index]
    return compare_models(theirs, ours, labels, seed=seed, groups=keys, optimism=optimism)


def _class_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table.columns if column.startswith("p(")]


@dataclass(frozen=True)
class Decision:
    """Which alias a version gets, the comparison behind it, and a sentence that says why.

    Attributes:
        restored: the version that is to be champion again, instead of one of other classes.
    """

    alias: Alias
    why: str
    validation: Comparison | None = None
    test: Comparison | None = None
    restored: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values for reports/comparison.json."""
        return asdict(self)


def decide(
    registry: Registry,
    predictions: Path,
    model: Path,
    params: RegisterParams,
    *,
    groups: Mapping[str, str],
    seed: int,
    optimism: float = 0.0,
) -> Decision:
    """Compare a new model with the champion, on the images that both were validated with.

    A champion of other classes answers another question. The last one of the same classes is
    compared with instead, and is champion again where the new model does not pass; where there is
    none, the new model takes the place, and the champion so far is kept for a rollback.

    Args:
        predictions: the new model's predictions.csv, with rows of the validation and test split.
        model: the new model file.
        groups: as of `compare_predictions`.
        optimism: of the new model; the champion's is a tag of its version.
    """
    champion = registry.holder(CHAMPION)
    if champion is None:
        return _unless_experiment(Decision("champion", "there was no champion"))
    old, new = _predictions(registry, champion), read_predictions_table(predictions)
    present, classes, is_back = str(champion.version), {*_class_columns(new)}, False
    if old is not None and {*_class_columns(old)} != classes:
        for former in registry.former_champions():
            theirs = _predictions(registry, former)
            if theirs is not None and {*_class_columns(theirs)} == classes:
                champion, old, is_back = former, theirs, True
                break
    named, run_id = f"version {champion.version}", str(champion.run_id)
    validation = test = None
    if old is None:
        why = f"the champion, {named}, has no {PREDICTIONS} to be compared with"
    elif {*_class_columns(old)} != classes:
        why = (
            f"the champion so far, {named}, has other classes "
            "(`headstart rollback` makes it champion again)"
        )
        return _unless_experiment(Decision("champion", why))
    elif validation := compare_predictions(
        old,
        new,
        "validation",
        seed,
        groups,
        (float(champion.tags.get(_OPTIMISM) or 0.0), optimism),
    ):
        test = compare_predictions(old, new, "test", seed, groups)
        why = validation.sentence
    else:
        why = (
            f"the champion, {named}, shares too few validation images with this model, so the two "
            "cannot be compared"
        )
    alias: Alias = "challenger"
    if params.gate == "always":
        alias, why = "champion", f"register.gate is always; {why}"
    elif validation is None:
        why = f"{why}: `headstart promote` decides by hand"
    elif validation.verdict == "better":
        alias = "champion"
    elif validation.not_worse and params.gate == "not_worse_and_smaller":
        n_bytes = champion.tags.get("model.bytes")
        if n_bytes is not None and model.stat().st_size < int(n_bytes):
            alias, why = "champion", f"smaller and not worse: {why}"
    elif validation.not_worse and params.gate == "not_worse_and_faster":
        with tempfile.TemporaryDirectory() as folder:
            other = registry.store.artifact(run_id, "model.h5", Path(folder))
            ratio = 1.0 if other is None else latency_ratio(model, other)
        if ratio < _CLEARLY_FASTER:
            alias, why = "champion", f"faster ({ratio:.2f} of its latency) and not worse: {why}"
    restored = None
    if is_back:
        why = f"{why} (version {present}, the champion so far, has other classes)"
        if alias == "challenger" and not os.environ.get("DVC_EXP_NAME"):
            restored = str(champion.version)
            why = f"{why}; {named}, the last champion of these classes, is champion again"
    return _unless_experiment(Decision(alias, why, validation, test, restored))


def _predictions(registry: Registry, version: ModelVersion) -> pd.DataFrame | None:
    with tempfile.TemporaryDirectory() as folder:
        path = registry.store.artifact(str(version.run_id), PREDICTIONS, Path(folder))
        return None if path is None else read_predictions_table(path)


def _unless_experiment(decision: Decision) -> Decision:
    name = os.environ.get("DVC_EXP_NAME")
    if decision.alias == "champion" and name:
        why = f"{decision.why}; made in the DVC experiment {name}, where only a challenger is named"
        return replace(decision, alias="challenger", why=why)
    return decision


@dataclass(frozen=True)
class Registration:
    """What register decided, and the comparison behind it."""

    model_name: str
    version: str
    alias: str
    why: str
    run_id: str
    model_sha256: str
    history: list[Promotion]
    comparison: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for reports/registration.json."""
        values = asdict(self)
        del values["comparison"]
        return values


def register_model(
    project: Project,
    params: RegisterParams,
    *,
    metadata: Mapping[str, Any],
    test_metrics: Mapping[str, Any],
    groups: Mapping[str, str],
    seed: int,
) -> Registration:
    """Register the workspace's model unless a version holds the same file, and decide its alias.

    The champion keeps its alias when the same file is registered again.

    Raises:
        TrackingError: the run is not in the store, or the store is away.
    """
    name, sha256 = params.model_name, files.sha256_of_file(project.model)
    with answering(tracking_uri(project.root)), recorded_run(project, "register") as run:
        if run.is_away:
            raise TrackingError(
                "registering needs the tracking store, but this run is still to be sent to it: "
                "run `headstart sync` when the store is back, then `dvc repro`"
            )
        registry = Registry(run.store, name)
        decision = decide(
            registry,
            project.predictions,
            project.model,
            params,
            groups=groups,
            seed=seed,
            optimism=float(metadata.get("optimism") or 0.0),
        )
        version = registry.version_of(sha256)
        if version is None:
            run_tags = run.store.client.get_run(run.run_id).data.tags
            hashes = {o.path: o.md5 for o in DvcState(project.root).outputs_before("register")}
            tags = {
                "model.bytes": str(project.model.stat().st_size),
                _OPTIMISM: f"{float(metadata.get('optimism') or 0.0):.6f}",
                "fingerprint": str(metadata.get("fingerprint", "")),
                "data.md5": hashes.get("data/fetched"),
                "git.commit": run_tags.get("git.commit"),
                "git.dirty": run_tags.get("git.dirty"),
                "dvc.exp_name": os.environ.get("DVC_EXP_NAME"),
                "version.headstart": library_version("headstart"),
            }
            metrics = {
                key: value for key, value in test_metrics.items() if isinstance(value, float)
            }
            tags |= {f"test.{key}": f"{value:.4f}" for key, value in metrics.items()}
            accuracy, low, high = (
                f"{100 * float(test_metrics[key]):.1f}"
                for key in ("accuracy", "accuracy_ci95_low", "accuracy_ci95_high")
            )
            about = (
                f"Test accuracy {accuracy} % (95 % interval {low} to {high}) on "
                f"{test_metrics['n_test']} images. Classes: {', '.join(metadata['classes'][:20])}."
            )
            card = project.model_card.read_text(encoding="utf-8")
            if len(about) + len(card) + 2 > _MAX_DESCRIPTION:
                card = f"The model card is {project.model_card.name} among the run's artifacts."
            known = {key: value for key, value in tags.items() if value}
            version = registry.add(run.run_id, sha256, f"{about}\n\n{card}", known)
        number = str(version.version)
        alias, why = str(decision.alias), decision.why
        champion = registry.holder(CHAMPION)
        if champion is not None and str(champion.version) == number:
            alias, why = CHAMPION, "it was champion before, and is the same file"
        elif alias == CHAMPION:
            registry.promote(number, why)
        else:
            registry.set_alias(CHALLENGER, number)
            if decision.restored is not None:
                registry.promote(decision.restored, why)
            if decision.restored == number:
                alias, why = CHAMPION, "it was the last champion of these classes"
        # Not the alias: it moves, and only the registry knows where it is now.
        run.set_tags({"registered.version": number})
        return Registration(
            name, number, alias, why, run.run_id, sha256, registry.history(), decision.as_json()
        )
