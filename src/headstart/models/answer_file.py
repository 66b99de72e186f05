"""Answers for many files as one file that other programs read: CSV, JSON lines or Parquet."""

import contextlib
import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from headstart.common.errors import DataError
from headstart.common.files import as_cell, replacing
from headstart.models.answers import answers_table
from headstart.models.predict import Prediction

SUFFIXES = (".csv", ".jsonl", ".parquet")
_CHUNK_ROWS = 256


def check_suffix(path: Path) -> None:
    """Refuse a file whose format its name does not say.

    Raises:
        DataError: it ends in none of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"answers are written to a file that ends in {', '.join(SUFFIXES)}, but got {path}: "
            "name it by one of these formats"
        )


def write_answers(
    path: Path,
    predictions: Iterable[Prediction],
    classes: Sequence[str],
    **options: Any,
) -> None:
    r"""Write a row a file atomically and in bounded memory, in the order in which they come.

    The columns are `path`, those that the server answers with, and `error`. A byte of a path that
    is no UTF-8 is written as `\xff`.

    Args:
        options: of `answers_table`.

    Raises:
        DataError: the format is not known.
    """
    check_suffix(path)
    chunks = _tables(predictions, classes, options)
    write = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}
    with replacing(path) as temporary:
        write[path.suffix.lower()](temporary, chunks)


def answer_rows(
    predictions: Iterable[Prediction], classes: Sequence[str], **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield the rows of such a file: column → value."""
    for table in _tables(predictions, classes, options):
        for row in table.to_dict("records"):
            yield {str(name): value for name, value in row.items()}


def _tables(
    predictions: Iterable[Prediction],
    classes: Sequence[str],
    options: dict[str, Any],
) -> Iterator[pd.DataFrame]:
    """Tables of some rows each; the first one may be empty, and has the columns."""
    waiting = iter(predictions)
    chunk = list(islice(waiting, _CHUNK_ROWS))
    while True:
        answers = [one.answer for one in chunk]
        table = answers_table(answers, classes, with_reasons=True, **options)
        paths = [os.fsencode(one.path).decode(errors="backslashreplace") for one in chunk]
        table.insert(0, "path", paths)
        yield table
        if not (chunk := list(islice(waiting, _CHUNK_ROWS))):
            return


def _write_csv(path: Path, tables: Iterable[pd.DataFrame]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        # With lines that end in \n, the writer would leave a \r in a cell unquoted.
        ended = SimpleNamespace(write=lambda line: stream.write(line[:-2] + "\n"))
        writer = csv.writer(ended, lineterminator="\r\n")
        for number, table in enumerate(tables):
            if number == 0:
                writer.writerow(map(as_cell, table.columns))
            for row in table.itertuples(index=False):
                writer.writerow([as_cell(_text(value)) for value in row])


def _text(value: Any) -> Any:
    """A list, of the best classes, as it stands in one cell."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def _write_json_lines(path: Path, tables: Iterable[pd.DataFrame]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for table in tables:
            for row in table.to_dict("records"):
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, tables: Iterable[pd.DataFrame]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {
        "path": pa.string(),
        "predicted_label": pa.string(),
        "predicted_label_id": pa.int64(),
        "error": pa.string(),
        "top_labels": pa.list_(pa.string()),
        "top_probabilities": pa.list_(pa.float64()),
    }
    with contextlib.ExitStack() as stack:
        writer = None
        for table in tables:
            schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in table.columns])
            if writer is None:
                writer = stack.enter_context(parquet.ParquetWriter(path, schema))
            writer.write_table(pa.Table.from_pylist(table.to_dict("records"), schema=schema))
