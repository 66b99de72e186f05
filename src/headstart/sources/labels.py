"""labels.csv: which image is of which class, and, if the user says so, of which split and group."""

import bisect
import csv
import difflib
import itertools
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headstart.common.errors import DataError
from headstart.params.split import Split
from headstart.sources.walk import files_below, is_file

LABELS_FILE = "labels.csv"
# Those called eval are validation: should they be meant for the test, nothing has leaked into it.
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
}
_SPLIT_SUFFIXES = ("", "set", "data", "dataset", "images", "image", "imgs", "img", "split")
_SPLIT_WORDS = {name + end: split for name, split in SPLIT_NAMES.items() for end in _SPLIT_SUFFIXES}
_REQUIRED, _OPTIONAL = ("path", "label"), ("split", "group")
_MOST_NAMES_COMPARED = 2000
_MOST_REPAIRS_TRIED = 50


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is meant to be an image: posix path below the folder, and what is said of it."""

    path: str
    label: str
    split: Split | None = None
    group: str | None = None


def composed(text: str) -> str:
    """Return `text` in composed Unicode (NFC): macOS may write é as two characters, others one."""
    return unicodedata.normalize("NFC", text)


def splits_among(names: Collection[str]) -> dict[str, Split]:
    """Return those of `names` that say a split, in any case, with the split.

    Numbers, punctuation and words such as `set` or `images` do not matter (`test1`, `Test-Set`).
    Where these names do not say two splits, so do those that begin or end with such a word and are
    equal without it, if the words mean different splits (`seg_train`, `seg_test`; `trainA`,
    `testA`): `toy train` beside `toy car` is no split.
    """
    found = {name: split for name in names if (split := _split_named(name))}
    if len(set(found.values())) > 1:
        return found
    # What is left of a name without its word, and the side that the word was on.
    alike: dict[tuple[str, str], dict[str, Split]] = defaultdict(dict)
    for name in names:
        words = _words(name)
        for cut in range(1, len(words)):
            if split := _SPLIT_WORDS.get("".join(words[:cut])):
                alike["start", "".join(words[cut:])][name] = split
            if split := _SPLIT_WORDS.get("".join(words[cut:])):
                alike["end", "".join(words[:cut])][name] = split
    for partners in alike.values():
        if len(set(partners.values())) > 1:
            found = partners | found
    return found


def _split_named(name: str) -> Split | None:
    words = _words(name)
    return _SPLIT_WORDS.get("".join(words)) if len(words) <= 2 else None


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case: `trainA.2` is train and a."""
    text = unicodedata.normalize("NFKC", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return re.findall(r"[^\W\d_]+", text.lower())


def read_labels(path: Path, called: str | None = None) -> list[Entry]:
    """Read a labels.csv; the paths of its images are spelled as on the disk.

    Args:
        called: what the file is called in errors.

    Raises:
        DataError: it has mistakes; the first is named by its line.
    """
    called = called or str(path)
    entries: dict[str, Entry] = {}
    on_disk: dict[str, str] | None = None
    try:
        # A byte order mark is what spreadsheets put there.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for line, row in _rows(csv.DictReader(stream, strict=True), called):
                named, label, split, group = _values(row, line, called)
                if not is_file(path.parent / named):
                    if on_disk is None:
                        on_disk = {composed(name): name for name in files_below(path.parent)}
                    named = on_disk.get(composed(named), composed(named))
                entry = Entry(named, label, split, group)
                former = entries.setdefault(named, entry)
                if former != entry:
                    raise DataError(
                        f"{called} must name an image once, but line {line} names {named!r} again, "
                        f"as {_said(entry)} after {_said(former)}: keep one"
                    )
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{called} must be comma-separated UTF-8 text, but cannot be read: {error}"
        ) from None
    if not entries:
        raise DataError(f"{called} must name images, but has no rows")
    return list(entries.values())


def _rows(reader: "csv.DictReader[str]", called: str) -> Iterator[tuple[int, dict[str, str]]]:
    columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
    known = set(_REQUIRED) <= set(columns) <= {*_REQUIRED, *_OPTIONAL}
    if not known or len(set(columns)) < len(columns):
        separate = len(columns) == 1 and re.search("[;\t|]", columns[0])
        remedy = "separate them with commas" if separate else "give each of them once"
        raise DataError(
            f"{called} must begin with the columns path, label and, if wanted, split and "
            f"group, but begins with {', '.join(columns) or 'nothing'}: {remedy}"
        )
    reader.fieldnames = columns
    for row in reader:
        values = itertools.chain.from_iterable(value or "" for value in row.values())
        if not "".join(values).strip():
            continue  # spreadsheets write lines of nothing but commas
        if None in row or None in row.values():
            raise DataError(
                f"{called} must have {len(columns)} values a line, but line "
                f"{reader.line_num} has another number: quote values that hold commas"
            )
        yield reader.line_num, row


def _values(
    row: dict[str, str], line: int, called: str
) -> tuple[str, str, Split | None, str | None]:
    path, label = row["path"].strip().replace("\\", "/"), composed(row["label"].strip())
    if not path or not label:
        raise DataError(
            f"{called} must give every image a path and a label, but line {line} does not"
        )
    parts = path.split("/")
    if path.startswith("/") or ":" in parts[0] or ".." in parts or "\0" in path:
        raise DataError(
            f"{called} must name images inside its folder, but line {line} names {path!r}"
        )
    named, group = row.get("split", "").strip(), row.get("group", "").strip() or None
    for value in (path, label, group or ""):
        # They would end lines of the tables that are written of them.
        if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in value):
            raise DataError(
                f"{called} must hold no control characters within its values, but line {line} has "
                f"{value!r}: take them out"
            )
    split = _split_named(named)
    if named and not split:
        raise DataError(
            f"a split in {called} must be empty or one of {', '.join(SPLIT_NAMES)}, but line "
            f"{line} has {named!r}"
        )
    return posixpath.normpath(path), label, split, group


def _said(entry: Entry) -> str:
    split = f" in {entry.split}" if entry.split else ""
    return f"{entry.label!r}{split}" + (f" of group {entry.group!r}" if entry.group else "")


def explain_missing(missing: Sequence[str], files: Iterable[str]) -> str:
    """Say what `files` has that is nearest to the first of the missing paths, and what would
    make all of them paths of `files`; empty if nothing is near.
    """
    there = sorted({composed(path) for path in files})
    first, all_are = missing[0], "all are" if len(missing) > 1 else "it is"
    folder, name = posixpath.split(first)
    stem, suffix = posixpath.splitext(name)
    pairs = map(posixpath.split, there)
    alike = (p for p in pairs if p[1] == name or p[1].startswith((f"{name}.", f"{stem}.")))
    candidates = list(itertools.islice(alike, _MOST_REPAIRS_TRIED))
    known = set(there)
    # One change of folder and ending that fixes the first path may fix all of them.
    for other_folder, other in candidates:
        before = other_folder.removesuffix(folder) if other_folder.endswith(folder) else ""
        dropped = "" if before else folder.removesuffix(other_folder)
        before, dropped = (f"{part.rstrip('/')}/" if part else "" for part in (before, dropped))
        old = "" if other.startswith(name) else suffix
        new = other.removeprefix(name if other.startswith(name) else stem)
        if all(
            path.startswith(dropped)
            and path.endswith(old)
            and before + path.removeprefix(dropped).removesuffix(old) + new in known
            for path in missing
        ):
            ending = f"with {new!r} " + (f"instead of {old!r}" if old else "after each path")
            changes = [
                f"with {before!r} before each path" if before else "",
                f"without {dropped!r} before each path" if dropped else "",
                ending if new else "",
            ]
            near = posixpath.join(other_folder, other)
            repair = " and ".join(filter(None, changes))
            return f"the nearest name is {near!r}; {all_are} there {repair}"
    start = max(0, bisect.bisect(there, first) - _MOST_NAMES_COMPARED // 2)
    compared = there[start : start + _MOST_NAMES_COMPARED]
    near = next(iter(difflib.get_close_matches(first, compared, n=1)), "")
    near = near or next((posixpath.join(*pair) for pair in candidates), "")
    said = [f"the nearest name is {near!r}"] if near else []
    folded = {path.casefold() for path in there}
    if all(path.casefold() in folded for path in missing):
        said.append(f"{all_are} there in another letter case")
    return "; ".join(said)
