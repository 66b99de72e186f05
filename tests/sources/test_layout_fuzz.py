"""Folders and labels.csv files of every shape: understood, or refused with what is wrong."""

import posixpath
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from headstart.common.errors import DataError
from headstart.params.data import DataParams
from headstart.sources.data_source import fetch
from headstart.sources.layout import Layout, has_image_suffix, scan, splits_among

CLASSES = ["cat", "dog", "Cat", "Ç", "Ç", "a b", "a  b", "bus"]
SPLITS = [
    "train",
    "Training",
    "train.X1",
    "val",
    "valid",
    "dev",
    "eval",
    "test",
    "test1",
    "TESTING",
]
SPLITS += ["seg_train", "seg_test", "test_set", "training_set", "train_small", "val_small"]
OTHERS = ["archive", "images", "samples", "__MACOSX", ".git", "labels.csv"]
FILES = ["1.jpg", "2.PNG", "é.jpg", "é.jpg", "no suffix", "notes.txt", ".3.jpg"]
# Shapes that people have, and any others.
SHAPES = [[CLASSES], [SPLITS, CLASSES], [OTHERS, CLASSES], [OTHERS, SPLITS, CLASSES], [SPLITS]]
SHAPES += [[SPLITS, SPLITS, CLASSES], [SPLITS, OTHERS], [CLASSES, SPLITS], []]


@st.composite
def paths(draw: st.DrawFn) -> list[str]:
    """Paths of files, most of one shape."""
    # A level has few names, each of which many paths go by.
    levels = [
        draw(st.lists(st.sampled_from(names), min_size=1 + (names is CLASSES), max_size=3))
        for names in draw(st.sampled_from(SHAPES))
    ]
    shaped = st.tuples(*map(st.sampled_from, levels)).map(list)
    found = draw(st.lists(st.tuples(shaped, st.sampled_from(FILES)), min_size=4, max_size=12))
    anything = st.lists(st.sampled_from([*CLASSES, *SPLITS, *OTHERS]), max_size=3)
    odd = st.tuples(anything, st.sampled_from([*FILES, "Labels.csv"]))
    found += draw(st.lists(odd, max_size=1))
    return ["/".join([*folders, name]) for folders, name in found]


@st.composite
def labels(draw: st.DrawFn, listed: list[str]) -> str:
    """A labels.csv of some of the paths, in other words or spelled another way."""
    ways: list[Callable[[str], str]] = [
        str,
        lambda path: f"./{path}",
        lambda path: path.replace("/", "//"),
        lambda path: path.replace("/", "/./"),
        lambda path: path.replace("/", "\\"),
        lambda path: unicodedata.normalize("NFD", path),
        posixpath.basename,
        lambda path: path.rpartition(".")[0],
    ]
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([*listed, "gone.jpg"]),
                st.sampled_from(ways),
                st.sampled_from([*[""] * 15, "cat", "Cat", "test"]),
                st.sampled_from([*[""] * 9, "train", "TEST", "eval"]),
            ),
            min_size=1,
        )
    )
    # Most labels go by the path, so that lines agree.
    lines = [f"{way(path)},{label or len(path) % 3},{split}" for path, way, label, split in rows]
    return "\n".join(["path,label,split", *lines])


def write(folder: Path, files: list[str]) -> list[str]:
    """Write the files whose paths are free; returns those."""
    written = []
    for path in files:
        target = folder / path
        if not target.exists() and all(not p.is_file() for p in target.parents):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.encode())
            written.append(path)
    return written


def images_below(folder: Path) -> Iterator[str]:
    """Every file that is called like an image and is neither hidden nor left by a system."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if path.is_file() and has_image_suffix(path.name) and not hidden:
            yield "/".join(parts)


def outcome(root: Path, source: Path) -> Layout | str:
    """What fetch makes of a source: the layout of what it fetched, or the reason why not."""
    target = root / "fetched"
    shutil.rmtree(target, ignore_errors=True)
    try:
        fetch(root, target, DataParams(source=str(source)))
    except DataError as error:
        assert not target.exists()
        return str(error)
    return scan(target)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_image_is_accounted_for_or_the_reason_is_told(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, source = Path(folder), Path(folder) / "own"
        files = write(source, data.draw(paths()))
        table = source / "labels.csv"
        if not table.exists() and data.draw(st.integers(0, 2)) == 2:
            table.write_text(data.draw(labels(files)), encoding="utf-8")
        images = set(images_below(source))
        found = outcome(root, source)
        archive = Path(shutil.make_archive(str(root / "own"), "zip", source))
        from_archive = outcome(root, archive)
        if isinstance(found, str):
            assert str(source) in found
            assert ".fetched." not in found
            named = re.findall(rf"{source}/([^:;,]*?)(?= has| must| is empty| \(|[:;,]|$)", found)
            assert all((source / name).exists() for name in named), found
            # Archives leave out folders in which nothing counts.
            assert isinstance(from_archive, str) or "is empty" in found or "no folders" in found
            return
        assert isinstance(from_archive, Layout)
        assert from_archive.entries == found.entries
        assert from_archive.left_out == found.left_out
        accounted = [entry.path for entry in found.entries] + found.without_class + found.left_out
        assert len({posixpath.normpath(path) for path in accounted}) == len(accounted)
        # What a single outer folder holds has come out of it.
        images_in = set(images_below(root / "fetched"))
        assert len(images_in) == len(images)
        assert images_in <= set(accounted)
        classes = {entry.label for entry in found.entries}
        assert not splits_among(classes)
        assert len({unicodedata.normalize("NFC", name).casefold() for name in classes}) == len(
            classes
        )
        assert len(classes) > 1


WORDS = ["train", "Training", "train_set", "valid", "Val-Images", "test", "test1", "holdout"]
OTHER_NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=20)
DECORATIONS = st.text("abXY é図", max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), min_size=2, unique=True),
    DECORATIONS,
    DECORATIONS,
    st.sampled_from("_-. 7"),
    st.lists(OTHER_NAMES),
)
def test_names_of_splits_are_told_whatever_stands_around_or_beside_them(
    words: list[str], before: str, after: str, separator: str, others: list[str]
) -> None:
    known = splits_among(words)
    assert known.keys() == set(words)
    assume(len(set(known.values())) > 1)
    if before:
        before += separator
    else:
        after = separator + after
    decorated = {before + word + (after if not before else ""): known[word] for word in words}
    assume(len(set(splits_among(others).values())) < 2)
    found = splits_among([*decorated, *others])
    assert decorated.items() <= found.items()
