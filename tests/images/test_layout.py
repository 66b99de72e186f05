"""What a folder of images means."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.errors import DataError
from headstart.images.labels import Entry
from headstart.images.layout import scan
from headstart.images.sources import link_folder


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")


def error(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        scan(folder)
    return str(caught.value)


def test_class_folders_nested_with_litter(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "cat/deep/er/2.jpg", "Ünï cödé/3", "cat/Thumbs.db", "dog/.hidden")
    touch(tmp_path, "__MACOSX/cat/1.jpg", ".git/x.jpg", "dog/.DS_Store", "dog/desktop.ini")
    touch(tmp_path, "dog/4.jpg", "README.md", "stray.JPG", "dog/notes.txt")
    layout = scan(tmp_path)
    assert [(entry.path, entry.label) for entry in layout.entries] == [
        ("cat/1.jpg", "cat"),
        ("cat/deep/er/2.jpg", "cat"),
        ("dog/4.jpg", "dog"),
        ("dog/notes.txt", "dog"),
        ("Ünï cödé/3", "Ünï cödé"),
    ]
    assert layout.strays == ["stray.JPG"]


def test_links_are_followed_and_loops_survived(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/5.jpg", "data/cat/1.jpg", "data/dog/2.jpg")
    data = tmp_path / "data"
    (data / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "cat" / "loop").symlink_to(data / "cat")
    (data / "cat" / "self").symlink_to(data / "cat" / "self")
    (data / "dog" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (data / "dog" / "up").symlink_to(data)
    os.mkfifo(data / "dog" / "pipe")
    paths = [entry.path for entry in scan(data).entries]
    assert paths[:3] == ["cat/1.jpg", "cat/linked/5.jpg", "dog/2.jpg"]
    assert all("loop" not in path and "self" not in path and "pipe" not in path for path in paths)


@pytest.mark.parametrize("split", ["", "train/"])
def test_class_folders_that_link_to_one_another_are_walked_once_a_class(
    tmp_path: Path, split: str
) -> None:
    # All paths through nine folders that link to each other are 9! and more.
    names = "abcdefghi"
    touch(tmp_path, "elsewhere/x.jpg", *(f"data/{split}{name}/1.jpg" for name in names))
    touch(tmp_path, *(["data/test/a/1.jpg"] if split else []))
    data = tmp_path / "data"
    for name in names:
        here = data / split / name
        (here / "0 also").symlink_to(here / "own")
        (here / "own").mkdir()
        (here / "own" / "elsewhere").symlink_to(tmp_path / "elsewhere")
        (here / "up").symlink_to(data / split)
        for other in names:
            (here / f"to {other}").symlink_to(data / split / other)
    (tmp_path / "target").mkdir()
    n_own = link_folder(data, tmp_path / "target") - bool(split)
    # Of each class the image of every class, and of the shared folder.
    assert n_own == 9 * (9 + 1)
    assert (tmp_path / "target" / split / "a" / "own" / "elsewhere" / "x.jpg").exists()
    assert (tmp_path / "target" / split / "i" / "own" / "elsewhere" / "x.jpg").exists()


def test_split_folders_are_kept_as_given(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "Val/a/3.jpg", "Val/b/4.jpg")
    touch(tmp_path, "test/a/5.jpg", "test/b/6.jpg", "train/stray.png")
    layout = scan(tmp_path)
    assert layout.entries[0] == Entry("Val/a/3.jpg", "a", "validation")
    assert {entry.split for entry in layout.entries} == {"train", "validation", "test"}
    assert layout.strays == ["train/stray.png"]


def test_train_and_test_alone_are_split_folders_but_train_and_bus_are_classes(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path, "one/train/a/1.jpg", "one/train/b/1.jpg", "one/test/a/1.jpg", "one/test/b/1.jpg"
    )
    touch(tmp_path, "two/train/1.jpg", "two/bus/1.jpg", "three/train/1.jpg", "three/test/1.jpg")
    assert {entry.label for entry in scan(tmp_path / "one").entries} == {"a", "b"}
    assert {entry.label for entry in scan(tmp_path / "two").entries} == {"train", "bus"}
    assert {entry.label for entry in scan(tmp_path / "three").entries} == {"train", "test"}


def test_labels_file(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "2.jpg", "unlisted.jpg")
    (tmp_path / "labels.csv").write_text(
        "\ufeffPath,label,split,group\n"
        "x/1.jpg,cat,Train,p1\n"
        '"2.jpg","dog, wild",,\n'
        "x\\3.jpg,cat,val,p1\n"
        "x/1.jpg,cat,train,p1\n"
    )
    assert scan(tmp_path).entries == [
        Entry("2.jpg", "dog, wild"),
        Entry("x/1.jpg", "cat", "train", "p1"),
        Entry("x/3.jpg", "cat", "validation", "p1"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label,split\na.jpg,cat,trian\n", "line 2 has 'trian'"),
        ("path,label,split\na.jpg,cat,trian\n", "one of train, validation (or val) and test"),
        ("path,class\na.jpg,cat\n", "begins with path, class"),
        ("path,label,gruop\na.jpg,cat,x\n", "begins with path, label, gruop"),
        ("", "begins with nothing"),
        ("path,label\n", "has no rows"),
        ("path,label\na.jpg,cat,dog\n", "line 2 has another number"),
        ("path,label\na.jpg\n", "line 2 has another number"),
        ("path,label\na.jpg,\n", "line 2"),
        ("path,label\n../a.jpg,cat\n", "'../a.jpg'"),
        ("path,label\n/etc/passwd,cat\n", "'/etc/passwd'"),
        ("path,label\nC:\\a.jpg,cat\n", "'C:/a.jpg'"),
        ("path,label\na.jpg,cat\na.jpg,dog\n", "as 'dog' after 'cat'"),
        ("path,label\na.jpg,cat\nb.jpg,cat\n", "there is only 'cat'"),
        ('path,label\n"a.jpg,cat\n', "cannot be read"),
    ],
)
def test_mistakes_in_labels_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    assert words in error(tmp_path)


def test_labels_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\na.jpg,Bär\n".encode("latin-1"))
    assert "must be comma-separated UTF-8 text" in error(tmp_path)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    assert "no folders in" in error(tmp_path)
    touch(tmp_path, "cat/1.jpg")
    assert "there is only 'cat'" in error(tmp_path)
    (tmp_path / "dog").mkdir()
    assert "every class folder must hold images, but 'dog' is empty" in error(tmp_path)


def test_an_unreadable_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.jpg", "dog/1.jpg")
    tmp_path.chmod(0o755)
    (tmp_path / "dog").chmod(0o000)
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from headstart.images.layout import scan\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "scan(Path(sys.argv[1]))\n"
    )
    for parent in list(tmp_path.parents)[:-2]:
        if parent.owner() == tmp_path.owner() and "pytest-" in str(parent):
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    (tmp_path / "dog").chmod(0o755)
    assert f"{tmp_path / 'dog'} is not: permission denied" in done.stderr
