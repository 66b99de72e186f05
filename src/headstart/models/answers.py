"""What a model says of images, and as the table that the server, pyfunc and Python answer with."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from headstart.models.model_file import LoadedModel
from headstart.models.pixels import predict_batch, predict_both


def classify(
    loaded: LoadedModel, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    """Return probabilities, float32 (n, n_classes), and novelty, float64 (n,), of images.

    Args:
        pixels: uint8 (n, size, size, 3), decoded to the model's input; n may be 0.
    """
    if len(pixels) == 0:
        none = np.zeros(0) if loaded.novelty is not None else None
        return np.zeros((0, len(loaded.classes)), np.float32), none
    if loaded.novelty is None:
        return predict_batch(loaded.model, pixels), None
    features, probabilities = predict_both(loaded.with_features, pixels)
    # Each by itself, as the forward pass: a row must not depend on what shares its batch.
    return probabilities, np.concatenate([loaded.novelty.novelty(row[None]) for row in features])


def answer(
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    *,
    novelty: NDArray[np.float64] | None = None,
    top_k: int = 0,
    threshold: float = 0.0,
    max_novelty: float = 1.0,
    reasons: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """Return probabilities, shape (n_images, n_classes), as the columns that are served.

    Args:
        novelty: of each image, float64 (n_images,).
        threshold, max_novelty: an image whose best probability is below, or whose novelty is above,
            has no label: none of these classes.
        reasons: row of the request → why it has no probabilities; adds a column `error`.
    """
    best = probabilities.max(axis=1).astype(np.float64)
    is_sure = best >= threshold
    if novelty is not None:
        is_sure &= novelty <= max_novelty
    label_ids = np.where(is_sure, probabilities.argmax(axis=1), -1)
    columns: dict[str, object] = {
        "predicted_label": [classes[i] if i >= 0 else "" for i in label_ids],
        "predicted_label_id": label_ids.astype(np.int64),
        "probability": best,
    }
    if novelty is not None:
        columns["novelty"] = novelty
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
