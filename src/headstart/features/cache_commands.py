"""The cache as a whole: what is in it, whether it is sound, and making room.

What `headstart cache ls | verify | gc` do. Knows nothing of extraction.
"""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from filelock import Timeout

from headstart.cache.row_cache import RECIPE, unfinished, use_lock, write_lock
from headstart.cache.shards import read_shard
from headstart.common.errors import DiskError, FormatError, ParamsError
from headstart.common.files import read_json
from headstart.common.terminal import size_text, table
from headstart.encoders.frozen import is_sound
from headstart.features.recipe import model_key

_DAY_S = 86_400.0
_LIMIT = "HEADSTART_CACHE_MAX_GB"
_MODELS = (".h5", ".onnx")
# The second is how version 0.1.0 called it.
_RECIPES = (RECIPE, "contract.json")


@dataclass(frozen=True)
class CacheEntry:
    """What is kept and removed together: the rows of one recipe, or a fine-tuned result.

    Attributes:
        recipe: what the rows depend on; empty for a fine-tuned result.
    """

    folder: Path
    recipe: dict[str, Any]
    n_rows: int
    n_shards: int
    size_bytes: int
    last_used: float

    def meaning(self) -> str:
        """What it is, for a person."""
        c = self.recipe
        if not c:
            return "a fine-tuned result"
        pixels = f"{c['image_size']} px {c['resampling']} {c['fit']}"
        if "backbone" not in c:
            return f"pixels, {pixels}"
        layer = c["layer"] if "layer" in c else f"{len(c['layers'])} blocks"
        weights = "random weights, " if str(c["weights"]).startswith("random") else ""
        what = f"{c['backbone']} {layer} {c['pooling']}"
        return f"{what}, {weights}{pixels}, {c['runtime']} {c['precision']}"

    def as_json(self) -> dict[str, Any]:
        """Return plain values; `last_used` in seconds since 1970."""
        return {"fingerprint": self.folder.name, "what": self.meaning(), **asdict(self)}

    def models(self, cache_root: Path) -> set[Path]:
        """The folder of the exported model that rows of features were made with."""
        if "backbone" not in self.recipe:
            return set()
        return {cache_root / "backbones" / model_key(self.recipe)[:32]}


@dataclass(frozen=True)
class Verification:
    """What a check of all checksums found; damaged shards were set aside."""

    n_shards: int
    n_rows: int
    damaged: tuple[Path, ...]
    n_models: int
    damaged_models: tuple[Path, ...]

    def as_text(self) -> str:
        """Return lines for a person."""
        lines = [f"{path.name} was damaged and moved to {path.parent}" for path in self.damaged]
        sound = self.n_shards - len(self.damaged)
        lines.append(f"{sound:,} of {self.n_shards:,} shards are sound, with {self.n_rows:,} rows")
        lines += [
            f"{path} is damaged, or has no checksum: it is not used, and made again when needed"
            for path in self.damaged_models
        ]
        sound = self.n_models - len(self.damaged_models)
        lines.append(f"{sound:,} of {self.n_models:,} exported models are sound")
        return "\n".join(lines)


@dataclass(frozen=True)
class Collection:
    """What was removed to make room, or would be."""

    cache_root: Path
    removed: tuple[CacheEntry, ...]
    freed_bytes: int
    kept_bytes: int
    dry_run: bool

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        removed = [entry.as_json() for entry in self.removed]
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "removed": removed,
        }

    def as_text(self) -> str:
        """Return lines for a person."""
        verb = "would remove" if self.dry_run else "removed"
        lines = [f"{verb} {entry.folder.name[:12]}: {entry.meaning()}" for entry in self.removed]
        freed, kept = size_text(self.freed_bytes), size_text(self.kept_bytes)
        freed = f"{'would free' if self.dry_run else 'freed'} {freed}"
        return "\n".join([*lines, f"{freed}; {kept} stay in {self.cache_root}"])


def entries(cache_root: Path) -> list[CacheEntry]:
    """All that the cache holds, the one used last first.

    Raises:
        DiskError: the cache is no folder.
    """
    if cache_root.exists() and not cache_root.is_dir():
        raise DiskError(
            f"the cache must be a folder, but {cache_root} is a file: "
            "set HEADSTART_CACHE to a folder"
        )
    found = [_rows_entry(path) for path in _recipes(cache_root)]
    for path in (cache_root / "fine_tuned").glob("[!.]*/last.npz"):
        folder, last_used = path.parent, path.stat().st_mtime
        found.append(CacheEntry(folder, {}, 0, 0, _size(folder), last_used))
    return sorted(found, key=lambda entry: (-entry.last_used, entry.folder.name))


def _recipes(cache_root: Path) -> list[Path]:
    return [
        path
        for room in ("features", "pixels")
        for name in _RECIPES
        for path in cache_root.glob(f"{room}/[!.]*/{name}")
    ]


def _rows_entry(path: Path) -> CacheEntry:
    folder = path.parent
    n_rows, shards = 0, _shard_paths(folder)
    for shard in shards:
        with contextlib.suppress(FormatError, FileNotFoundError):
            n_rows += len(read_shard(shard).keys)
    last_used = path.stat().st_mtime
    return CacheEntry(folder, read_json(path), n_rows, len(shards), _size(folder), last_used)


def verify(cache_root: Path) -> Verification:
    """Check every shard and every exported model against its checksum.

    A damaged shard is set aside. A damaged model stays: it is made again when it is opened.
    """
    n_shards = n_rows = 0
    damaged: list[Path] = []
    for entry in entries(cache_root):
        for path in _shard_paths(entry.folder):
            n_shards += 1
            rows = _sound_rows(path)
            n_rows += rows
            if rows == 0 and path.exists():
                aside = entry.folder / "damaged" / path.name
                aside.parent.mkdir(exist_ok=True)
                path.replace(aside)
                damaged.append(aside)
    models = [p for p in sorted((cache_root / "backbones").glob("*/[!.]*")) if p.suffix in _MODELS]
    damaged_models = tuple(path for path in models if not is_sound(path))
    return Verification(n_shards, n_rows, tuple(damaged), len(models), damaged_models)


def _sound_rows(path: Path) -> int:
    try:
        shard = read_shard(path)
        return len(shard.keys) if shard.is_sound() else 0
    except (FormatError, OSError):
        return 0


def collect(
    cache_root: Path,
    *,
    older_than_days: float | None = None,
    max_bytes: int | None = None,
    dry_run: bool = False,
) -> Collection:
    """Remove what was not used for so long, then what was unused longest, down to a size.

    The size is that of rows, exported models and fine-tuned results: of the rest of the cache,
    nothing goes. What is in use stays. Damaged shards go, as do those that a killed process was
    writing, and exported models that no remaining rows need.
    """
    kept, removed = entries(cache_root), []
    doomed: list[Path] = []
    now = time.time()
    for entry in reversed(list(kept)):
        too_old = older_than_days is not None and now - entry.last_used > older_than_days * _DAY_S
        too_big = max_bytes is not None and _freeable_bytes(cache_root, kept) > max_bytes
        if too_old or too_big:
            with _alone(entry.folder) as is_alone:
                if is_alone:
                    doomed.append(entry.folder if dry_run else _out_of_the_way(entry.folder))
                    kept.remove(entry)
                    removed.append(entry)
    doomed += _leftovers(cache_root, doomed)
    freed = sum(_size(path) for path in doomed)
    kept_bytes = _size(cache_root) - freed
    if not dry_run:
        for path in doomed:
            _remove(path)
    return Collection(cache_root, tuple(removed), freed, kept_bytes, dry_run)


def size_limit() -> int | None:
    """Return how many bytes HEADSTART_CACHE_MAX_GB allows the cache; none where it is not set.

    Raises:
        ParamsError: the variable is no number of gigabytes.
    """
    text = os.environ.get(_LIMIT, "")
    if not text:
        return None
    try:
        max_bytes = int(float(text) * 1e9)
        if max_bytes < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ParamsError(
            f"{_LIMIT} must be a number of gigabytes, such as 20 or 0.5, but got {text!r}: correct "
            "it, or unset it for a cache without a limit"
        ) from None
    return max_bytes


def keep_within(cache_root: Path, max_bytes: int | None) -> None:
    """Remove what was unused longest; nothing without a limit, or on a read-only disk."""
    if max_bytes is not None:
        with contextlib.suppress(OSError):
            collect(cache_root, max_bytes=max_bytes)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody uses what is in a folder; nobody begins to before the end."""
    lock = use_lock(folder)
    try:
        lock.acquire_write(blocking=False)
    except (Timeout, OSError, sqlite3.Error):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _freeable_bytes(cache_root: Path, kept: Sequence[CacheEntry]) -> int:
    """What these entries and the models that they need take, without what goes anyway."""
    models = {path for entry in kept for path in entry.models(cache_root)}
    debris = [path for entry in kept for path in _debris(entry.folder)]
    rows = sum(entry.size_bytes for entry in kept) - sum(map(_size, debris))
    return rows + sum(map(_size, models))


def _leftovers(cache_root: Path, doomed: Sequence[Path]) -> list[Path]:
    # Listed anew: an extraction may have begun since the entries were read.
    kept = [entry for entry in entries(cache_root) if entry.folder not in doomed]
    needed = {path for entry in kept for path in entry.models(cache_root)}
    models = [path for path in (cache_root / "backbones").glob("*") if path not in needed]
    half_gone = [path for path in cache_root.glob("*/.removed-*") if path not in doomed]
    return [*models, *half_gone, *(path for entry in kept for path in _debris(entry.folder))]


def _debris(folder: Path) -> list[Path]:
    """What of an entry nobody needs: damaged shards, and those that were never finished."""
    found = [folder / "damaged"] if (folder / "damaged").exists() else []
    if litter := unfinished(folder):
        with contextlib.suppress(Timeout), write_lock(folder).acquire(blocking=False):
            found += litter
    return found


def _out_of_the_way(folder: Path) -> Path:
    """Renamed before it goes, so that nobody opens a folder that is half gone."""
    doomed = folder.with_name(f".removed-{folder.name}")
    folder.replace(doomed)
    return doomed


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path if path.name.startswith(".removed-") else _out_of_the_way(path)
    shutil.rmtree(doomed, ignore_errors=True)


def entries_text(cache_root: Path, found: Sequence[CacheEntry]) -> str:
    """Return the cache as a table for a person."""
    rows = [
        [
            entry.folder.name[:12],
            f"{entry.n_rows:,}" if entry.n_shards else "",
            f"{entry.n_shards:,}" if entry.n_shards else "",
            size_text(entry.size_bytes),
            time.strftime("%Y-%m-%d", time.localtime(entry.last_used)),
            entry.meaning(),
        ]
        for entry in found
    ]
    if not rows:
        return f"the cache {cache_root} is empty"
    header = ["fingerprint", "rows", "shards", "size", "last used", "what"]
    total = size_text(_size(cache_root))
    return "\n".join([*table(header, rows), f"{total} in {cache_root}"])


def _shard_paths(folder: Path) -> list[Path]:
    return sorted((folder / "shards").glob("[!.]*.h5"))


def _size(folder: Path) -> int:
    total = 0
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
