"""Probabilities as the table that the server, pyfunc and Python answer with."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def answer(
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    *,
    top_k: int = 0,
    threshold: float = 0.0,
    reasons: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """Return probabilities, shape (n_images, n_classes), as the columns that are served.

    Args:
        reasons: row of the request → why it has no probabilities; adds a column `error`.
    """
    best = probabilities.max(axis=1).astype(np.float64)
    is_sure = best >= threshold
    label_ids = np.where(is_sure, probabilities.argmax(axis=1), -1)
    columns: dict[str, object] = {
        "predicted_label": [classes[i] if i >= 0 else "" for i in label_ids],
        "predicted_label_id": label_ids.astype(np.int64),
        "probability": best,
    }
    if top_k:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        columns["top_labels"] = [[classes[i] for i in row] for row in order]
        found = np.take_along_axis(probabilities, order, axis=1).astype(np.float64)
        columns["top_probabilities"] = found.tolist()
    else:
        columns |= {
            f"p({name})": probabilities[:, index].astype(np.float64)
            for index, name in enumerate(classes)
        }
    table = pd.DataFrame(columns)
    if reasons is None:
        return table
    n_rows = len(table) + len(reasons)
    table.index = pd.Index([row for row in range(n_rows) if row not in reasons])
    table = table.reindex(range(n_rows)).astype(object)
    table = table.where(table.notna(), None)
    for row in reasons:
        table.at[row, "predicted_label"], table.at[row, "predicted_label_id"] = "", -1
    return table.assign(error=[reasons.get(row, "") for row in range(n_rows)])
