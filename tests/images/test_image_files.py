"""Only bytes that the manifest lists are read."""

import hashlib
from pathlib import Path

import pytest

from headstart.common.errors import DataError
from headstart.images.image_files import read_verified

LISTED = hashlib.sha256(b"picture").hexdigest()


def test_a_file_as_it_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    assert read_verified(tmp_path / "a.png", LISTED) == b"picture"


def test_a_changed_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"another")
    with pytest.raises(DataError, match=r"a\.png has changed since: run `dvc repro`"):
        read_verified(tmp_path / "a.png", LISTED)
    with pytest.raises(DataError, match=r"b\.png is not \(No such file or directory\): run"):
        read_verified(tmp_path / "b.png", LISTED)
