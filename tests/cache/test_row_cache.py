"""The row cache: shards that are sound and found, and what processes do with it at once."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from filelock import Timeout
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headstart.cache.row_cache import DamagedShardWarning, RowCache, unfinished, use_lock
from headstart.cache.shards import Keys, Rows, read_shard, row_keys

RECIPE = {"backbone": "vgg16"}
DIM = 6


def keys_of(numbers: range | list[int]) -> Keys:
    return row_keys([f"{number:064x}" for number in numbers])


def rows_of(numbers: range | list[int]) -> NDArray[np.float32]:
    return np.repeat(np.array([list(numbers)], np.float32).T, DIM, axis=1)


def filled(folder: Path, *parts: range) -> RowCache:
    cache = RowCache(folder, RECIPE)
    for part in parts:
        cache.put(keys_of(part), rows_of(part), {"processor": "this"})
    cache.refresh()
    return cache


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(10), range(10, 25))
    wanted = [24, 0, 13, 7, 7]
    np.testing.assert_array_equal(cache.get(keys_of(wanted)), rows_of(wanted))
    assert cache.row_shape == (DIM,)


def test_missing_says_which(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    assert cache.missing(keys_of([2, 3, 0])).tolist() == [False, True, False]
    with pytest.raises(KeyError, match="1 rows are not in"):
        cache.get(keys_of([2, 3]))


def test_an_empty_cache_lacks_everything(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, RECIPE)
    assert cache.missing(keys_of(range(3))).all()
    assert cache.row_shape == (0,)


def test_views_are_rows_of_their_own(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, RECIPE)
    other = row_keys([f"{1:064x}"], b"12345678")
    cache.put(other, rows_of([5]), {})
    cache.refresh()
    assert not cache.missing(other).any()
    assert cache.missing(keys_of([1])).all()


def test_keys_that_end_in_zero_bytes_differ(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, RECIPE)
    digests = ["00" * 32, "01" + "00" * 31, "ff" * 31 + "00"]
    cache.put(row_keys(digests), rows_of([0, 1, 2]), {})
    cache.refresh()
    found = cache.get(row_keys(digests[::-1]))
    np.testing.assert_array_equal(found, rows_of([2, 1, 0]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=12, unique=True), max_size=45))
def test_the_index_is_what_the_shards_say(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = RowCache(folder, RECIPE)
    for part in parts:
        if part:
            cache.put(keys_of(part), rows_of(part), {})
        cache.refresh()
    present = {number for part in parts for number in part}
    wanted = list(range(61))
    expected = [number not in present for number in wanted]
    assert cache.missing(keys_of(wanted)).tolist() == expected
    assert RowCache(folder, RECIPE).missing(keys_of(wanted)).tolist() == expected
    if present:
        found = cache.get(keys_of(sorted(present)))
        np.testing.assert_array_equal(found, rows_of(sorted(present)))


def flip_a_bit(path: Path) -> None:
    with h5py.File(path) as file:
        place = file["features"].id.get_offset() + 5
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_shard_with_a_flipped_bit_is_set_aside(tmp_path: Path) -> None:
    filled(tmp_path, range(10), range(10, 20))
    shards = sorted((tmp_path / "shards").glob("*.h5"))
    damaged = next(path for path in shards if 3 in read_numbers(path))
    flip_a_bit(damaged)
    cache = RowCache(tmp_path, RECIPE)
    with pytest.warns(DamagedShardWarning, match="its checksum does not match.*computed again"):
        missing = cache.missing(keys_of(range(20)))
    assert missing.tolist() == [True] * 10 + [False] * 10
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == [damaged.name]


def read_numbers(path: Path) -> list[int]:
    return [int(value) for value in read_shard(path).rows()[:, 0]]


@pytest.mark.parametrize("part", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_shard_is_set_aside(tmp_path: Path, part: float) -> None:
    filled(tmp_path, range(100))
    (path,) = (tmp_path / "shards").glob("*.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.warns(DamagedShardWarning, match="truncated or damaged"):
        cache = RowCache(tmp_path, RECIPE)
    assert cache.missing(keys_of(range(100))).all()
    cache.put(keys_of(range(100)), rows_of(range(100)), {})
    cache.refresh()
    assert not cache.missing(keys_of(range(100))).any()


def test_a_half_written_shard_is_never_read(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5))
    (path,) = (tmp_path / "shards").glob("*.h5")
    shutil.copy(path, path.with_name(f".{path.name}.abc.tmp.h5"))
    path.unlink()
    cache.refresh()
    assert cache.missing(keys_of(range(5))).all()


def test_a_cache_of_another_user_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, range(5))

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refused)
    cache = RowCache(tmp_path, RECIPE)
    with cache.in_use():
        np.testing.assert_array_equal(cache.get(keys_of(range(5))), rows_of(range(5)))


def test_rows_of_any_dtype_and_shape(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, RECIPE)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8)
    cache.put(keys_of(range(7)), pixels, {})
    cache.refresh()
    assert not cache.missing(keys_of(range(7))).any()
    found = cache.get(keys_of([6, 0, 3]))
    assert found.dtype == np.uint8
    assert found.shape == (3, 5, 5, 3)
    np.testing.assert_array_equal(found, pixels[[6, 0, 3]])


def computed(lacking: Keys) -> Iterator[tuple[Keys, Rows]]:
    """Rows that hold their key's number, three at a time."""
    numbers = [int.from_bytes(key.ljust(40, b"\0")[:32], "big") for key in lacking.tolist()]
    for start in range(0, len(numbers), 3):
        yield lacking[start : start + 3], rows_of(numbers[start : start + 3])


def test_only_what_is_missing_is_computed(tmp_path: Path) -> None:
    cache = RowCache(tmp_path, RECIPE, shard_rows=4)
    with cache.in_use():
        assert cache.fill(keys_of([1, 2, 2, 3]), computed, dict) == 3
        assert cache.fill(keys_of(range(10)), computed, dict) == 7
        assert (
            cache.fill(keys_of(range(10)), lambda _: pytest.fail("nothing is missing"), dict) == 0
        )
    np.testing.assert_array_equal(cache.get(keys_of(range(10))), rows_of(range(10)))


def test_what_came_before_an_error_is_kept(tmp_path: Path) -> None:
    def half(lacking: Keys) -> Iterator[tuple[Keys, Rows]]:
        yield from itertools.islice(computed(lacking), 2)
        raise ValueError("enough")

    cache = RowCache(tmp_path, RECIPE)
    with pytest.raises(ValueError, match="enough"):
        cache.fill(keys_of(range(10)), half, dict)
    cache.refresh()
    assert cache.missing(keys_of(range(10))).tolist() == [False] * 6 + [True] * 4
    assert cache.fill(keys_of(range(10)), computed, dict) == 4


def test_what_a_killed_process_was_writing_goes(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5))
    litter = tmp_path / "shards" / ".0123.h5.abc.tmp.h5"
    litter.write_bytes(b"half a shard")
    assert list(unfinished(tmp_path)) == [litter]
    cache.fill(keys_of(range(5)), computed, dict)  # nothing is missing, so nothing is written
    assert litter.exists()
    cache.fill(keys_of(range(6)), computed, dict)
    assert not litter.exists()


FILLER = """
import sys, time
from pathlib import Path
from headstart.cache.row_cache import RowCache
from tests.cache.test_row_cache import RECIPE, computed, keys_of, rows_of

def slowly(lacking):
    for keys, rows in computed(lacking):
        time.sleep(0.02)
        yield keys, rows

cache = RowCache(Path(sys.argv[1]), RECIPE, shard_rows=9)
wanted = keys_of(range(int(sys.argv[2]), int(sys.argv[2]) + 150))
print("begin", flush=True)
with cache.in_use():
    print(cache.fill(wanted, slowly, dict))
    assert (cache.get(wanted) == rows_of(range(int(sys.argv[2]), int(sys.argv[2]) + 150))).all()
"""


def start_filler(folder: Path, repository: Path, first: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", FILLER, str(folder), str(first)],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_several_processes_each_row_is_computed_by_one(tmp_path: Path, repository: Path) -> None:
    fillers = [start_filler(tmp_path / "rows", repository, first) for first in (0, 50, 0)]
    answers = [filler.communicate(timeout=120)[0].split() for filler in fillers]
    assert [filler.returncode for filler in fillers] == [0, 0, 0]
    assert sum(int(answer[1]) for answer in answers) == 200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = RowCache(tmp_path / "rows", RECIPE)
        assert not cache.missing(keys_of(range(200))).any()


def test_whoever_waits_goes_on_where_one_was_killed(tmp_path: Path, repository: Path) -> None:
    folder = tmp_path / "rows"
    killed = start_filler(folder, repository, 0)
    assert killed.stdout is not None
    killed.stdout.readline()
    deadline = time.monotonic() + 60
    while not list(folder.glob("shards/[!.]*.h5")) and time.monotonic() < deadline:
        time.sleep(0.01)
    waiting = start_filler(folder, repository, 0)
    time.sleep(0.3)
    killed.kill()
    killed.communicate()
    n_kept = sum(len(read_shard(path).keys) for path in folder.glob("shards/[!.]*.h5"))
    answer, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0
    assert 0 < n_kept < 150
    assert int(answer.split()[1]) == 150 - n_kept


def test_a_use_lock_is_shared_by_users_and_not_by_who_removes(tmp_path: Path) -> None:
    filled(tmp_path / "rows", range(3))
    cache, other = (RowCache(tmp_path / "rows", RECIPE) for _ in range(2))
    with cache.in_use(), other.in_use(), pytest.raises(Timeout):
        use_lock(tmp_path / "rows").acquire_write(blocking=False)
    with ThreadPoolExecutor(1) as pool:
        with use_lock(tmp_path / "rows").write_lock(blocking=False):
            waiting = pool.submit(lambda: cache.in_use().__enter__())
            time.sleep(0.2)
            assert not waiting.done()
            shutil.rmtree(tmp_path / "rows")
        waiting.result(timeout=60)
    assert cache.missing(keys_of(range(3))).all()
