"""A model's answers as the table that the server, pyfunc, predict and Python give."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from headstart.models.inference import Answer


def answers_table(
    answers: Sequence[Answer],
    classes: Sequence[str],
    *,
    has_novelty: bool,
    top_k: int = 0,
    threshold: float = 0.0,
    max_novelty: float = 1.0,
    with_reasons: bool = False,
) -> pd.DataFrame:
    """Return a row an image, with the columns that are served.

    Args:
        has_novelty: whether the model tells it; each answer has one then.
        top_k: so many of the best classes, in place of a column for each; 0: all.
        threshold, max_novelty: an image whose best probability is below, or whose novelty is above,
            has no label: none of these classes.
        with_reasons: adds a column `error`: why an image has no probabilities. Without it, each of
            `answers` must have some.
    """
    found = [answer for answer in answers if answer.probabilities is not None]
    rows = [answer.probabilities for answer in found if answer.probabilities is not None]
    probabilities = np.stack(rows) if rows else np.zeros((0, len(classes)), np.float32)
    best = probabilities.max(axis=1).astype(np.float64)
    is_sure = best >= threshold
    columns: dict[str, object] = {}
    if has_novelty:
        novelty = np.array([answer.novelty for answer in found], np.float64)
        is_sure &= novelty <= max_novelty
        columns["novelty"] = novelty
    label_ids = np.where(is_sure, probabilities.argmax(axis=1), -1)
    columns = {
        "predicted_label": [classes[i] if i >= 0 else "" for i in label_ids],
        "predicted_label_id": label_ids.astype(np.int64),
        "probability": best,
        **columns,
    }
    if top_k:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        columns["top_labels"] = [[classes[i] for i in row] for row in order]
        values = np.take_along_axis(probabilities, order, axis=1).astype(np.float64)
        columns["top_probabilities"] = values.tolist()
    else:
        columns |= {
            f"p({name})": probabilities[:, index].astype(np.float64)
            for index, name in enumerate(classes)
        }
    table = pd.DataFrame(columns)
    if not with_reasons:
        return table
    # As objects: a missing value would make numbers of another kind of the whole column.
    table = table.astype(object)
    places = [row for row, answer in enumerate(answers) if answer.probabilities is not None]
    table.index = pd.Index(places)
    table = table.reindex(range(len(answers)))
    table = table.where(table.notna(), None)
    for row, answer in enumerate(answers):
        if answer.probabilities is None:
            table.at[row, "predicted_label"], table.at[row, "predicted_label_id"] = "", -1
    return table.assign(error=[answer.reason for answer in answers])
