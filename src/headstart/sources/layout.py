"""What a folder of images means: which files are images of which class, split and group.

Three layouts: class folders; folders train, validation and test with class folders in each; and a
labels.csv beside the images. Knows nothing of what is in the files.
"""

import bisect
import csv
import difflib
import itertools
import mimetypes
import posixpath
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from headstart.common.errors import DataError
from headstart.params.split import Split
from headstart.sources.folders import children, files_below, is_file

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
_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2"}
    | {".heic", ".ico", ".ppm", ".pgm"}
)
# The types that Python knows: those that a system knows differ.
_TYPES = mimetypes.MimeTypes()


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is meant to be an image: posix path below the folder, and what is said of it."""

    path: str
    label: str
    split: Split | None = None
    group: str | None = None


@dataclass(frozen=True)
class Layout:
    """Files that are meant to be images, sorted by path, and what else is called like one.

    `without_class` are images beside class folders. `left_out` are images that have no label and
    need none: those of an unlabelled test folder, and those that labels.csv does not list. `notes`
    are sentences for the user.
    """

    entries: list[Entry]
    without_class: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def scan(folder: Path, called: str | None = None, *, least_classes: int = 2) -> Layout:
    """Find the images of a folder in one of the three layouts.

    Args:
        called: what the user calls the folder, for errors.

    Raises:
        DataError: the folder cannot be meant as it is: there are no classes, only one, or an empty
            one; there is a folder beside the splits; or labels.csv has mistakes.
    """
    called = (called or str(folder)).rstrip("/")
    labels_files = _labels_files(folder)
    if len(labels_files) > 1:
        raise DataError(
            f"there must be one {LABELS_FILE}, but {called} has {_shown(labels_files)}: remove one"
        )
    if labels_files:
        layout = _scan_listed(folder, labels_files[0], called)
    elif splits := split_folders(folder):
        layout = _scan_splits(folder, splits, called)
    else:
        layout = _scan_classes(folder, "", None, called)
    classes = sorted({entry.label for entry in layout.entries})
    if len(classes) < least_classes:
        found = f"there is only {classes[0]!r}" if classes else "there is none"
        raise DataError(
            f"a classifier needs at least two classes, but {found} in {called}: give each class "
            f"a folder of its own directly below it, or write a {LABELS_FILE}"
        )
    # Folders whose names differ only in how Unicode composes them are one class.
    spelled: dict[str, set[str]] = defaultdict(set)
    for entry in layout.entries:
        if not entry.label.isascii():
            parts = entry.path.split("/")[:-1]
            spelled[entry.label].update(part for part in parts if composed(part) == entry.label)
    merged = [
        f"folders called {label!r} in composed and in decomposed Unicode are one class"
        for label, names in sorted(spelled.items())
        if len(names) > 1
    ]
    return Layout(
        sorted(layout.entries, key=lambda entry: entry.path),
        sorted(layout.without_class),
        sorted(layout.left_out),
        [*layout.notes, *merged],
    )


def _scan_classes(folder: Path, start: str, split: Split | None, called: str) -> Layout:
    names = _folders(folder, start)
    if not names:
        raise DataError(
            "data.source must hold a folder for each class with images in it, but there are no "
            f"folders in {called}: make class folders, or a {LABELS_FILE}"
        )
    entries = []
    for name in names:
        below = posixpath.join(start, name)
        found = [Entry(path, composed(name), split) for path in files_below(folder, below)]
        if not found:
            raise DataError(
                f"every class folder must hold images, but {called}/{below} is empty: add images "
                "or remove the folder"
            )
        entries += found
    inner = {name: splits_among(_folders(folder, posixpath.join(start, name))) for name in names}
    notes = [
        f"{_shown(f'{name}/{part}' for part in parts)} are not taken for splits: those stand "
        "outside the class folders, as in train/<class>"
        for name, parts in inner.items()
        if len(set(parts.values())) > 1
    ]
    return Layout(
        entries, [posixpath.join(start, name) for name in _images(folder, start)], notes=notes[:1]
    )


def _scan_splits(folder: Path, splits: dict[str, Split], called: str) -> Layout:
    beside = [
        name
        for name in _folders(folder)
        if name not in splits and any(map(has_image_suffix, files_below(folder, name)))
    ]
    if beside:
        raise DataError(
            f"beside folders of splits ({_shown(splits)}) there may be no others with images, but "
            f"{called} has {_shown(beside)}: move them out of {called}, or, if they are classes, "
            "into each split"
        )
    found = Layout([], _images(folder))
    classes: set[str] = set()
    for name in sorted(splits, key=lambda name: (splits[name] != "train", name)):
        files = list(files_below(folder, name))
        start = outer_folder(folder, name, classes)
        here = [composed(inner) for inner in _folders(folder, start)]
        if splits[name] == "train":
            classes.update(here)
        known = {_folded(label) for label in classes}
        unknown = [label for label in here if _folded(label) not in known]
        is_unlabelled = not here or (len(here) == 1 and len(unknown) == 1)
        if not files and not here:
            continue
        if is_unlabelled and splits[name] == "test":
            images = [path for path in files if has_image_suffix(path)] or files
            found.left_out.extend(images)
            some = _counted(images, "image", "images")
            path = shlex.quote(f"data/fetched/{name}")
            found.notes.append(
                f"{name}/ holds {some} without class folders: left out; `headstart predict {path}` "
                f"classifies {'it' if len(images) == 1 else 'them'}"
            )
        elif is_unlabelled or unknown:
            has = f"has {_shown(unknown)}, no class of train" if unknown else "has no class folders"
            raise DataError(
                f"a folder of a split must hold the class folders that train holds, but "
                f"{called}/{start} {has}: sort its images into class folders, list all images in "
                f"a {LABELS_FILE}, or move it out of {called}"
            )
        else:
            part = _scan_classes(folder, start, splits[name], called)
            found.entries.extend(part.entries)
            found.without_class.extend(part.without_class)
            if start != name:
                found.notes.append(f"everything in {name}/ is in {start}/: what is in there counts")
    if {entry.split for entry in found.entries} == {"train"}:
        # No split is given; so it is as if the class folders stood alone.
        return replace(found, entries=[replace(entry, split=None) for entry in found.entries])
    return found


def _scan_listed(folder: Path, name: str, called: str) -> Layout:
    entries = _read_labels(folder / name, f"{called}/{name}")
    listed = {entry.path for entry in entries}
    files = list(files_below(folder))
    left_out = [path for path in files if has_image_suffix(path) and path not in listed]
    # Listed files may be hidden, or lie where two links lead.
    missing = sorted(path for path in listed.difference(files) if not is_file(folder / path))
    notes = []
    if left_out:
        some = _counted(left_out, "image is", "images are")
        notes.append(f"{some} not in {name}, such as {left_out[0]}: left out")
    if missing:
        hint = _explain_missing(missing, files)
        hint = f" ({hint})" if hint else ""
        if len(missing) == len(listed):
            raise DataError(
                f"{called}/{name} must name images by their paths below its folder, but none of "
                f"its {len(listed):,} is there, such as {missing[0]!r}{hint}: correct the paths"
            )
        are = "is" if len(missing) == 1 else "are"
        notes.append(
            f"{len(missing):,} of the {len(listed):,} images in {name} {are} not there, such as "
            f"{missing[0]!r}{hint}"
        )
    return Layout(entries, [], left_out, notes)


def _read_labels(path: Path, called: str) -> list[Entry]:
    """Read a labels.csv; the paths of its images are spelled as on the disk.

    Args:
        called: what the file is called in errors.

    Raises:
        DataError: it has mistakes; the first is named by its line.
    """
    entries: dict[str, Entry] = {}
    on_disk: dict[str, str] | None = None
    try:
        # A byte order mark is what spreadsheets put there.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
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
                line = reader.line_num
                values = itertools.chain.from_iterable(value or "" for value in row.values())
                if not "".join(values).strip():
                    continue  # spreadsheets write lines of nothing but commas
                if None in row or None in row.values():
                    raise DataError(
                        f"{called} must have {len(columns)} values a line, but line {line} has "
                        "another number: quote values that hold commas"
                    )
                entry = _entry_of(row, line, called)
                if not is_file(path.parent / entry.path):
                    if on_disk is None:
                        on_disk = {composed(name): name for name in files_below(path.parent)}
                    plain = composed(entry.path)
                    entry = replace(entry, path=on_disk.get(plain, plain))
                former = entries.setdefault(entry.path, entry)
                if former != entry:
                    raise DataError(
                        f"{called} must name an image once, but line {line} names {entry.path!r} "
                        f"again, as {_described(entry)} after {_described(former)}: keep one"
                    )
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{called} must be comma-separated UTF-8 text, but cannot be read: {error}"
        ) from None
    if not entries:
        raise DataError(f"{called} must name images, but has no rows")
    return list(entries.values())


def _entry_of(row: dict[str, str], line: int, called: str) -> Entry:
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
    return Entry(posixpath.normpath(path), label, split, group)


def _described(entry: Entry) -> str:
    split = f" in {entry.split}" if entry.split else ""
    return f"{entry.label!r}{split}" + (f" of group {entry.group!r}" if entry.group else "")


def _explain_missing(missing: Sequence[str], files: Iterable[str]) -> str:
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


def check_class_names(layout: Layout, called: str) -> None:
    """Refuse classes that are called like a split, or that differ in letter case alone.

    Raises:
        DataError: there are such classes in the folder that the user calls `called`.
    """
    example = {entry.label: entry.path for entry in reversed(layout.entries)}
    keep = "or, if that is what the classes are called, set data.class_names: as_given"
    splits = sorted(splits_among(example))
    if splits:
        shown = ", ".join(f"{name!r}" for name in splits)
        raise DataError(
            f"a class may not be called like a split, but {called} has {shown}, such as "
            f"{example[splits[0]]}: put class folders into train, validation and test, or write a "
            f"{LABELS_FILE} with a column split; move unlabelled images out of {called} "
            f"(`headstart predict` classifies them); {keep}"
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(example):
        alike[_folded(label)].append(label)
    for names in alike.values():
        if len(names) > 1:
            shown = " and ".join(f"{name!r} ({example[name]})" for name in names)
            raise DataError(
                f"names of classes must differ by more than letter case and spaces, but {called} "
                f"has {shown}: give each class one name; {keep}"
            )


def check_class_files(layout: Layout, called: str) -> None:
    """Refuse classes whose files are no images by their names, such as annotations of the others.

    Raises:
        DataError: there are such classes, and others, in the folder that the user calls `called`.
    """
    with_images = {entry.label for entry in layout.entries if has_image_suffix(entry.path)}
    without: dict[str, str] = {}
    for entry in layout.entries:
        if entry.label not in with_images:
            kind, _ = _TYPES.guess_type(f"./{entry.path}")  # as it stands, `data:` begins a URL
            if kind is None or kind.startswith("image/"):
                with_images.add(entry.label)  # for all that names say
            without.setdefault(entry.label, entry.path)
    refused = sorted(without.keys() - with_images)
    if refused and with_images:
        raise DataError(
            f"every class must have images, but {called} has none of {refused[0]!r}, only files "
            f"such as {without[refused[0]]}: move them out of {called}; if they describe the other "
            "images, sort those into class folders"
        )


def is_labels_file(name: str) -> bool:
    """Return whether a file is called labels.csv, in any letter case."""
    return name.lower() == LABELS_FILE


def split_folders(folder: Path, start: str = "") -> dict[str, Split]:
    """Return the folders in `folder/start` that are splits: train with class folders in it, and
    others; none if there is no such train, or nothing but it.
    """
    splits = splits_among(_folders(folder, start))
    trains = [name for name, split in splits.items() if split == "train"]
    if len(splits) > 1 and any(_folders(folder, posixpath.join(start, name)) for name in trains):
        return splits
    return {}


def outer_folder(folder: Path, start: str = "", but: Collection[str] = ()) -> str:
    """Return the path below `folder` of what holds the layout: `start`, or the innermost of the
    folders below it that are alone in one another.

    A single folder with images in it is a class. So is one whose name is in `but`.
    """
    seen = {(folder / start).resolve()}
    while True:
        names, has_images = _folders(folder, start), bool(_images(folder, start))
        if len(names) != 1 or has_images or names[0] in but or _labels_files(folder, start):
            return start
        inner = posixpath.join(start, names[0])
        holds_layout = _labels_files(folder, inner) or split_folders(folder, inner)
        holds_classes = _folders(folder, inner) and not _images(folder, inner)
        if not (holds_layout or holds_classes) or (folder / inner).resolve() in seen:
            return start
        start = inner
        seen.add((folder / start).resolve())


def has_image_suffix(name: str) -> bool:
    """Return whether a file is called like an image; what it is, its bytes say."""
    return PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES


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


def _counted(names: Collection[str], one: str, several: str) -> str:
    return f"{len(names):,} {one if len(names) == 1 else several}"


def _folders(folder: Path, start: str = "") -> list[str]:
    return [name for name, is_folder in children(folder, start) if is_folder]


def _labels_files(folder: Path, start: str = "") -> list[str]:
    here = children(folder, start)
    return [name for name, is_folder in here if not is_folder and is_labels_file(name)]


def _images(folder: Path, start: str = "") -> list[str]:
    here = children(folder, start)
    return [name for name, is_folder in here if not is_folder and has_image_suffix(name)]


def _folded(label: str) -> str:
    """Return a name as it is compared: without letter case, width and surplus spaces."""
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def _shown(names: Iterable[str]) -> str:
    *first, last = sorted(names)
    return f"{', '.join(first)} and {last}" if first else last
