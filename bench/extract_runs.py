"""What bench/extract.py measures, each in a process of its own.

    python -m bench.extract_runs KIND FOLDER LIMIT ENCODER RUNTIME PRECISION OUT

Prints one line of JSON. Kinds: `bound` (forward and decode alone), `stage` (this project),
`dataset` and `loop` (the peers). Everything is built, exported and warm before the clock starts,
for this project and the peers alike; reading, decoding, forward pass and writing are inside it.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.extract_data import manifest_of
from headstart.common.paths import cache_folder
from headstart.common.quiet import quiet_libraries
from headstart.encoders.runtimes import open_forward
from headstart.features.extractor import Extractor, extract_features
from headstart.features.pipeline import Decoder, Task
from headstart.images.input_pixels import InputPixels
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

_FORWARD_SECONDS = 4.0
_PEER_BATCH = 32


def main() -> None:
    """Run one kind and print what was measured."""
    kind, folder, limit, encoder, runtime, precision, out = sys.argv[1:]
    quiet_libraries()
    params = ExtractParams.model_validate(
        {"encoders": encoder, "runtime": runtime, "precision": precision}
    )
    extractor = Extractor(params, ImageParams(), 0, Path.cwd(), cache_folder())
    run = {"bound": bound, "stage": stage, "dataset": dataset, "loop": loop}[kind]
    found = run(extractor, Path(folder), int(limit), Path(out))
    found["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(found))


def bound(extractor: Extractor, folder: Path, limit: int, _: Path) -> dict[str, float]:
    """Images a second of the forward pass on all cores, and of decoding on all cores, alone."""
    cores = len(os.sched_getaffinity(0))
    extract = extractor.extract
    forward = open_forward(extractor.frozen(), extract.runtime, extract.precision, cores)
    manifest = manifest_of(folder, min(limit, 200))
    # An empty cache: every image is decoded.
    with tempfile.TemporaryDirectory() as empty:
        source = InputPixels(Path(empty), folder, extractor.image, max_pixels=manifest.max_pixels)
    decoder = Decoder(source, extractor.plan)
    tasks = [
        Task(path, sha256, (0,))
        for path, sha256 in zip(manifest.paths, manifest.sha256, strict=True)
    ]
    with ThreadPoolExecutor(cores) as pool:
        started = time.perf_counter()
        squares = list(pool.map(decoder, tasks))
        decoded = len(tasks) / (time.perf_counter() - started)
    pixels = np.concatenate(squares)
    with ThreadPoolExecutor(forward.workers) as pool:
        batches = _endless(pixels, forward.batch_size)
        list(pool.map(forward, [next(batches) for _ in range(forward.workers)]))
        n_rows, started = 0, time.perf_counter()
        while time.perf_counter() - started < _FORWARD_SECONDS:
            some = [next(batches) for _ in range(4 * forward.workers)]
            n_rows += sum(len(rows) for rows in pool.map(forward, some))
        computed = n_rows / (time.perf_counter() - started)
    return {"forward": computed, "decode": decoded, "bound": 1 / (1 / computed + 1 / decoded)}


def _endless(pixels: NDArray[np.uint8], n_rows: int) -> Iterator[NDArray[np.uint8]]:
    while True:
        for start in range(0, max(1, len(pixels) - n_rows + 1), n_rows):
            yield pixels[start : start + n_rows]


def stage(extractor: Extractor, folder: Path, limit: int, out: Path) -> dict[str, float]:
    """The whole stage: from the manifest in memory to features.h5 and backbone.h5 on disk."""
    manifest = manifest_of(folder, limit)
    started = time.perf_counter()
    done = extract_features(extractor, manifest, folder, out / "features.h5", out / "backbone.h5")
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "rate": len(manifest) / seconds,
        "n_images": len(manifest),
        "n_extracted": done.n_extracted,
    }


def dataset(extractor: Extractor, folder: Path, limit: int, out: Path) -> dict[str, float]:
    """`keras.utils.image_dataset_from_directory` and `model.predict`."""
    import keras

    linked = _linked(folder, limit, out / "dataset")
    size = extractor.image.size

    def work(model: Any) -> int:
        images = keras.utils.image_dataset_from_directory(
            linked,
            labels=None,
            image_size=(size, size),
            batch_size=_PEER_BATCH,
            shuffle=False,
            verbose=False,
        )
        features = model.predict(images, verbose=0)
        np.save(out / "features.npy", features)
        return len(features)

    return _timed_peer(extractor, work)


def loop(extractor: Extractor, folder: Path, limit: int, out: Path) -> dict[str, float]:
    """The usual script: load a batch of files, predict it, append it to an HDF5 dataset."""
    import h5py
    import keras

    size = extractor.image.size
    paths = [folder / path for path in manifest_of(folder, limit).paths]

    def work(model: Any) -> int:
        with h5py.File(out / "loop.h5", "w") as file:
            shape = (0, model.output_shape[1])
            target = file.create_dataset("features", shape, "f4", maxshape=(None, shape[1]))
            for start in range(0, len(paths), _PEER_BATCH):
                batch = np.stack(
                    [
                        keras.utils.img_to_array(
                            keras.utils.load_img(path, target_size=(size, size))
                        )
                        for path in paths[start : start + _PEER_BATCH]
                    ]
                )
                features = model.predict(batch, verbose=0)
                target.resize(start + len(features), axis=0)
                target[start:] = features
        return len(paths)

    return _timed_peer(extractor, work)


def _timed_peer(extractor: Extractor, work: Callable[[Any], int]) -> dict[str, float]:
    model = extractor.frozen().load()
    size = extractor.image.size
    model.predict(np.zeros((_PEER_BATCH, size, size, 3), np.float32), verbose=0)
    started = time.perf_counter()
    n_images = work(model)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rate": n_images / seconds, "n_images": n_images}


def _linked(folder: Path, limit: int, target: Path) -> Path:
    for path in manifest_of(folder, limit).paths:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).symlink_to((folder / path).resolve())
    return target


if __name__ == "__main__":
    main()
