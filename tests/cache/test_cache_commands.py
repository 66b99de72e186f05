"""`headstart cache ls | verify | gc`: what is there, whether it is sound, and making room."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headstart.cache.row_cache import RowCache, write_lock
from headstart.common.errors import DiskError, ParamsError
from headstart.common.terminal import size_text
from headstart.features.cache_commands import (
    collect,
    entries,
    entries_text,
    keep_within,
    size_limit,
    verify,
)
from headstart.features.recipe import feature_recipe, fingerprint, model_key
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from tests.cache.test_row_cache import flip_a_bit, keys_of, rows_of
from tests.common.disks import read_only

ENCODERS = ("resnet50", "vgg16", "xception")


def recipe_of(encoder: str) -> dict[str, object]:
    return feature_recipe(
        ExtractParams(encoders=encoder, runtime="openvino", precision="bfloat16"),
        ImageParams(size=96),
        seed=0,
        backend="tensorflow",
        root=Path("/nowhere"),
    )


@pytest.fixture
def root(own_cache: Path) -> Path:
    """Three fingerprints with their exported models, last used 30, 20 and 10 days ago."""
    for number, encoder in enumerate(ENCODERS):
        rows = recipe_of(encoder)
        folder = own_cache / "features" / fingerprint(rows)[:32]
        cache = RowCache(folder, rows)
        for start in range(0, 20 * (number + 1), 10):
            with cache.writer(dict) as writer:
                writer.put(keys_of(range(start, start + 10)), rows_of(range(start, start + 10)))
        model = own_cache / "backbones" / model_key(rows)[:32]
        model.mkdir(parents=True)
        (model / "backbone.h5").write_bytes(bytes(1000))
        used = time.time() - (30 - 10 * number) * 86_400
        os.utime(folder / "recipe.json", (used, used))
    return own_cache


def names(root: Path) -> list[str]:
    return [str(entry.recipe["backbone"]) for entry in entries(root)]


def test_entries_say_what_they_are(root: Path) -> None:
    found = entries(root)
    assert names(root) == ["xception", "vgg16", "resnet50"]
    assert [(entry.n_rows, entry.n_shards) for entry in found] == [(60, 6), (40, 4), (20, 2)]
    assert found[1].meaning() == ("vgg16 3 blocks avg, 96 px bicubic stretch, openvino bfloat16")


def test_ls_is_a_table(root: Path) -> None:
    lines = entries_text(root, entries(root)).splitlines()
    assert lines[0].split() == ["fingerprint", "rows", "shards", "size", "last", "used", "what"]
    assert len(lines) == 5
    assert lines[3].startswith(fingerprint(recipe_of("resnet50"))[:12])
    assert "xception 3 blocks avg, 96 px" in lines[1]
    assert lines[-1].endswith(f" in {root}")


def test_an_empty_cache(own_cache: Path) -> None:
    assert entries_text(own_cache, entries(own_cache)) == f"the cache {own_cache} is empty"
    assert verify(own_cache).as_text().splitlines() == [
        "0 of 0 shards are sound, with 0 rows",
        "0 of 0 exported models are sound",
    ]
    freed = collect(own_cache, older_than_days=1).as_text()
    assert freed == f"freed 0 B; 0 B stay in {own_cache}"


def test_using_a_fingerprint_makes_it_the_last_used(root: Path) -> None:
    rows = recipe_of("resnet50")
    with RowCache(root / "features" / fingerprint(rows)[:32], rows).in_use():
        pass
    assert names(root)[0] == "resnet50"


def test_verify_sets_damaged_shards_aside(root: Path) -> None:
    shards = sorted((root / "features").glob("*/shards/*.h5"))
    flip_a_bit(shards[0])
    shards[5].write_bytes(shards[5].read_bytes()[:100])
    found = verify(root)
    assert (found.n_shards, found.n_rows) == (12, 100)
    assert sorted(path.name for path in found.damaged) == sorted([shards[0].name, shards[5].name])
    assert all(path.parent.name == "damaged" for path in found.damaged)
    assert "10 of 10 shards are sound, with 100 rows" in verify(root).as_text().splitlines()


def test_verify_names_models_that_are_not_what_was_written(root: Path) -> None:
    sound, changed, unknown = sorted((root / "backbones").glob("*/backbone.h5"))
    for path in (sound, changed):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name("backbone.h5.sha256").write_text(f"{digest}  backbone.h5\n")
    changed.write_bytes(bytes(999) + b"1")
    assert verify(root).damaged_models == (changed, unknown)
    assert "1 of 3 exported models are sound" in verify(root).as_text()


def test_gc_by_age(root: Path) -> None:
    done = collect(root, older_than_days=15)
    assert [entry.recipe["backbone"] for entry in done.removed] == ["resnet50", "vgg16"]
    assert names(root) == ["xception"]
    assert len(list((root / "backbones").iterdir())) == 1
    assert done.kept_bytes == sum(p.stat().st_size for p in root.rglob("*") if p.is_file())


def test_gc_by_size_takes_the_longest_unused_first(root: Path) -> None:
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    done = collect(root, max_bytes=total - 1)
    assert [entry.recipe["backbone"] for entry in done.removed] == ["resnet50"]
    assert done.kept_bytes < total
    assert collect(root, max_bytes=0).kept_bytes == 0
    assert entries(root) == []


def test_a_limit_of_the_environment_holds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    monkeypatch.delenv("HEADSTART_CACHE_MAX_GB", raising=False)
    keep_within(root, size_limit())
    assert len(entries(root)) == 3
    monkeypatch.setenv("HEADSTART_CACHE_MAX_GB", str((total - 1) / 1e9))
    keep_within(root, size_limit())
    assert names(root) == ["xception", "vgg16"]
    for text in ("20 GB", "nan", "inf", "-1"):
        monkeypatch.setenv("HEADSTART_CACHE_MAX_GB", text)
        with pytest.raises(ParamsError, match=r"must be a number of gigabytes, .* but got"):
            keep_within(root, size_limit())


def test_a_limit_on_a_cache_that_cannot_be_written_stops_nothing(root: Path) -> None:
    with read_only(root):
        keep_within(root, 0)
    assert len(entries(root)) == 3


def test_gc_takes_fine_tuned_results_that_were_not_used_for_long(root: Path) -> None:
    old, new = (root / "fine_tuned" / name / "last.npz" for name in ("old", "new"))
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1000))
    month_ago = time.time() - 30 * 86_400
    os.utime(old, (month_ago, month_ago))
    assert collect(root, older_than_days=365).freed_bytes == 0
    assert collect(root, older_than_days=20, dry_run=True).freed_bytes >= 1000
    collect(root, older_than_days=20)
    assert (old.exists(), new.exists()) == (False, True)
    collect(root, max_bytes=0)
    assert not new.exists()


def _but_locks(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix != ".lock")


def test_gc_can_only_say_what_it_would_do(root: Path) -> None:
    before = _but_locks(root)
    text = collect(root, max_bytes=0, dry_run=True).as_text()
    assert text.splitlines()[0].startswith("would remove ")
    assert "would free" in text
    assert _but_locks(root) == before
    assert "removed" in collect(root, max_bytes=0).as_text()


def test_gc_leaves_what_a_running_extraction_works_on(root: Path) -> None:
    rows = recipe_of("resnet50")
    with RowCache(root / "features" / fingerprint(rows)[:32], rows).in_use():
        collect(root, older_than_days=0)
        assert names(root) == ["resnet50"]


def test_gc_removes_damaged_shards_of_what_stays(root: Path) -> None:
    flip_a_bit(sorted((root / "features").glob("*/shards/*.h5"))[0])
    verify(root)
    assert collect(root, older_than_days=365).freed_bytes > 0
    assert list((root / "features").glob("*/damaged")) == []


def test_gc_counts_only_what_it_can_free(root: Path) -> None:
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    (root / "weights").mkdir()
    (root / "weights" / "vgg16.onnx").write_bytes(bytes(3 * total))
    (root / "ingest").mkdir()
    (root / "ingest" / "images.sqlite3").write_bytes(bytes(total))
    assert collect(root, max_bytes=total).removed == ()
    done = collect(root, max_bytes=total - 1)
    assert [entry.recipe["backbone"] for entry in done.removed] == ["resnet50"]
    assert done.kept_bytes > 4 * total


def test_gc_removes_what_killed_processes_left(root: Path) -> None:
    shards = next((root / "features").glob("*/shards"))
    litter = shards / ".1.h5.a.tmp.h5"
    litter.write_bytes(bytes(5000))
    half_gone = root / "features" / ".removed-0123"
    half_gone.mkdir()
    (half_gone / "recipe.json").write_bytes(bytes(300))
    assert len(entries(root)) == 3
    assert collect(root, older_than_days=365, dry_run=True).freed_bytes == 5300
    with write_lock(shards.parent):  # somebody writes it
        assert collect(root, older_than_days=365, dry_run=True).freed_bytes == 300
    assert litter.exists()
    assert collect(root, older_than_days=365).freed_bytes == 5300
    assert not litter.exists()
    assert not half_gone.exists()


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes(n_bytes: float, text: str) -> None:
    assert size_text(n_bytes) == text


@pytest.mark.parametrize("command", [entries, verify, collect])
def test_a_cache_that_is_no_folder(tmp_path: Path, command: Callable[[Path], object]) -> None:
    path = tmp_path / "cache"
    path.write_text("x")
    with pytest.raises(DiskError, match=r"must be a folder, but .* is a file: set HEADSTART_CACHE"):
        command(path)
