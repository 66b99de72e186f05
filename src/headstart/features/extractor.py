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

from headstart.cache.row_cache import SHARD_ROWS, RowCache
from headstart.cache.shards import Keys, row_keys
from headstart.common.cost import Cost
from headstart.common.machine import (
    has_gpu,
    library_version,
    processor_name,
    usable_cores,
)
from headstart.common.progress import begin_step, progress_bar
from headstart.dataset.manifest import Manifest
from headstart.encoders.builders import build
from headstart.encoders.catalogue import chosen_encoder, row_layers, shown_layers
from headstart.encoders.frozen import FrozenModel
from headstart.encoders.runtimes import Forward, HalvingForward, has_bf16, open_forward
from headstart.features.feature_store import FeatureRows, write_features
from headstart.features.pipeline import Decoder, PixelSource, Task, extract_rows
from headstart.features.recipe import feature_recipe, fingerprint, model_key, row_recipe
from headstart.features.views import ViewPlan
from headstart.images.decode import decoder_versions
from headstart.images.input_pixels import InputPixels
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

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

    def recipe(self) -> dict[str, Any]:
        return dict(self._recipe)

    @cached_property
    def _recipe(self) -> dict[str, Any]:
        # Once: a weights file that is given as a path is read whole for its hash.
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        return feature_recipe(
            self.extract, self.image, seed=self.seed, backend=backend, root=self.root
        )

    @property
    def cache_folder(self) -> Path:
        """Where the rows are kept, with those of nothing else."""
        return self.cache_root / "features" / fingerprint(self._row_recipe)[:32]

    def cache(self) -> RowCache:
        return RowCache(self.cache_folder, self._row_recipe, shard_rows=self.shard_rows)

    @property
    def _row_recipe(self) -> dict[str, Any]:
        return {**row_recipe(self._recipe), "decoder": decoder_versions()}

    def frozen(self) -> FrozenModel:
        folder = self.cache_root / "backbones" / model_key(self.recipe())[:32]
        return FrozenModel(folder, partial(build, self.extract, self.image, self.root))

    def blocks(self, row_length: int) -> dict[str, slice]:
        """The columns of a cached row that features.h5 shows, by layer."""
        encoder = chosen_encoder(self.extract, self.root)
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
        held = row_layers(chosen_encoder(self.extract, self.root), self.extract)
        found = self.frozen().block_costs()
        # An encoder with one block ends in it.
        return found if len(held) > 1 else dict(zip(held, found.values(), strict=True))

    def how(self) -> str:
        """Encoder, runtime and precision, for a person."""
        return f"{self.extract.encoder} in {self.extract.runtime} {self.extract.precision}"


@dataclass(frozen=True)
class ExtractedRows:
    """The feature rows of some images.

    Attributes:
        parts: float32 (n, n_views, row length), together one row an image; of several encoders
            side by side.
        blocks: layer → its columns of the parts, in the order in which heads see them.
        costs: of the encoders up to each layer.
        n_extracted, n_cached: rows that were computed, and that were there.
        seconds: for what was computed.
    """

    parts: Iterator[NDArray[np.float32]]
    blocks: dict[str, slice]
    costs: dict[str, Cost]
    n_extracted: int
    n_cached: int
    seconds: float


@contextlib.contextmanager
def extracted_rows(
    extractor: Extractor, pixels: PixelSource, paths: Sequence[str], sha256: Sequence[str]
) -> Iterator[ExtractedRows]:
    """Extract what the cache lacks of these images; meanwhile nobody makes room by removing rows.

    Of processes that do the same at once, one does it and the others wait.

    Args:
        paths: by which `pixels` finds each image.

    Raises:
        As `extract_features` does.
    """
    keys = _keys(extractor.plan, sha256)
    each = extractor.each()
    caches = [one.cache() for one in each]
    with contextlib.ExitStack() as stack:
        for cache in caches:
            stack.enter_context(cache.in_use())
        started = time.monotonic()
        n_extracted = sum(
            fill(one, cache, pixels, paths, sha256, keys)
            for one, cache in zip(each, caches, strict=True)
        )
        seconds = time.monotonic() - started
        blocks: dict[str, slice] = {}
        costs: dict[str, Cost] = {}
        start = 0
        for one, cache in zip(each, caches, strict=True):
            prefix = f"{one.extract.encoder}." if len(each) > 1 else ""
            (feature_dim,) = cache.row_shape
            for name, own in one.blocks(feature_dim).items():
                blocks[prefix + name] = slice(start + own.start, start + own.stop)
            costs |= {prefix + name: cost for name, cost in one.costs().items()}
            start += feature_dim
        n_cached = len(each) * len(np.unique(keys)) - n_extracted
        parts = _parts(caches, keys)
        yield ExtractedRows(parts, blocks, costs, n_extracted, n_cached, seconds)


def extract_features(
    extractor: Extractor, manifest: Manifest, images: Path, features: Path, encoder: Path
) -> Extraction:
    """Write `features` (features.h5) and `encoder` (backbone.h5) for the manifest's images.

    `images` is the folder that the manifest's paths are relative to.

    Raises:
        ParamsError, WeightsError: the encoder cannot be had as asked.
        DataError: an image is gone or is no longer what the manifest says.
        DiskError: a row is missing from the cache, which cannot be written.
    """
    pixels = InputPixels(
        extractor.cache_root, images, extractor.image, max_pixels=manifest.max_pixels
    )
    with extracted_rows(extractor, pixels, manifest.paths, manifest.sha256) as found:
        begin_step("writing the features")
        write_features(
            features,
            rows=_rows(manifest),
            parts=found.parts,
            n_views=extractor.plan.n_views,
            encoder=extractor.extract.encoder,
            blocks=found.blocks,
            classes=manifest.classes,
            recipe=extractor.recipe(),
            fingerprint=fingerprint(extractor.recipe()),
            validation_given=manifest.is_given("validation"),
            costs=found.costs,
        )
        extractor.frozen().copy_h5(encoder)
    return Extraction(
        n_images=len(manifest),
        n_extracted=found.n_extracted,
        n_cached=found.n_cached,
        fingerprint=fingerprint(extractor.recipe()),
        how=extractor.how(),
        seconds=found.seconds,
    )


def fill(
    extractor: Extractor,
    cache: RowCache,
    pixels: PixelSource,
    paths: Sequence[str],
    sha256: Sequence[str],
    keys: Keys,
) -> int:
    """Extract what the cache lacks of `keys`, shape (n_images, n_views); returns how many rows."""
    cores = usable_cores()
    extract = extractor.extract

    # Only where a row is missing.
    @functools.cache
    def forward() -> Forward:
        return open_forward(extractor.frozen(), extract.runtime, extract.precision, cores)

    def compute(lacking: Keys) -> Iterator[tuple[Keys, NDArray[np.float32]]]:
        opened = forward()
        tasks = _tasks(paths, sha256, np.isin(keys, lacking))
        batch_size = opened.batch_size if extract.batch_size == "auto" else extract.batch_size
        with (
            pixels.in_use([task.sha256 for task in tasks]),
            progress_bar(
                total=len(tasks), unit="images", title="extract", faster=faster_extraction(extract)
            ) as bar,
        ):
            for rows, features in extract_rows(
                tasks,
                decoder=Decoder(pixels, extractor.plan),
                forward=HalvingForward(opened),
                is_open=opened.is_open,
                batch_size=batch_size,
                workers=opened.workers,
                cores=cores,
            ):
                own = [row_keys([task.sha256], extractor.plan.key(view)) for task, view in rows]
                yield np.concatenate(own), features
                bar.update(sum(view == task.views[-1] for task, view in rows))

    # Found in the thread that writes: reading versions takes as long as several images.
    made_by = functools.cache(lambda: provenance(extract, forward().devices()))
    return cache.fill(keys.reshape(-1), compute, made_by)


def faster_extraction(extract: ExtractParams) -> str:
    """What would extract faster on this machine; docs/measurements.md has by how much."""
    ways = []
    if not has_gpu() and has_bf16() and extract.precision == "float32":
        ways.append("extract.runtime: openvino with extract.precision: bfloat16")
    elif not has_gpu() and extract.runtime == "keras" and extract.precision == "float32":
        ways.append("extract.runtime: onnxruntime")
    if extract.views > 1:
        ways.append("fewer extract.views")
    smallest = "efficientnet-lite0"
    if extract.encoder != smallest:
        ways.append(f"a smaller encoder, such as {smallest}")
    return "; ".join(ways)


def _tasks(
    paths: Sequence[str], sha256: Sequence[str], is_missing: NDArray[np.bool_]
) -> list[Task]:
    """The images of which views are missing, bool, shape (n_images, n_views); copies once."""
    tasks: dict[str, Task] = {}
    for path, digest, own in zip(paths, sha256, is_missing, strict=True):
        if own.any():
            tasks.setdefault(digest, Task(path, digest, tuple(np.flatnonzero(own).tolist())))
    return list(tasks.values())


def _keys(plan: ViewPlan, sha256: Sequence[str]) -> Keys:
    """Keys of all rows, shape (n_images, n_views)."""
    return np.stack([row_keys(sha256, plan.key(view)) for view in range(plan.n_views)], axis=1)


def _parts(caches: Sequence[RowCache], keys: Keys) -> Iterator[NDArray[np.float32]]:
    n_images, n_views = keys.shape
    step = max(1, _BLOCK_ROWS // n_views)
    for start in range(0, n_images, step):
        block = keys[start : start + step]
        rows = [cache.get(block.reshape(-1)).reshape(*block.shape, -1) for cache in caches]
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
