"""What a folder of images means: which files are images of which class, split and group.

Three layouts: class folders; folders train, validation and test with class folders in each; and a
labels.csv beside the images. Knows nothing of what is in the files.
"""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from headstart.errors import DataError
from headstart.images.labels import LABELS_FILE, SPLIT_NAMES, Entry, read_labels
from headstart.images.walk import children, files_below
from headstart.params.images import Split

_IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2"}
    | {".heic", ".ico", ".ppm", ".pgm"}
)


@dataclass(frozen=True)
class Layout:
    """Files that are meant to be images, sorted by path, and pictures that no class claims."""

    entries: list[Entry]
    strays: list[str] = field(default_factory=list)


def scan(folder: Path) -> Layout:
    """Find the images of a folder in one of the three layouts.

    Raises:
        DataError: there are no classes, only one, or an empty one; or labels.csv has mistakes.
    """
    if (folder / LABELS_FILE).is_file():
        layout = Layout(read_labels(folder / LABELS_FILE))
    elif is_split_into_folders(folder):
        layout = _split_folders(folder)
    else:
        layout = _class_folders(folder)
    classes = sorted({entry.label for entry in layout.entries})
    if len(classes) < 2:
        found = f"there is only {classes[0]!r}" if classes else "there is none"
        raise DataError(
            f"a classifier needs at least two classes, but {found} in data.source: give each class "
            "a folder of its own directly below it"
        )
    return Layout(sorted(layout.entries, key=lambda entry: entry.path), sorted(layout.strays))


def is_split_into_folders(folder: Path) -> bool:
    """Whether the folders in `folder` are splits: train and at least one other, with folders."""
    names = [name for name, is_folder in children(folder) if is_folder]
    splits = {SPLIT_NAMES.get(name.lower()) for name in names}
    return (
        "train" in splits
        and None not in splits
        and len(splits) > 1
        and all(any(is_folder for _, is_folder in children(folder, name)) for name in names)
    )


def _class_folders(folder: Path, start: str = "", split: Split | None = None) -> Layout:
    here = children(folder, start)
    prefix = f"{start}/" if start else ""
    classes = [name for name, is_folder in here if is_folder]
    if not classes:
        raise DataError(
            "data.source must hold a folder for each class with images in it, but there are no "
            f"folders in {folder / start}: make class folders, or a {LABELS_FILE}"
        )
    strays = [prefix + name for name, is_folder in here if not is_folder and looks_like_image(name)]
    entries = []
    for name in classes:
        found = [Entry(path, name, split) for path in files_below(folder, prefix + name)]
        if not found:
            raise DataError(
                f"every class folder must hold images, but {prefix + name!r} is empty: add images "
                "or remove the folder"
            )
        entries += found
    return Layout(entries, strays)


def _split_folders(folder: Path) -> Layout:
    entries: list[Entry] = []
    strays: list[str] = []
    for name, is_folder in children(folder):
        if is_folder:
            part = _class_folders(folder, name, SPLIT_NAMES[name.lower()])
            entries += part.entries
            strays += part.strays
        elif looks_like_image(name):
            strays.append(name)
    return Layout(entries, strays)


def looks_like_image(name: str) -> bool:
    """Whether a file is called like an image; what it is, its bytes say."""
    return PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES
