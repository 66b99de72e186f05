"""Does a model earn the champion alias? Decided on validation images, never on the test split."""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray

from headstart.evaluation.comparison import Comparison, compare_models
from headstart.evaluation.latency import latency_ratio
from headstart.models.predictions import read_predictions_table
from headstart.params.register import RegisterParams
from headstart.tracking.registry import CHAMPION, Registry

PREDICTIONS = "predictions.csv"
_MODEL = "model.h5"
_MIN_COMMON_IMAGES = 20
# A difference of latency below a tenth is as likely the machine's.
_CLEARLY_FASTER = 0.9

Alias = Literal["champion", "challenger"]


@dataclass(frozen=True)
class Decision:
    """Which alias a version gets, the comparison behind it, and a sentence that says why."""

    alias: Alias
    why: str
    validation: Comparison | None = None
    test: Comparison | None = None


def decide(
    registry: Registry,
    predictions: Path,
    model: Path,
    params: RegisterParams,
    *,
    groups: Mapping[str, str],
    seed: int,
) -> Decision:
    """Compare a new model with the champion, on the images that both were validated with.

    A champion of other classes answers another question: the new model takes its place, and it is
    kept for a rollback.

    Args:
        predictions: the new model's predictions.csv, with rows of the validation and test split.
        model: the new model file.
        groups: sha256 of an image → key of its group; images of a group are no independent proof.
    """
    champion = registry.holder(CHAMPION)
    if champion is None:
        return _unless_experiment(Decision("champion", "there was no champion"))
    with tempfile.TemporaryDirectory() as folder:
        theirs = registry.artifact(champion, PREDICTIONS, Path(folder))
        if theirs is None:
            return _incomparable(
                f"the champion, version {champion.version}, has no {PREDICTIONS} to be compared "
                "with",
                params,
            )
        old, new = read_predictions_table(theirs), read_predictions_table(predictions)
    if set(_class_columns(old)) != set(_class_columns(new)):
        why = (
            f"the champion so far, version {champion.version}, has other classes "
            "(`headstart rollback` brings it back)"
        )
        return _unless_experiment(Decision("champion", why))
    validation = compare_predictions(old, new, "validation", seed, groups)
    if validation is None:
        return _incomparable(
            f"the champion, version {champion.version}, shares too few validation images with this "
            "model, so the two cannot be compared",
            params,
        )
    test = compare_predictions(old, new, "test", seed, groups)
    alias: Alias = "challenger"
    why = validation.sentence
    if params.gate == "always":
        alias, why = "champion", f"register.gate is always; {why}"
    elif validation.verdict == "better":
        alias = "champion"
    elif validation.not_worse and (gain := _gain(registry, champion, model, params.gate)):
        alias, why = "champion", f"{gain} and not worse: {why}"
    return _unless_experiment(Decision(alias, why, validation, test))


def _incomparable(why: str, params: RegisterParams) -> Decision:
    if params.gate == "always":
        return _unless_experiment(Decision("champion", f"register.gate is always; {why}"))
    return Decision("challenger", f"{why}: `headstart promote` decides by hand")


def _unless_experiment(decision: Decision) -> Decision:
    name = os.environ.get("DVC_EXP_NAME")
    if decision.alias == "champion" and name:
        why = f"{decision.why}; made in the DVC experiment {name}, where only a challenger is named"
        return Decision("challenger", why, decision.validation, decision.test)
    return decision


def _gain(registry: Registry, champion: ModelVersion, model: Path, gate: str) -> str:
    """What the gate holds in a new model's favour besides its answers; empty if nothing."""
    if gate == "not_worse_and_smaller":
        theirs = champion.tags.get("model.bytes")
        return "smaller" if theirs is not None and model.stat().st_size < int(theirs) else ""
    if gate == "not_worse_and_faster":
        with tempfile.TemporaryDirectory() as folder:
            other = registry.artifact(champion, _MODEL, Path(folder))
            ratio = 1.0 if other is None else latency_ratio(model, other)
        return f"faster ({ratio:.2f} of its latency)" if ratio < _CLEARLY_FASTER else ""
    return ""


def compare_predictions(
    old: pd.DataFrame, new: pd.DataFrame, split: str, seed: int, groups: Mapping[str, str]
) -> Comparison | None:
    """Compare on the images of a split that both have, with the same label; None if too few.

    An image that `groups` does not name is a group of its own.
    """
    classes = _class_columns(new)
    if set(classes) != set(_class_columns(old)):
        return None
    both = _rows(new, split).join(_rows(old, split).add_suffix("_old"), how="inner")
    both = both[both["label"] == both["label_old"]]
    if len(both) < _MIN_COMMON_IMAGES:
        return None
    ids = {name[2:-1]: index for index, name in enumerate(classes)}
    labels = np.asarray(both["label"].map(ids), dtype=np.int64)
    theirs = [f"{name}_old" for name in classes]
    keys = [groups.get(str(sha256), str(sha256)) for sha256 in both.index]
    ours = _matrix(both, classes)
    return compare_models(_matrix(both, theirs), ours, labels, seed=seed, groups=keys)


def _class_columns(table: pd.DataFrame) -> list[str]:
    return [column for column in table.columns if column.startswith("p(")]


def _rows(table: pd.DataFrame, split: str) -> pd.DataFrame:
    rows = table[table["split"] == split].drop_duplicates("sha256")
    return rows.assign(label=rows["label"].astype(str)).set_index("sha256")


def _matrix(table: pd.DataFrame, columns: list[str]) -> NDArray[np.float64]:
    return table[columns].to_numpy(dtype=np.float64)


def as_json(decision: Decision) -> dict[str, Any]:
    """reports/comparison.json."""
    return {
        "alias": decision.alias,
        "why": decision.why,
        "validation": decision.validation.as_json() if decision.validation else None,
        "test": decision.test.as_json() if decision.test else None,
    }
