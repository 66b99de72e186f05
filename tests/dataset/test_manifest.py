"""The manifest: rows survive the trip through CSV, whatever they are called."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.common.errors import DataError, FormatError
from headstart.dataset.manifest import (
    COLUMNS,
    FLAGS,
    Manifest,
    make_manifest,
    read_manifest,
    write_manifest,
)

AWKWARD = ["NA", "null", "nan", "001", "1e5", "True", 'quo"te', "com,ma", "Ünï cödé", "猫", " x "]
names = st.sampled_from(AWKWARD) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=1
)
rows = st.lists(
    st.tuples(names, names, st.sampled_from(["train", "validation", "test"])), max_size=20
)


def manifest_of(found: list[tuple[str, str, str]], flag: bool = False) -> Manifest:
    n = len(found)
    columns: dict[str, Any] = {
        "path": [f"{label}/{name}/{i}" for i, (label, name, _) in enumerate(found)],
        "label": [row[0] for row in found],
        "sha256": [f"{i:064x}" for i in range(n)],
        "size_bytes": np.arange(n) * 10**12,
        "width": np.full(n, 3),
        "height": np.full(n, 4),
        "split": [row[2] for row in found],
        "group": [row[1] for row in found],
        **{name: np.full(n, flag) for name in ("split_given", *FLAGS)},
    }
    return make_manifest(columns)


@settings(deadline=None)
@given(rows, st.booleans())
def test_a_manifest_survives_the_trip(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, str, str]], flag: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "manifest.csv"
    manifest = manifest_of(found, flag)
    write_manifest(path, manifest)
    first = path.read_bytes()
    again = read_manifest(path)
    write_manifest(path, again)
    assert path.read_bytes() == first
    assert again.classes == tuple(sorted({row[0] for row in found}))
    for name in COLUMNS:
        assert again.table[name].tolist() == manifest.table[name].tolist()
    assert again.paths == sorted(again.paths)
    assert [again.classes[i] for i in again.label_ids] == again.table["label"].tolist()
    assert again.max_pixels == (12 if found else 0)


def test_a_selection_keeps_the_classes_and_their_ids() -> None:
    manifest = manifest_of([("a", "g", "test"), ("b", "g", "train"), ("c", "g", "validation")])
    chosen = manifest.select("train", "validation")
    assert chosen.classes == ("a", "b", "c")
    assert chosen.label_ids.tolist() == [1, 2]
    assert chosen.splits == ["train", "validation"]
    assert len(manifest.select()) == 0


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    with pytest.raises(DataError, match="must exist"):
        read_manifest(path)
    path.write_text("path,label\na/1.jpg,a\n")
    with pytest.raises(FormatError, match=r"lacks the columns sha256, .*: run `dvc repro ingest`"):
        read_manifest(path)
    path.write_text("")
    with pytest.raises(FormatError, match="is not a manifest"):
        read_manifest(path)
