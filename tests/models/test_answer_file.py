"""Answers for many files as a file, and the paths that people name."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headstart.common.errors import DataError
from headstart.models import answer_file
from headstart.models.answer_file import write_answers
from headstart.models.inference import Answer
from headstart.models.predict import Prediction, find_images, named_paths, why_unreadable

CLASSES = ("ant", "=bee", "cat")


def predictions(n: int = 7) -> Iterator[Prediction]:
    """The third of each three is no image."""
    for number in range(n):
        if number % 3 == 2:
            answer = Answer(None, reason="no image")
        else:
            row = np.roll(np.array([0.7, 0.2, 0.1], np.float32), number)
            answer = Answer(row, novelty=number / 10)
        yield Prediction(Path(f"some folder/{number}.jpg"), CLASSES, answer)


def read(path: Path) -> list[dict[str, object]]:
    if path.suffix == ".parquet":
        return [dict(row) for row in pd.read_parquet(path).to_dict("records")]  # type: ignore[arg-type]
    text = path.read_bytes().decode()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("top_k", [0, 2])
def test_every_file_has_a_row_with_its_answer_or_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, top_k: int
) -> None:
    monkeypatch.setattr(answer_file, "_CHUNK_ROWS", 3)
    path = tmp_path / f"answers{suffix}"
    write_answers(path, predictions(), CLASSES, has_novelty=True, top_k=top_k, max_novelty=0.35)
    rows = read(path)
    assert [row["path"] for row in rows] == [f"some folder/{number}.jpg" for number in range(7)]
    formula = "'=bee" if suffix == ".csv" else "=bee"
    labels = ["ant", formula, "", "ant", "", "", ""]  # 4 and 6 are unlike what is known
    assert [row["predicted_label"] for row in rows] == labels
    assert [row["error"] for row in rows] == ["", "", "no image", "", "", "no image", ""]
    assert float(str(rows[3]["novelty"])) == pytest.approx(0.3)
    best = rows[1]["top_labels"] if top_k else rows[1]["p(=bee)"]
    if top_k:
        found = json.loads(str(best)) if suffix == ".csv" else list(best)  # type: ignore[call-overload]
        assert found == ["=bee", "cat"]
    else:
        assert float(str(best)) == pytest.approx(0.7)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_no_file_at_all(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"answers{suffix}"
    write_answers(path, [], CLASSES, has_novelty=True)
    assert read(path) == []


def test_an_unknown_format_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"ends in \.csv, \.jsonl, \.parquet, but got .*answers\.xlsx"
    ):
        write_answers(tmp_path / "answers.xlsx", predictions(), CLASSES, has_novelty=True)
    assert list(tmp_path.iterdir()) == []


def test_paths_by_name_by_pattern_and_by_list(tmp_path: Path) -> None:
    for name in ("a/one.jpg", "a/b/two.jpg", "a/b/[odd].jpg", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    given = [tmp_path / "a/**/*.jpg", tmp_path / "a/b/[odd].jpg", Path("-"), tmp_path / "no/*.png"]
    (tmp_path / "a/b/c.jpg").mkdir()
    listed_lines = io.BytesIO(b"one\n\ntwo words\r\n")
    found = list(named_paths(given, listed_lines))
    every = list(find_images(named_paths([tmp_path / "a/**"], io.BytesIO())))
    assert len(every) == len(set(every)) == 4
    pattern = [tmp_path / "a/b/[odd].jpg", tmp_path / "a/b/two.jpg", tmp_path / "a/one.jpg"]
    listed = [Path("one"), Path("two words")]
    assert found == [*pattern, tmp_path / "a/b/[odd].jpg", *listed, tmp_path / "no/*.png"]
    zeros = io.BytesIO(b"one\0two\nlines\0\xff.jpg\0")
    names = [os.fsencode(path) for path in named_paths([Path("-")], zeros)]
    assert names == [b"one", b"two\nlines", b"\xff.jpg"]
    assert why_unreadable(Path("a\0b"))
    assert list(named_paths([Path("x" * 300 + "*")], zeros)) == [Path("x" * 300 + "*")]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_columns_and_numbers_are_the_same_in_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Parts without an image, of a model without novelty; a name that is no UTF-8."""
    monkeypatch.setattr(answer_file, "_CHUNK_ROWS", 2)
    row = np.array([0.1, 0.2, 0.7], np.float32)
    good, bad = Answer(row), Answer(None, reason="a\rb")
    names = [os.fsdecode(b"\xff.jpg"), *"abcde"]
    given = [
        Prediction(Path(name), CLASSES, answer)
        for name, answer in zip(names, [bad, bad, good, bad, good, good], strict=True)
    ]
    path = tmp_path / f"answers{suffix}"
    write_answers(path, given, CLASSES, has_novelty=False)
    rows = read(path)
    assert [one["path"] for one in rows] == ["\\xff.jpg", *"abcde"]
    assert {len(one) for one in rows} == {8}
    assert [str(one["predicted_label_id"]) for one in rows] == ["-1", "-1", "2", "-1", "2", "2"]
    assert rows[0]["error"] == "a\rb"
