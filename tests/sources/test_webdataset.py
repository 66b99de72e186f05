"""WebDataset shards become class folders."""

import json
from pathlib import Path

import pytest

from headstart.common.errors import DataError
from headstart.sources.archives import ArchiveLimits
from headstart.sources.webdataset import is_sharded, unpack_shards
from tests.sources.test_archives import Members, make_tar

LIMITS = ArchiveLimits(10**7, 10**4)


def unpacked(source: Path) -> dict[str, bytes]:
    target = source.parent / "target"
    target.mkdir()
    count = unpack_shards(source, target, LIMITS)
    files = [path for path in target.rglob("*") if path.is_file()]
    assert count == len(files)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in files}


def shard(folder: Path, name: str, members: Members) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    make_tar(folder / name, members)


def test_classes_by_cls_json_and_txt(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(
        folder,
        "0.tar",
        [
            ("a/1.jpg", b"1"),
            ("a/1.cls", b"cat\n"),
            ("a/2.seg.png", b"2"),
            ("a/2.json", json.dumps({"label": "dog", "width": 3}).encode()),
            ("b/1.webp", b"3"),
            ("b/1.txt", b"cat"),
            ("b/9.json", b"{}"),
        ],
    )
    shard(folder, "more/1.tar", [("a/1.cls", b"dog"), ("a/1.JPG", b"4")])
    assert is_sharded(folder)
    assert unpacked(folder) == {
        "cat/00000_a_1.jpg": b"1",
        "dog/00000_a_2.png": b"2",
        "cat/00000_b_1.webp": b"3",
        "dog/00001_a_1.jpg": b"4",
    }


def test_class_numbers_are_named_by_a_list(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(folder, "0.tar", [("1.jpg", b"1"), ("1.cls", b"1"), ("2.jpg", b"2"), ("2.cls", b"7")])
    (folder / "classes.txt").write_text("cat\ndog\n")
    assert set(unpacked(folder)) == {"dog/00000_1.jpg", "7/00000_2.jpg"}


@pytest.mark.parametrize("names", [("train-0.tar", "val-0.tar"), ("train/0.tar", "valid/0.tar")])
def test_shards_of_splits(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = tmp_path / "shards"
    for name in names:
        shard(folder, name, [("1.jpg", b"1"), ("1.cls", b"cat")])
    assert set(unpacked(folder)) == {"train/cat/00000_1.jpg", "validation/cat/00001_1.jpg"}


def test_shards_of_splits_in_an_outer_folder(tmp_path: Path) -> None:
    for name in ("shards/Train-0.tar", "shards/test1-0.tar"):
        shard(tmp_path / "all", name, [("1.jpg", b"1"), ("1.cls", b"cat")])
    assert set(unpacked(tmp_path / "all")) == {"train/cat/00000_1.jpg", "test/cat/00001_1.jpg"}


def test_a_shard_beside_those_of_splits_is_named(tmp_path: Path) -> None:
    for name in ("train-0.tar", "test-0.tar", "more-0.tar"):
        shard(tmp_path / "shards", name, [("1.jpg", b"1"), ("1.cls", b"cat")])
    with pytest.raises(DataError, match=r"but shards has more-0\.tar: rename it or move it out"):
        unpacked(tmp_path / "shards")


def test_a_single_shard(tmp_path: Path) -> None:
    shard(tmp_path, "a.tar", [("1.jpg", b"1"), ("1.cls", b"cat")])
    shard(tmp_path, "b.tar", [("cat/1.jpg", b"1"), ("dog/1.jpg", b"1")])
    assert is_sharded(tmp_path / "a.tar")
    assert not is_sharded(tmp_path / "b.tar")
    assert unpacked(tmp_path / "a.tar") == {"cat/00000_1.jpg": b"1"}


@pytest.mark.parametrize(
    ("members", "is_one"),
    [
        ([("1.jpg", b"1"), ("1.json", b'{"label": "cat"}')], True),
        ([("./1.txt", b"cat"), ("./1.seg.png", b"1")], True),
        ([("1.jpg", b"1"), ("2.txt", b"cat")], False),
        ([("cat/1.jpg", b"1"), ("cat/1.json", b"{}")], False),
        ([("labels.csv", b"path,label"), ("1.jpg", b"1"), ("1.txt", b"a cat")], False),
        ([("1.json", b"{}"), ("1.txt", b"1")], False),
    ],
)
def test_a_single_shard_without_cls(tmp_path: Path, members: Members, is_one: bool) -> None:
    shard(tmp_path, "a.tar", members)
    assert is_sharded(tmp_path / "a.tar") == is_one


@pytest.mark.parametrize(
    ("images", "chosen"),
    [
        (["1.jpg", "1.seg.png"], "1.jpg"),
        (["1.seg.png", "1.jpg"], "1.jpg"),
        (["1.left.png", "1.right.png"], "1.left.png"),
        (["1.jpg", "1.webp"], "1.jpg"),
    ],
)
def test_of_several_images_of_a_sample_the_plain_one_counts(
    tmp_path: Path, images: list[str], chosen: str
) -> None:
    shard(tmp_path, "a.tar", [*((name, name.encode()) for name in images), ("1.cls", b"cat")])
    assert list(unpacked(tmp_path / "a.tar").values()) == [chosen.encode()]


def test_a_list_of_classes_in_another_encoding(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shard(folder, "0.tar", [("1.jpg", b"1"), ("1.cls", b"1")])
    (folder / "classes.txt").write_bytes("Bär".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt must be UTF-8 text .*: save it as UTF-8"):
        unpacked(folder)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a/1.jpg", b"1"), ("a/1.json", b"{broken")], "'a/1' of 0.tar has none"),
        ([("1.jpg", b"1")], "must have its class as .cls, .json or .txt"),
        ([("1.jpg", b"1"), ("1.cls", b"../evil")], "usable as a folder name"),
        ([("1.jpg", b"1"), ("1.cls", b".")], "usable as a folder name"),
        ([("1.jpg", b"1"), ("1.cls", b"a"), ("2.jpg", b"2"), ("2.cls", b"a"), ("1.jpg", b"3"),
          ("1.cls", b"a")], "0.tar has '/1' twice"),
        ([("1.jpg", b"1" * 10**7), ("1.cls", b"cat")], "may be a compression bomb"),
    ],
)  # fmt: skip
def test_mistakes_in_shards(tmp_path: Path, members: Members, words: str) -> None:
    shard(tmp_path / "shards", "0.tar", members)
    with pytest.raises(DataError) as caught:
        unpacked(tmp_path / "shards")
    assert words in str(caught.value)


def test_hostile_keys_stay_inside(tmp_path: Path) -> None:
    members = [
        ("../../evil.jpg", b"1"),
        ("../../evil.cls", b"cat"),
        ("/x.jpg", b"2"),
        ("/x.cls", b"b"),
    ]
    shard(tmp_path / "shards", "0.tar", members)
    assert set(unpacked(tmp_path / "shards")) == {"cat/00000_.._.._evil.jpg", "b/00000_x.jpg"}
