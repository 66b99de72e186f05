"""labels.csv: which image is of which class, and, if the user says so, of which split and group."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headstart.errors import DataError
from headstart.params.images import Split

LABELS_FILE = "labels.csv"
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_REQUIRED, _OPTIONAL = ("path", "label"), ("split", "group")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is meant to be an image: posix path below the folder, and what is said of it."""

    path: str
    label: str
    split: Split | None = None
    group: str | None = None


def read_labels(path: Path) -> list[Entry]:
    """Read a labels.csv.

    Raises:
        DataError: it has mistakes; the first is named by its line.
    """
    entries: dict[str, Entry] = {}
    try:
        # A byte order mark is what spreadsheets put there.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for line, row in _rows(csv.DictReader(stream, strict=True)):
                entry = _entry(row, line)
                former = entries.setdefault(entry.path, entry)
                if former != entry:
                    raise DataError(
                        f"{LABELS_FILE} must name an image once, but line {line} names "
                        f"{entry.path!r} again, as {entry.label!r} after {former.label!r}: keep one"
                    )
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{LABELS_FILE} must be comma-separated UTF-8 text, but cannot be read: {error}"
        ) from None
    if not entries:
        raise DataError(f"{LABELS_FILE} must name images, but has no rows")
    return list(entries.values())


def _rows(reader: "csv.DictReader[str]") -> Iterator[tuple[int, dict[str, str]]]:
    columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
    if not set(_REQUIRED) <= set(columns) <= {*_REQUIRED, *_OPTIONAL}:
        raise DataError(
            f"{LABELS_FILE} must begin with the columns path, label and, if wanted, split and "
            f"group, but begins with {', '.join(columns) or 'nothing'}"
        )
    reader.fieldnames = columns
    for row in reader:
        if None in row or None in row.values():
            raise DataError(
                f"{LABELS_FILE} must have {len(columns)} values a line, but line "
                f"{reader.line_num} has another number: quote values that hold commas"
            )
        yield reader.line_num, row


def _entry(row: dict[str, str], line: int) -> Entry:
    path, label = row["path"].strip().replace("\\", "/").removeprefix("./"), row["label"].strip()
    if not path or not label:
        raise DataError(f"{LABELS_FILE} must give every image a path and a label; line {line} not")
    if path.startswith("/") or ":" in path.split("/")[0] or ".." in path.split("/"):
        raise DataError(
            f"{LABELS_FILE} must name images inside its folder, but line {line} names {path!r}"
        )
    named = row.get("split", "").strip()
    if named and named.lower() not in SPLIT_NAMES:
        raise DataError(
            f"a split in {LABELS_FILE} must be one of train, validation (or val) and test, or "
            f"empty, but line {line} has {named!r}"
        )
    return Entry(path, label, SPLIT_NAMES.get(named.lower()), row.get("group", "").strip() or None)
