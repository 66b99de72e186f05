"""Archives are hostile until shown otherwise."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.common.errors import DataError
from headstart.sources.archives import ArchiveLimits, is_archive, unpack

LIMITS = ArchiveLimits(max_bytes=1_000_000, max_members=100)
Members = list[tuple[str, bytes]]
GOOD: Members = [("cat/1.jpg", b"one"), ("dog/deep/2.jpg", b"two" * 1000), ("Bär/3.jpg", b"")]


def make_zip(path: Path, members: Members) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def make_tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def make_special(path: Path, kind: bytes, name: str, link: str = "") -> Path:
    with tarfile.open(path, "w") as archive:
        good = tarfile.TarInfo("cat/1.jpg")
        good.size = 3
        archive.addfile(good, io.BytesIO(b"one"))
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return path


def unpacked(archive: Path, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    target = archive.parent / "target"
    target.mkdir()
    count = unpack(archive, target, limits)
    found = {p.relative_to(target).as_posix(): p for p in target.rglob("*") if not p.is_dir()}
    assert not any(path.is_symlink() for path in found.values())
    assert count == len(found)
    return {name: path.read_bytes() for name, path in found.items()}


def refusal(archive: Path, limits: ArchiveLimits = LIMITS) -> str:
    before = set(archive.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        unpacked(archive, limits)
    target = archive.parent / "target"
    outside = {p for p in set(archive.parent.rglob("*")) - before if not p.is_relative_to(target)}
    assert not outside
    return str(caught.value)


MAKERS: dict[str, Callable[[Path, Members], Path]] = {
    "zip": make_zip,
    "tar": make_tar,
    "tar.gz": lambda path, members: make_tar(path, members, "w:gz"),
    "tar.bz2": lambda path, members: make_tar(path, members, "w:bz2"),
    "tar.xz": lambda path, members: make_tar(path, members, "w:xz"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_files_come_out_whatever_the_archive_is_called(tmp_path: Path, kind: str) -> None:
    ignored: Members = [
        ("__MACOSX/cat/1.jpg", b"x"),
        ("cat/.DS_Store", b"x"),
        ("./cat/4.jpg", b"4"),
    ]
    archive = MAKERS[kind](tmp_path / "archive", [*GOOD, *ignored])
    assert is_archive(archive)
    assert unpacked(archive) == dict([*GOOD, ("cat/4.jpg", b"4")])


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/evil", "'/etc/evil' has an absolute path"),
        ("../evil", "'../evil' leaves its folder by '..'"),
        ("cat/../../evil", "leaves its folder"),
        ("cat\\..\\..\\evil", "leaves its folder"),
        ("C:\\evil", "has an absolute path"),
        ("\\evil", "has an absolute path"),
    ],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, kind: str, name: str, words: str) -> None:
    archive = MAKERS[kind](tmp_path / "archive", [*GOOD, (name, b"evil")])
    assert words in refusal(archive)


@pytest.mark.parametrize(
    ("kind", "name", "link", "words"),
    [
        (tarfile.SYMTYPE, "cat/evil", "/etc/passwd", "links to '/etc/passwd'"),
        (tarfile.SYMTYPE, "cat/evil", "../../x", "links to '../../x', which lies outside"),
        (tarfile.LNKTYPE, "cat/evil", "../x", "links to '../x'"),
        (tarfile.CHRTYPE, "cat/null", "", "'cat/null' is a device"),
        (tarfile.BLKTYPE, "cat/disk", "", "'cat/disk' is a device"),
        (tarfile.FIFOTYPE, "cat/pipe", "", "'cat/pipe' is a device or another special file"),
        (tarfile.DIRTYPE, "../out", "", "leaves its folder"),
    ],
)
def test_links_out_and_devices_are_refused(
    tmp_path: Path, kind: bytes, name: str, link: str, words: str
) -> None:
    assert words in refusal(make_special(tmp_path / "a.tar", kind, name, link))


def test_zip_links_out_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("cat/evil")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "../../etc/passwd")
    assert "'cat/evil' links to '../../etc/passwd'" in refusal(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_inside_become_copies_of_what_they_point_to(tmp_path: Path, kind: bytes) -> None:
    link = "1.jpg" if kind == tarfile.SYMTYPE else "cat/1.jpg"
    archive = make_special(tmp_path / "a.tar", kind, "cat/2.jpg", link)
    assert unpacked(archive) == {"cat/1.jpg": b"one", "cat/2.jpg": b"one"}


def test_links_to_nothing_are_left_out(tmp_path: Path) -> None:
    archive = make_special(tmp_path / "a.tar", tarfile.SYMTYPE, "cat/2.jpg", "none.jpg")
    assert unpacked(archive) == {"cat/1.jpg": b"one"}


Links = list[tuple[str, str]]


def make_linked(path: Path, members: Members, links: Links, kind: str) -> Path:
    """An archive whose symbolic links come before what they point to."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, link in links:
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o120777 << 16
                packed.writestr(info, link)
            for name, data in members:
                packed.writestr(name, data)
        return path
    with tarfile.open(path, "w") as archive:
        for name, link in links:
            symbolic = tarfile.TarInfo(name)
            symbolic.type, symbolic.linkname = tarfile.SYMTYPE, link
            archive.addfile(symbolic)
        for name, data in members:
            regular = tarfile.TarInfo(name)
            regular.size = len(data)
            archive.addfile(regular, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_links_to_folders_and_to_later_links_become_copies(tmp_path: Path, kind: str) -> None:
    links = [
        ("dog/1.jpg", "2.jpg"),  # to a link further on
        ("dog/2.jpg", "../more/deep/1.jpg"),  # through a linked folder
        ("more", "all/cat"),
        ("all/cat/copy.jpg", "1.jpg"),  # a link in the folder that a link leads to
        ("all/cat/deep", "../deep"),
        ("all/loop", ".."),
        ("round", "about"),
        ("about", "round"),
    ]
    members = [("all/cat/1.jpg", b"1"), ("all/deep/1.jpg", b"2")]
    assert unpacked(make_linked(tmp_path / "a", members, links, kind)) == {
        "all/cat/1.jpg": b"1",
        "all/cat/copy.jpg": b"1",
        "all/cat/deep/1.jpg": b"2",
        "all/deep/1.jpg": b"2",
        "dog/1.jpg": b"2",
        "dog/2.jpg": b"2",
        "more/1.jpg": b"1",
        "more/copy.jpg": b"1",
        "more/deep/1.jpg": b"2",
    }


def test_links_that_double_are_counted(tmp_path: Path) -> None:
    links = [(f"{i + 1}/{side}", f"../{i}") for i in range(20) for side in "ab"]
    archive = make_linked(tmp_path / "a", [("0/1.jpg", b"1")], links, "tar")
    assert "give the folder as data.source" in refusal(archive)


def test_a_link_below_a_file_is_refused(tmp_path: Path) -> None:
    links = [("cat/1.jpg/3.jpg", "../2.jpg")]
    members = [("cat/1.jpg", b"1"), ("cat/2.jpg", b"2")]
    archive = make_linked(tmp_path / "a", members, links, "tar")
    assert "is both a file and a folder" in refusal(archive)


def test_a_chain_of_links_cannot_write_outside(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        folder = tarfile.TarInfo("cat/here")
        folder.type, folder.linkname = tarfile.SYMTYPE, "."
        archive.addfile(folder)
        evil = tarfile.TarInfo("cat/here/evil.jpg")
        evil.size = 4
        archive.addfile(evil, io.BytesIO(b"evil"))
    assert unpacked(tmp_path / "a.tar") == {"cat/here/evil.jpg": b"evil"}


@pytest.mark.parametrize("kind", MAKERS)
def test_compression_bombs_are_refused(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path / "bomb", [*GOOD, ("cat/bomb", b"\0" * 3_000_000)])
    words = refusal(archive)
    assert "'cat/bomb' makes it larger than the 0.001 GB" in words
    assert "data.max_archive_gb" in words


@pytest.mark.parametrize("kind", MAKERS)
def test_too_many_members_are_refused(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](tmp_path / "many", [(f"cat/{i}", b"") for i in range(101)])
    words = refusal(archive)
    assert "'cat/100' is one more than the 100 that it may have" in words
    assert "give the folder as data.source" in words


def test_a_header_of_absurd_size_is_refused_before_it_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    path = tmp_path / "a.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10_240)
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(DataError, match="a header of absurd size"):
        unpack(path, target, LIMITS)


@pytest.mark.parametrize("kind", MAKERS)
def test_damaged_archives_are_named(tmp_path: Path, kind: str) -> None:
    import random

    noise = random.Random(0).randbytes(50_000)
    archive = MAKERS[kind](tmp_path / "a", [("cat/1.jpg", noise), ("cat/2.jpg", noise[::-1])])
    archive.write_bytes(archive.read_bytes()[:60_000])
    words = refusal(archive)
    assert "cannot be read to its end" in words or "cannot be unpacked" in words


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", GOOD)
    data = bytearray(archive.read_bytes())
    place = data.index(b"dog/deep/2.jpg")
    data[place + 150] ^= 0xFF
    archive.write_bytes(data)
    assert "a damaged header at byte" in refusal(archive)


def test_a_member_that_is_a_file_and_a_folder(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", [("cat", b"x"), ("cat/1.jpg", b"x")])
    assert "'cat/1.jpg' is both a file and a folder" in refusal(archive)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's, as it writes what is tested
@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("again", ["cat/1.jpg", "./cat//1.jpg", "cat\\1.jpg"])
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path, kind: str, again: str) -> None:
    archive = MAKERS[kind](tmp_path / "a", [*GOOD, (again, b"another")])
    assert f"{again!r} is there twice; pack it again with each file once" in refusal(archive)


def test_encrypted_and_zstd_archives_are_explained(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", [("cat/1.jpg", b"x")])
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    assert "'cat/1.jpg' is encrypted" in refusal(archive)
    zstd = tmp_path / "a.tar.zst"
    zstd.write_bytes(b"\x28\xb5\x2f\xfd" + b"\0" * 100)
    with pytest.raises(DataError, match="zstd: unpack it to a folder first"):
        is_archive(zstd)


def test_names_that_are_no_text_become_readable(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a.tar", [("cat/caf\udce9\n.jpg", b"x")])
    assert unpacked(archive) == {"cat/caf%E9%0A.jpg": b"x"}


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    for data in (b"", b"PK", b"text" * 500, b"\x1f\x8b" + b"\0" * 50):
        (tmp_path / "f").write_bytes(data)
        assert not is_archive(tmp_path / "f")
