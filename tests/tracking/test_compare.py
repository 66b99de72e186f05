"""What differs between runs, from their manifests and predictions."""

import pandas as pd

from headstart.tracking.compare import (
    changed_predictions,
    data_change,
    data_in_words,
)


def _manifest(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "sha256", "label", "split"])


def test_data_changes_are_found_by_content() -> None:
    before = _manifest(
        ("a/1.png", "s1", "a", "train"), ("a/2.png", "s2", "a", "test"),
        ("b/3.png", "s3", "b", "train"), ("b/4.png", "s4", "b", "validation"),
    )  # fmt: skip
    after = _manifest(
        ("a/renamed.png", "s1", "a", "train"), ("b/2.png", "s2", "b", "test"),
        ("b/4.png", "s4", "b", "train"), ("b/5.png", "s5", "b", "train"),
    )  # fmt: skip
    change = data_change(before, after)
    assert change.added == ["b/5.png"]
    assert change.removed == ["b/3.png"]
    assert change.relabelled == ["b/2.png"]
    assert change.moved == ["b/4.png"]
    assert "1 images were added" in data_in_words(change)


def test_the_same_data_are_called_so() -> None:
    table = _manifest(("a/1.png", "s1", "a", "train"))
    assert data_in_words(data_change(table, table)) == "The data are the same."


def test_changed_predictions_are_those_of_common_images() -> None:
    columns = ["path", "sha256", "label", "split", "predicted_label"]
    before = pd.DataFrame(
        [
            ["a/1", "s1", "a", "test", "a"],
            ["a/2", "s2", "a", "test", "b"],
            ["x", "s9", "a", "test", "a"],
        ],
        columns=columns,
    )
    after = pd.DataFrame(
        [["a/1", "s1", "a", "test", "b"], ["a/2", "s2", "a", "test", "b"]], columns=columns
    )
    (change,) = changed_predictions(before, after)
    assert (change.path, change.before, change.after, change.label) == ("a/1", "a", "b", "a")
