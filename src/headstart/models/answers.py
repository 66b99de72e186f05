"""A model's answers as the rows that the server, pyfunc, predict and Python give."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from headstart.models.inference import Answer


def answers_as_rows(
    answers: Sequence[Answer],
    classes: Sequence[str],
    *,
    has_novelty: bool,
    top_k: int = 0,
    threshold: float = 0.0,
    max_novelty: float = 1.0,
    with_reasons: bool = False,
) -> list[dict[str, Any]]:
    """Return a row an image, column → value, with the columns that are served.

    Args:
        has_novelty: whether the model tells it; each answer has one then.
        top_k: so many of the best classes, in place of a column for each; 0: all.
        threshold, max_novelty: an image whose best probability is below, or whose novelty is above,
            has no label: none of these classes.
        with_reasons: adds a column `error`: why an image has no probabilities. Without it, each of
            `answers` must have some.
    """
    columns = _columns(classes, has_novelty, top_k, with_reasons)
    rows = []
    for answer in answers:
        row: dict[str, Any] = dict.fromkeys(columns)
        row["predicted_label"], row["predicted_label_id"] = "", -1
        if with_reasons:
            row["error"] = answer.reason
        rows.append(row)
        if answer.probabilities is None:
            continue
        values = answer.probabilities.tolist()
        best = int(answer.probabilities.argmax())
        row["probability"] = values[best]
        if has_novelty:
            row["novelty"] = answer.novelty
        if values[best] >= threshold and (answer.novelty or 0.0) <= max_novelty:
            row["predicted_label"], row["predicted_label_id"] = classes[best], best
        if top_k:
            order = np.argsort(-answer.probabilities, kind="stable")[:top_k].tolist()
            row["top_labels"] = [classes[i] for i in order]
            row["top_probabilities"] = [values[i] for i in order]
        else:
            row |= {f"p({name})": value for name, value in zip(classes, values, strict=True)}
    return rows


def answers_table(
    answers: Sequence[Answer], classes: Sequence[str], *, has_novelty: bool, **options: Any
) -> pd.DataFrame:
    """Return the same as a table; `options` of `answers_as_rows`.

    With reasons all columns are of objects: a missing value would make numbers of another kind of
    the whole column.
    """
    rows = answers_as_rows(answers, classes, has_novelty=has_novelty, **options)
    with_reasons = options.get("with_reasons", False)
    columns = _columns(classes, has_novelty, options.get("top_k", 0), with_reasons)
    if with_reasons:
        return pd.DataFrame(rows, columns=columns, dtype=object)
    table = pd.DataFrame(rows, columns=columns)
    return table if rows else table.astype({"predicted_label_id": np.int64})


def _columns(
    classes: Sequence[str], has_novelty: bool, top_k: int, with_reasons: bool
) -> list[str]:
    return [
        *("predicted_label", "predicted_label_id", "probability"),
        *(["novelty"] if has_novelty else []),
        *(["top_labels", "top_probabilities"] if top_k else [f"p({name})" for name in classes]),
        *(["error"] if with_reasons else []),
    ]
