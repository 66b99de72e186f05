"""One pass over the files: what is known is not read again, and nothing takes the stage down."""

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.dataset import reader
from headstart.dataset.image_statistics import STATISTICS, recipe
from headstart.dataset.reader import (
    FileState,
    ImageRecord,
    Limits,
    Reading,
    StatisticsCache,
    read_images,
)
from tests.images.pictures import encode, picture

LIMITS = Limits(max_pixels=10**8, max_file_mb=1)


def write_files(folder: Path, n: int, *, age_s: float = 10) -> list[str]:
    """n small pictures, old enough for their times to be trusted."""
    folder.mkdir(exist_ok=True)
    for i in range(n):
        path = folder / f"{i:03d}.png"
        path.write_bytes(encode(picture(i, (16, 12))))
        os.utime(path, (time.time() - age_s,) * 2)
    return [f"{i:03d}.png" for i in range(n)]


def read(folder: Path, names: Sequence[str], **options: Any) -> Reading:
    return read_images(folder, names, LIMITS, **options)


@pytest.mark.parametrize("n", [3, 70])  # in this process, and in workers
def test_statistics_come_in_the_order_of_the_paths(tmp_path: Path, n: int) -> None:
    names = write_files(tmp_path / "f", n)
    reading = read(tmp_path / "f", names, n_workers=2)
    assert reading.rejected == {}
    assert reading.n_decoded == n
    assert (reading.statistics["width"] == 16).all()
    backwards = read(tmp_path / "f", names[::-1], n_workers=2)
    assert np.array_equal(backwards.statistics[::-1], reading.statistics)


def test_known_files_are_not_read_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "images.sqlite3"
    names = write_files(tmp_path / "f", 40)
    first = read(tmp_path / "f", names, cache=cache)
    for name in names:
        (tmp_path / "f" / name).chmod(0o000)
    again = read(tmp_path / "f", names, cache=cache)
    assert (first.n_decoded, again.n_decoded) == (40, 0)
    assert np.array_equal(again.statistics, first.statistics)
    write_files(tmp_path / "f", 41)
    assert read(tmp_path / "f", [*names, "040.png"], cache=cache).n_decoded == 1


def test_known_images_are_not_decoded_again_wherever_they_lie(tmp_path: Path) -> None:
    cache = tmp_path / "images.sqlite3"
    names = write_files(tmp_path / "f", 40)
    read(tmp_path / "f", names, cache=cache)
    (tmp_path / "f").rename(tmp_path / "g")
    assert read(tmp_path / "g", names, cache=cache).n_decoded == 0
    other = Limits(max_pixels=10**6, max_file_mb=1)
    assert read_images(tmp_path / "g", names, other, cache=cache).n_decoded == 40


def test_a_changed_file_of_the_same_size_is_seen(tmp_path: Path) -> None:
    cache = tmp_path / "images.sqlite3"
    for age_s in (10, 0):  # the times of a fresh file are not trusted
        names = write_files(tmp_path / "f", 2, age_s=age_s)
        first = read(tmp_path / "f", names, cache=cache)
        path = tmp_path / "f" / "000.png"
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[-20] ^= 1
        path.write_bytes(data)
        if age_s == 0:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        reading = read(tmp_path / "f", names, cache=cache)
        assert 0 in reading.rejected
        assert np.array_equal(reading.statistics[1], first.statistics[1])


def test_what_another_version_knew_of_images_is_not_used(tmp_path: Path) -> None:
    cache = tmp_path / "images.sqlite3"
    names = write_files(tmp_path / "f", 3)
    first = read(tmp_path / "f", names, cache=cache)
    rows = {bytes(row["sha256"]): row.tobytes() for row in first.statistics}
    of_first_version = "3cc5172263b60fdfe11568e3d26fe517da87ca3d2d1e9e2541b92b74e3481d06"
    with contextlib.closing(sqlite3.connect(cache)) as database, database:
        # As version 0.1.0 wrote them: another recipe, and 332 bytes an image.
        database.execute("DELETE FROM images")
        for recipe_hash, statistics in [
            (of_first_version, b"\1" * 332),
            (recipe(LIMITS.max_pixels), b"\1" * 332),
        ]:
            database.executemany(
                "INSERT INTO images VALUES (?, ?, ?, '', '')",
                [(recipe_hash, sha256, statistics) for sha256 in rows],
            )
    again = read(tmp_path / "f", names, cache=cache)
    assert again.n_decoded == 3
    assert {bytes(row["sha256"]): row.tobytes() for row in again.statistics} == rows
    assert read(tmp_path / "f", names, cache=cache).n_decoded == 0


def test_rejections_are_known_too_but_not_those_that_pass(tmp_path: Path) -> None:
    cache = tmp_path / "images.sqlite3"
    names = write_files(tmp_path / "f", 3)
    (tmp_path / "f" / "000.png").write_bytes(b"text")
    (tmp_path / "f" / "001.png").unlink()
    (tmp_path / "f" / "002.png").write_bytes(b"\0" * 1_000_001)
    for _ in range(2):
        reading = read(tmp_path / "f", names, cache=cache)
        assert {row: why[0] for row, why in reading.rejected.items()} == {
            0: "not_an_image",
            1: "missing",
            2: "file_too_large",
        }
        assert reading.rejected[2][1] == "It has 1 MB; at most 1 are allowed."
    assert reading.n_decoded == 0


def test_a_crash_in_a_decoder_rejects_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_files(tmp_path / "f", 80)
    fatal = (tmp_path / "f" / "007.png").read_bytes()
    monkeypatch.setattr(reader, "_read_in_worker", _crashing(fatal))
    reading = read(tmp_path / "f", names, n_workers=2)
    assert reading.rejected == {7: ("crashed", "The decoder crashed on it.")}
    assert reading.n_decoded == 80
    assert (reading.statistics["width"] == 16).sum() == 79


class _crashing:  # noqa: N801 (it stands for a function, which must cross processes)
    def __init__(self, fatal: bytes) -> None:
        self.fatal = fatal

    def __call__(self, task: list[tuple[int, str]]) -> Any:
        if any(Path(path).read_bytes() == self.fatal for _, path in task):
            os.kill(os.getpid(), signal.SIGSEGV)
        return reader._Reader(LIMITS, None, None).read(task)


def record(n: int) -> ImageRecord:
    return ImageRecord(bytes([n]) * 32, bytes([n]) * STATISTICS.itemsize)


def test_several_writers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "images.sqlite3"

    def write(start: int) -> None:
        cache = StatisticsCache(path, "r")
        for n in range(start, start + 20):
            cache.remember([(str(n), FileState(n, n, n), bytes([n]) * 32)], [record(n)])
        cache.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(0, 160, 20)))
    cache = StatisticsCache(path, "r")
    assert len(cache.records(bytes([n]) * 32 for n in range(160))) == 160
    assert len(cache.hashes([(str(n), FileState(n, n, n)) for n in range(200)])) == 160
    assert StatisticsCache(path, "other").records([b"\1" * 32]) == {}
    cache.close()


def test_a_damaged_cache_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "images.sqlite3"
    path.write_bytes(b"this is no database, and never was one" * 100)
    names = write_files(tmp_path / "f", 3)
    assert read(tmp_path / "f", names, cache=path).n_decoded == 3
    assert "it is set aside as images.sqlite3.damaged" in capsys.readouterr().err
    assert read(tmp_path / "f", names, cache=path).n_decoded == 0


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images.sqlite3"
    folder.mkdir()
    names = write_files(tmp_path / "f", 3)
    assert read(tmp_path / "f", names, cache=folder).n_decoded == 3
    assert "continuing without the cache" in capsys.readouterr().err


def test_a_cache_whose_folder_cannot_be_made_costs_only_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("no folder")
    names = write_files(tmp_path / "f", 3)
    cache = tmp_path / "cache" / "ingest" / "images.sqlite3"
    assert read(tmp_path / "f", names, cache=cache).n_decoded == 3
    assert "continuing without the cache" in capsys.readouterr().err


def test_cached_outcomes_do_not_pile_up(tmp_path: Path) -> None:
    cache = tmp_path / "images.sqlite3"
    names = write_files(tmp_path / "f", 3)
    read(tmp_path / "f", names, cache=cache)
    waiting = 0

    class Counted(StatisticsCache):
        def hashes(self, files: Sequence[tuple[str, FileState]]) -> dict[str, bytes]:
            nonlocal waiting
            waiting += 1
            assert waiting == 1, "a chunk is handed on before the next is looked up"
            return super().hashes(files)

    kept = Counted(cache, recipe(LIMITS.max_pixels))
    workers = reader._Workers(LIMITS, cache, None, 1)
    n_outcomes = 0
    for outcomes in reader._all_outcomes(tmp_path / "f", names * 1000, kept, workers):
        waiting = 0
        n_outcomes += len(outcomes)
    assert n_outcomes == 3000
    kept.close()


def test_a_locked_cache_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reader, "_WAIT_FOR_WRITERS_S", 0.05)
    path = tmp_path / "images.sqlite3"
    cache = StatisticsCache(path, "r")
    lock = sqlite3.connect(path)
    lock.execute("BEGIN EXCLUSIVE")
    cache.remember([], [record(1)])
    assert "database is locked" in capsys.readouterr().err
    assert cache.records([b"\1" * 32]) == {}
    lock.close()


def test_the_recipe_covers_what_changes_the_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.dataset import image_statistics as inspect

    before = recipe(10**8)
    assert recipe(10**8) == before
    assert recipe(10**7) != before
    monkeypatch.setattr(inspect, "DECODE_VERSION", 999)
    assert recipe(10**8) != before
