"""Disks that are full or read-only: one sentence with the path and the remedy, nothing lost."""

import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headstart.cache.shards import write_shard
from headstart.common.errors import DiskError
from headstart.common.files import write_csv, write_json
from headstart.common.paths import cache_folder
from headstart.dataset.reader import FileState, StatisticsCache
from headstart.features.feature_store import write_features
from headstart.params.base import Section
from headstart.stages.run_stage import run_stage
from tests.cache.test_row_cache import keys_of, rows_of
from tests.common.disks import make_room, read_only, small_disk
from tests.features.samples import feature_rows


def _features(path: Path) -> None:
    write_features(
        path,
        rows=feature_rows(100),
        parts=[np.zeros((100, 1, 400), np.float32)],
        n_views=1,
        encoder="small",
        blocks={"last": slice(0, 400)},
        classes=("cat", "dog"),
        recipe={},
        fingerprint="f",
    )


def _shard(path: Path) -> None:
    keys, rows = keys_of(range(2000)), rows_of(range(2000))
    write_shard(path.parent, keys, rows, {}, {})


WRITERS: dict[str, Callable[[Path], object]] = {
    "reports/metrics.json": lambda path: write_json(path, ["x" * 200_000]),
    "reports/predictions.csv": lambda path: write_csv(path, ["a"], [["x" * 200_000]]),
    "data/features.h5": _features,
    "cache/shard.h5": _shard,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_and_work_goes_on_after_room_is_made(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "disk" / name
    with small_disk(tmp_path / "disk", 60_000):
        with pytest.raises(DiskError, match="No space left on device") as caught:
            WRITERS[name](path)
        assert str(path.parent) in str(caught.value)
        assert "make room and run the same command again" in str(caught.value)
        assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []
        make_room(tmp_path / "disk", 10_000_000)
        WRITERS[name](path)
        assert any(p.stat().st_size > 60_000 for p in path.parent.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.write_text("a file")
    with pytest.raises(OSError, match=str(path.parent)) as caught:
        WRITERS[name](path)
    told = str(_told_by_a_stage(caught.value))
    assert told.startswith("extract: ")
    assert str(path.parent) in told
    assert "move away what is in its place" in told


def _told_by_a_stage(error: Exception) -> str:
    """What `run_stage` prints when a stage ends with this error."""
    said: list[str] = []

    def fail(*_: object) -> str:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["extract"])
        patch.setattr("headstart.stages.run_stage.say", lambda text, **_: said.append(text))
        patch.setattr("headstart.stages.checks.check_possible", lambda *_: None)
        patch.setattr("headstart.stages.run_stage.load_sections", lambda *_: None)
        with pytest.raises(SystemExit):
            run_stage("extract", Section, fail)
    return said[0]


def test_a_database_without_room_is_one_sentence(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 60_000):
        database = sqlite3.connect(tmp_path / "disk" / "mlflow.db", isolation_level=None)
        database.execute("CREATE TABLE runs (text)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            database.execute("INSERT INTO runs VALUES (?)", ["x" * 200_000])
        database.close()
        assert "make room" in _told_by_a_stage(caught.value)


def test_a_read_only_place_is_one_sentence(tmp_path: Path) -> None:
    with read_only(tmp_path), pytest.raises(DiskError) as caught:
        write_json(tmp_path / "metrics.json", {})
    assert str(tmp_path / "metrics.json") in str(caught.value)


def test_an_error_that_is_not_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _told_by_a_stage(FileNotFoundError(2, "No such file", str(tmp_path / "gone")))


def test_what_ingest_remembers_may_be_read_only_or_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cache" / "images.sqlite3"
    state = FileState(1, 2, 3)
    known = StatisticsCache(path, "recipe")
    known.remember([("a.jpg", state, b"0" * 32)], [])
    known.close()
    with read_only(path.parent):
        known = StatisticsCache(path, "recipe")
        assert known.hashes([("a.jpg", state)]) == {"a.jpg": b"0" * 32}
        known.remember([("b.jpg", state, b"1" * 32)], [])
        known.close()
    assert "continuing without the cache" in capsys.readouterr().err
    (tmp_path / "file").write_text("a file")
    StatisticsCache(tmp_path / "file" / "images.sqlite3", "recipe").remember([], [])
    assert "continuing without the cache" in capsys.readouterr().err


def test_the_cache_folder_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    monkeypatch.setenv("HEADSTART_CACHE", str(shared))
    assert cache_folder().stat().st_mode & 0o777 == 0o775
    (tmp_path / "file").write_text("a file")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file"))
    assert cache_folder() == tmp_path / "file"
    monkeypatch.delenv("HEADSTART_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    former = tmp_path / "home" / "headstart"
    former.mkdir(parents=True)
    former.chmod(0o755)
    assert cache_folder() == former
    assert former.stat().st_mode & 0o777 == 0o700
