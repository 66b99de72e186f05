"""Extraction from a manifest to features.h5: only what the cache lacks is decoded and run forward.

TensorFlow is not imported unless an encoder must be built or Keras itself is the runtime.
"""

import contextlib
import functools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.cache.claims import Claims
from headstart.cache.row_cache import FeatureCache
from headstart.cache.shards import Keys, row_keys
from headstart.common.cost import Cost
from headstart.common.errors import DiskError, one_line
from headstart.common.machine import library_version, processor_name, usable_cores
from headstart.common.progress import begin_step, progress_bar
from headstart.dataset.manifest import Manifest
from headstart.encoders.builders import build
from headstart.encoders.catalogue import encoder_named, row_layers, shown_layers
from headstart.encoders.frozen import FrozenModel
from headstart.encoders.runtimes import HalvingForward, open_forward
from headstart.features.feature_store import FeatureRows, write_features
from headstart.features.pipeline import SHARD_ROWS, Decoder, ShardWriter, Task, run_pipeline
from headstart.features.recipe import contract, fingerprint, model_key, rows_contract
from headstart.features.views import ViewPlan
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

_UNIT_IMAGES = 64
_WAIT_S = 0.2
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Extraction:
    """What an extraction did: images asked for, rows extracted and rows found in the cache."""

    n_images: int
    n_extracted: int
    n_cached: int
    fingerprint: str
    how: str
    seconds: float


@dataclass(frozen=True)
class Extractor:
    """Everything an extraction depends on; `extract` as `runtimes.resolve` returns it."""

    extract: ExtractParams
    image: ImageParams
    seed: int
    root: Path
    cache_root: Path
    shard_rows: int = SHARD_ROWS

    def each(self) -> tuple["Extractor", ...]:
        """The same for each encoder alone: rows are cached by encoder."""
        if len(self.extract.encoders) == 1:
            return (self,)
        return tuple(replace(self, extract=one) for one in self.extract.each())

    @property
    def plan(self) -> ViewPlan:
        return ViewPlan(self.extract.views, self.seed)

    def contract(self) -> dict[str, Any]:
        return dict(self._contract)

    @cached_property
    def _contract(self) -> dict[str, Any]:
        # Once: a weights file that is given as a path is read whole for its hash.
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        return contract(self.extract, self.image, seed=self.seed, backend=backend, root=self.root)

    @property
    def cache_folder(self) -> Path:
        """Where the rows are kept, with those of nothing else."""
        return self.cache_root / "features" / fingerprint(rows_contract(self._contract))[:32]

    def cache(self) -> FeatureCache:
        return FeatureCache(self.cache_folder, rows_contract(self._contract))

    def frozen(self) -> FrozenModel:
        folder = self.cache_root / "backbones" / model_key(self.contract())[:32]
        return FrozenModel(folder, partial(build, self.extract, self.image, self.root))

    def blocks(self, row_length: int) -> dict[str, slice]:
        """The columns of a cached row that features.h5 shows, by layer."""
        encoder = encoder_named(self.extract.encoder)
        held, shown = row_layers(encoder, self.extract), shown_layers(encoder, self.extract)
        if len(held) == 1:
            return {held[0]: slice(0, row_length)}
        ends = np.cumsum([encoder.blocks[layer] for layer in held]).tolist()
        return {
            layer: slice(end - encoder.blocks[layer], end)
            for layer, end in zip(held, ends, strict=True)
            if layer in shown
        }

    def costs(self) -> dict[str, Cost]:
        """What the encoder costs up to each layer that a row may hold."""
        held = row_layers(encoder_named(self.extract.encoder), self.extract)
        found = self.frozen().block_costs()
        # An encoder with one block ends in it.
        return found if len(held) > 1 else dict(zip(held, found.values(), strict=True))

    def how(self) -> str:
        """Encoder, runtime and precision, for a person."""
        return f"{self.extract.encoder} in {self.extract.runtime} {self.extract.precision}"


def extract_features(
    extractor: Extractor, manifest: Manifest, images: Path, features: Path, encoder: Path
) -> Extraction:
    """Write `features` (features.h5) and `encoder` (backbone.h5) for the manifest's images.

    `images` is the folder that the manifest's paths are relative to. Only rows that the cache
    lacks are extracted; processes that do the same at once share the work.

    Raises:
        ParamsError, WeightsError: the encoder cannot be had as asked.
        DataError: an image is gone or is no longer what the manifest says.
        DiskError: a row is missing from the cache, which cannot be written.
    """
    keys = _keys(extractor.plan, manifest.sha256)
    each = extractor.each()
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        caches, n_extracted = [], 0
        for one in each:
            cache, n_rows = _filled_cache(one, manifest, images, keys, stack)
            caches.append(cache)
            n_extracted += n_rows
        seconds = time.monotonic() - started
        blocks: dict[str, slice] = {}
        costs: dict[str, Cost] = {}
        start = 0
        for one, cache in zip(each, caches, strict=True):
            prefix = f"{one.extract.encoder}." if len(each) > 1 else ""
            for name, own in one.blocks(cache.feature_dim).items():
                blocks[prefix + name] = slice(start + own.start, start + own.stop)
            costs |= {prefix + name: cost for name, cost in one.costs().items()}
            start += cache.feature_dim
        begin_step("writing the features")
        write_features(
            features,
            rows=_rows(manifest),
            parts=_parts(caches, keys),
            n_views=extractor.plan.n_views,
            encoder=extractor.extract.encoder,
            blocks=blocks,
            classes=manifest.classes,
            contract=extractor.contract(),
            fingerprint=fingerprint(extractor.contract()),
            validation_given=manifest.is_given("validation"),
            costs=costs,
        )
        extractor.frozen().copy_h5(encoder)
        for cache in caches:
            cache.merge()
    return Extraction(
        n_images=len(manifest),
        n_extracted=n_extracted,
        n_cached=len(each) * len(_unique(keys)) - n_extracted,
        fingerprint=fingerprint(extractor.contract()),
        how=extractor.how(),
        seconds=seconds,
    )


def _filled_cache(
    extractor: Extractor, manifest: Manifest, images: Path, keys: Keys, stack: contextlib.ExitStack
) -> tuple[FeatureCache, int]:
    """The cache of one encoder's rows, which lacks none, and how many were extracted for that."""
    cache = extractor.cache()
    claims, reason = None, ""
    try:
        # Held to the end: what is claimed is not removed to make room.
        claims = stack.enter_context(Claims(extractor.cache_folder / "claims"))
        cache.refresh()
    except OSError as error:
        reason = error.strerror or one_line(error)
    if not cache.missing(_unique(keys)).any():
        return cache, 0
    if claims is None:
        raise DiskError(
            "the feature cache must be writable while it lacks rows, but "
            f"{extractor.cache_root} is not ({reason}): make room or change its mode, or "
            "set HEADSTART_CACHE to another folder"
        )
    return cache, fill(extractor, cache, claims, manifest, images)


def fill(
    extractor: Extractor, cache: FeatureCache, claims: Claims, manifest: Manifest, images: Path
) -> int:
    """Extract what the cache lacks of the manifest; returns how many rows this process did.

    Returns when the cache lacks nothing, be it by this process or by others.
    """
    cores = usable_cores()
    extract = extractor.extract
    forward = open_forward(extractor.frozen(), extract.runtime, extract.precision, cores)
    batch_size = forward.batch_size if extract.batch_size == "auto" else extract.batch_size
    fitting = HalvingForward(forward)
    # Found in the thread that writes: reading versions takes as long as several images.
    made_by = functools.cache(lambda: provenance(extract, forward.devices()))
    decoder = Decoder(extractor.image, extractor.plan, manifest.max_pixels)
    queue = _Queue(cache, extractor.plan, manifest, images)
    n_rows = 0
    with progress_bar(total=queue.n_missing, unit="images", title="extract") as bar:
        while not queue.is_done():
            with ShardWriter(
                cache,
                extractor.plan,
                made_by,
                extractor.shard_rows,
                on_images=bar.update,
                on_written=claims.done,
            ) as sink:
                run_pipeline(
                    queue.tasks(claims),
                    decoder=decoder,
                    forward=fitting,
                    is_open=forward.is_open,
                    sink=sink,
                    batch_size=batch_size,
                    workers=forward.workers,
                    cores=cores,
                )
            n_rows += sink.n_rows
            if sink.n_rows == 0:
                time.sleep(_WAIT_S)
    return n_rows


class _Queue:
    """The images that the cache lacks, handed out in units that no other process has claimed."""

    def __init__(
        self, cache: FeatureCache, plan: ViewPlan, manifest: Manifest, images: Path
    ) -> None:
        self._cache, self._plan = cache, plan
        self._paths = {
            sha256: images / path
            for sha256, path in zip(manifest.sha256, manifest.paths, strict=True)
        }
        self._pending = list(self._paths)
        self._refresh()
        self.n_missing = len(self._pending)

    def is_done(self) -> bool:
        self._cache.refresh()
        self._refresh()
        return not self._pending

    def _refresh(self) -> None:
        lacking = np.flatnonzero(self._missing_views(self._pending).any(axis=1))
        self._pending = [self._pending[index] for index in lacking]

    def _missing_views(self, sha256: list[str]) -> NDArray[np.bool_]:
        """bool, shape (n_images, n_views)."""
        columns = [
            self._cache.missing(row_keys(sha256, self._plan.key(view)))
            for view in range(self._plan.n_views)
        ]
        return np.stack(columns, axis=1)

    def tasks(self, claims: Claims) -> Iterator[Task]:
        """Tasks not done or claimed by others, claimed unit by unit as they are asked for."""
        position = 0
        while position < len(self._pending):
            with claims.taking:
                self._cache.refresh()
                others = claims.others()
                unit: list[Task] = []
                while position < len(self._pending) and len(unit) < _UNIT_IMAGES:
                    window = self._pending[position : position + _UNIT_IMAGES]
                    unit.extend(t for t in self._lacking(window) if t.sha256 not in others)
                    position += len(window)
                claims.claim(task.sha256 for task in unit)
            yield from unit

    def _lacking(self, sha256: list[str]) -> Iterator[Task]:
        for digest, lacks in zip(sha256, self._missing_views(sha256), strict=True):
            if lacks.any():
                views = tuple(int(view) for view in np.flatnonzero(lacks))
                yield Task(self._paths[digest], digest, views)


def _keys(plan: ViewPlan, sha256: list[str]) -> Keys:
    """Keys of all rows, shape (n_images, n_views)."""
    return np.stack([row_keys(sha256, plan.key(view)) for view in range(plan.n_views)], axis=1)


def _unique(keys: Keys) -> Keys:
    return np.unique(keys)


def _parts(caches: Sequence[FeatureCache], keys: Keys) -> Iterator[NDArray[np.float32]]:
    n_images, n_views = keys.shape
    step = max(1, _BLOCK_ROWS // n_views)
    for start in range(0, n_images, step):
        block = keys[start : start + step]
        rows = [cache.read(block.reshape(-1)).reshape(*block.shape, -1) for cache in caches]
        yield rows[0] if len(rows) == 1 else np.concatenate(rows, axis=-1)


def _rows(manifest: Manifest) -> FeatureRows:
    return FeatureRows(
        label_ids=manifest.label_ids,
        sha256=manifest.sha256,
        paths=manifest.paths,
        splits=manifest.splits,
        groups=manifest.groups,
    )


_LIBRARIES = {
    "keras": ("keras", "tensorflow-cpu", "tensorflow", "jax"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


def provenance(extract: ExtractParams, devices: Sequence[str]) -> dict[str, Any]:
    """What may differ between machines: libraries that compute, the processor, and devices."""
    names = _LIBRARIES.get(extract.runtime, (extract.runtime,))
    return {
        "versions": {
            name: version for name in (*names, "pillow") if (version := library_version(name))
        },
        "processor": processor_name(),
        "devices": list(devices),
    }
