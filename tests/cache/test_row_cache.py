"""The feature cache: shards that are sound, found, merged, and shared by processes."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headstart.cache.row_cache import DamagedShardWarning, FeatureCache
from headstart.cache.shards import Keys, read_shard, row_keys

CONTRACT = {"backbone": "vgg16"}
DIM = 6


def keys_of(numbers: range | list[int]) -> Keys:
    return row_keys([f"{number:064x}" for number in numbers])


def rows_of(numbers: range | list[int]) -> NDArray[np.float32]:
    return np.repeat(np.array([list(numbers)], np.float32).T, DIM, axis=1)


def filled(folder: Path, *parts: range) -> FeatureCache:
    cache = FeatureCache(folder, CONTRACT)
    for part in parts:
        cache.add(keys_of(part), rows_of(part), {"processor": "this"})
    cache.refresh()
    return cache


def test_rows_come_back_in_any_order(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(10), range(10, 25))
    wanted = [24, 0, 13, 7, 7]
    np.testing.assert_array_equal(cache.read(keys_of(wanted)), rows_of(wanted))
    assert cache.feature_dim == DIM


def test_missing_says_which(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(3))
    assert cache.missing(keys_of([2, 3, 0])).tolist() == [False, True, False]
    with pytest.raises(KeyError, match="1 rows are not in"):
        cache.read(keys_of([2, 3]))


def test_an_empty_cache_lacks_everything(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, CONTRACT)
    assert cache.missing(keys_of(range(3))).all()
    assert cache.feature_dim == 0


def test_views_are_rows_of_their_own(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, CONTRACT)
    other = row_keys([f"{1:064x}"], b"12345678")
    cache.add(other, rows_of([5]), {})
    cache.refresh()
    assert not cache.missing(other).any()
    assert cache.missing(keys_of([1])).all()


def test_keys_that_end_in_zero_bytes_differ(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, CONTRACT)
    digests = ["00" * 32, "01" + "00" * 31, "ff" * 31 + "00"]
    cache.add(row_keys(digests), rows_of([0, 1, 2]), {})
    cache.refresh()
    found = cache.read(row_keys(digests[::-1]))
    np.testing.assert_array_equal(found, rows_of([2, 1, 0]))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=12, unique=True), max_size=45))
def test_the_index_is_what_the_shards_say(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = FeatureCache(folder, CONTRACT)
    for part in parts:
        if part:
            cache.add(keys_of(part), rows_of(part), {})
        cache.refresh()
    present = {number for part in parts for number in part}
    wanted = list(range(61))
    expected = [number not in present for number in wanted]
    assert cache.missing(keys_of(wanted)).tolist() == expected
    assert FeatureCache(folder, CONTRACT).missing(keys_of(wanted)).tolist() == expected
    cache.merge()
    assert cache.missing(keys_of(wanted)).tolist() == expected
    if present:
        found = cache.read(keys_of(sorted(present)))
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
    cache = FeatureCache(tmp_path, CONTRACT)
    with pytest.warns(DamagedShardWarning, match="its checksum does not match.*extracted again"):
        missing = cache.missing(keys_of(range(20)))
    assert missing.tolist() == [True] * 10 + [False] * 10
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == [damaged.name]


def read_numbers(path: Path) -> list[int]:
    return [int(value) for value in read_shard(path).features()[:, 0]]


@pytest.mark.parametrize("part", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_shard_is_set_aside(tmp_path: Path, part: float) -> None:
    filled(tmp_path, range(100))
    (path,) = (tmp_path / "shards").glob("*.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.warns(DamagedShardWarning, match="truncated or damaged"):
        cache = FeatureCache(tmp_path, CONTRACT)
    assert cache.missing(keys_of(range(100))).all()
    cache.add(keys_of(range(100)), rows_of(range(100)), {})
    cache.refresh()
    assert not cache.missing(keys_of(range(100))).any()


def test_a_half_written_shard_is_never_read(tmp_path: Path) -> None:
    cache = filled(tmp_path, range(5))
    (path,) = (tmp_path / "shards").glob("*.h5")
    shutil.copy(path, path.with_name(f".{path.name}.abc.tmp.h5"))
    path.unlink()
    cache.refresh()
    assert cache.missing(keys_of(range(5))).all()


def test_small_shards_are_merged_and_rows_stay(tmp_path: Path) -> None:
    parts = [range(start, start + 7) for start in range(0, 140, 7)]
    reader = filled(tmp_path, *parts)
    assert filled(tmp_path).merge() == 20
    assert len(list((tmp_path / "shards").glob("*.h5"))) == 1
    # A reader that had listed the small shards finds the rows in the merged one.
    np.testing.assert_array_equal(reader.read(keys_of(range(140))), rows_of(range(140)))


def test_a_cache_of_another_user_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, range(5))

    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refused)
    cache = FeatureCache(tmp_path, CONTRACT)
    np.testing.assert_array_equal(cache.read(keys_of(range(5))), rows_of(range(5)))


def test_few_shards_are_left_alone(tmp_path: Path) -> None:
    assert filled(tmp_path, range(5), range(5, 9)).merge() == 0


def test_merging_does_not_launder_damage(tmp_path: Path) -> None:
    parts = [range(start, start + 7) for start in range(0, 140, 7)]
    cache = filled(tmp_path, *parts)
    damaged = next(p for p in (tmp_path / "shards").glob("*.h5") if 3 in read_numbers(p))
    flip_a_bit(damaged)
    with pytest.warns(DamagedShardWarning):
        assert cache.merge() == 19
    assert np.flatnonzero(cache.missing(keys_of(range(140)))).tolist() == list(range(7))


def test_a_merge_that_was_killed_leaves_every_row(tmp_path: Path) -> None:
    parts = [range(start, start + 7) for start in range(0, 140, 7)]
    cache = filled(tmp_path, *parts)
    small = {path: path.read_bytes() for path in (tmp_path / "shards").glob("*.h5")}
    cache.merge()
    # As if it had ended after the merged shard was in place, with some small ones left.
    for path, data in list(small.items())[:9]:
        path.write_bytes(data)
    again = FeatureCache(tmp_path, CONTRACT)
    np.testing.assert_array_equal(again.read(keys_of(range(140))), rows_of(range(140)))


WRITER = """
import sys
from pathlib import Path
from headstart.cache.row_cache import FeatureCache
from tests.cache.test_row_cache import CONTRACT, keys_of, rows_of
cache = FeatureCache(Path(sys.argv[1]), CONTRACT)
for start in range(int(sys.argv[2]), 400, 40):
    cache.add(keys_of(range(start, start + 20)), rows_of(range(start, start + 20)), {})
    cache.refresh()
    cache.merge()
    assert not cache.missing(keys_of(range(start, start + 20))).any()
"""


def test_writers_and_mergers_at_once_lose_nothing(tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, first], cwd=repository) for first in ("0", "20", "0")]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    cache = FeatureCache(tmp_path, CONTRACT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not cache.missing(keys_of(range(400))).any()
    np.testing.assert_array_equal(cache.read(keys_of(range(400))), rows_of(range(400)))
