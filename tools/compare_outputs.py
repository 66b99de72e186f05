"""Compare what the stages wrote in two checkouts, bit by bit.

    python tools/compare_outputs.py BEFORE AFTER

For HDF5 files: every dataset and every weight must be identical; attributes that differ are listed.
CSV files and best_head.json must have the same bytes. Exits with 1 where data differ.
"""

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HDF5 = ("data/images.h5", "data/features.h5", "models/backbone.h5", "models/model.h5")
BYTES = (
    "data/manifest.csv",
    "data/best_head.json",
    "reports/rejected.csv",
    "reports/predictions.csv",
    "reports/out_of_fold.csv",
    "reports/search/trials.csv",
)


def main() -> int:
    """Print one line for each file; returns the exit status."""
    before, after = (Path(argument) for argument in sys.argv[1:3])
    wrong = 0
    for name in HDF5:
        with h5py.File(before / name) as old, h5py.File(after / name) as new:
            differing, attributes, n_datasets = compared(old, new)
        wrong += len(differing)
        told = f"{len(differing)} differ: {differing[:5]}" if differing else "all identical"
        print(f"{name:<28} {n_datasets} datasets, {told}")
        for attribute in attributes:
            print(f"{'':<28} attribute {attribute}")
    for name in BYTES:
        same = (before / name).read_bytes() == (after / name).read_bytes()
        wrong += not same
        print(f"{name:<28} {'identical' if same else 'DIFFERS'}")
    return 1 if wrong else 0


def compared(old: Any, new: Any) -> tuple[list[str], list[str], int]:
    """Return the datasets that differ, the attributes that do, and the number of datasets."""
    old_items, new_items = _items(old), _items(new)
    differing, attributes = [], []
    for name in sorted(set(old_items) | set(new_items)):
        ours, theirs = old_items.get(name), new_items.get(name)
        if ours is None or theirs is None:
            differing.append(name)
            continue
        attributes += [
            f"{name or '/'}@{key}"
            for key in sorted(set(ours.attrs) | set(theirs.attrs))
            if not np.array_equal(ours.attrs.get(key), theirs.attrs.get(key))
        ]
        if isinstance(ours, h5py.Dataset):
            same = ours.dtype == theirs.dtype and ours.shape == theirs.shape
            if not same or ours[...].tobytes() != theirs[...].tobytes():
                differing.append(name)
    n_datasets = sum(isinstance(item, h5py.Dataset) for item in old_items.values())
    return differing, attributes, n_datasets


def _items(file: Any) -> dict[str, Any]:
    items = {"": file}
    file.visititems(lambda name, item: items.update({name: item}))
    return items


if __name__ == "__main__":
    sys.exit(main())
