"""A file is linked rather than copied only where its owner cannot change it behind DVC."""

import os
from pathlib import Path

from headstart.sources.folders import copy_or_link


def test_a_writable_file_is_not_hard_linked(tmp_path: Path) -> None:
    source, target = tmp_path / "mine.jpg", tmp_path / "fetched.jpg"
    source.write_bytes(b"as it was")
    copy_or_link(source, target)
    with source.open("r+b") as stream:
        stream.write(b"edited in")
    assert target.read_bytes() == b"as it was"


def test_a_protected_file_costs_no_second_copy_where_links_are_possible(tmp_path: Path) -> None:
    source, target = tmp_path / "held.jpg", tmp_path / "fetched.jpg"
    source.write_bytes(b"held by DVC")
    source.chmod(0o444)
    copy_or_link(source, target)
    assert target.read_bytes() == b"held by DVC"
    same_inode = source.stat().st_ino == target.stat().st_ino
    assert same_inode or target.stat().st_mtime_ns == source.stat().st_mtime_ns


def test_a_copy_keeps_the_time(tmp_path: Path) -> None:
    source, target = tmp_path / "mine.jpg", tmp_path / "fetched.jpg"
    source.write_bytes(b"x")
    os.utime(source, ns=(10**18, 10**18))
    copy_or_link(source, target)
    assert target.stat().st_mtime_ns == 10**18
