"""data/features.h5: what goes in comes out, in the same bytes, and nothing else is read."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headstart.common.errors import FormatError
from headstart.common.hdf5 import gather
from headstart.features.feature_store import FeatureStore, write_features
from tests.features.samples import feature_rows

RECIPE = {"backbone": "vgg16", "precision": "float32"}


def write(path: Path, features: NDArray[np.float32], n_parts: int = 1, seed: int = 0) -> None:
    write_features(
        path,
        rows=feature_rows(len(features), seed),
        parts=np.array_split(features, n_parts),
        n_views=features.shape[1],
        encoder="small",
        blocks={"last": slice(0, features.shape[2])},
        classes=("cat", "dög"),
        recipe=RECIPE,
        fingerprint="f" * 64,
    )


def some_features(n_images: int, n_views: int = 1, dim: int = 7) -> NDArray[np.float32]:
    generator = np.random.default_rng(1)
    return generator.standard_normal((n_images, n_views, dim), np.float32)


@settings(max_examples=25, deadline=None)
@given(
    n_images=st.integers(1, 40),
    n_views=st.integers(1, 3),
    dim=st.integers(1, 33),
    n_parts=st.integers(1, 5),
)
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, n_images: int, n_views: int, dim: int, n_parts: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "features.h5"
    features = some_features(n_images, n_views, dim)
    write(path, features, n_parts)
    rows = feature_rows(n_images)
    with FeatureStore(path) as store:
        assert (len(store), store.n_views, store.feature_dim) == (n_images, n_views, dim)
        assert store.classes == ("cat", "dög")
        assert (store.recipe, store.fingerprint) == (RECIPE, "f" * 64)
        np.testing.assert_array_equal(store.rows(np.arange(len(store))).features, features)
        np.testing.assert_array_equal(store.label_ids, rows.label_ids)
        for name in ("sha256", "paths", "splits", "groups"):
            assert list(getattr(store, name)) == list(getattr(rows, name)), name


def test_a_split_holds_its_rows_in_the_manifests_order(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    features = some_features(10)
    write(path, features)
    rows = feature_rows(10)
    with FeatureStore(path) as store:
        batch = store.split("validation")
    chosen = [2, 6]
    np.testing.assert_array_equal(batch.features, features[chosen])
    np.testing.assert_array_equal(batch.label_ids, rows.label_ids[chosen])
    for name in ("sha256", "paths", "groups"):
        strings, all_rows = getattr(batch, name), getattr(rows, name)
        assert (len(strings), strings[1]) == (2, all_rows[6]), name
        assert list(strings) == strings[:] == [all_rows[i] for i in chosen], name
    assert (len(batch), batch.features.dtype.name) == (2, "float32")


def test_rows_and_slices_without_reading_everything(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    features = some_features(5000)
    write(path, features)
    wanted = np.random.default_rng(0).integers(0, 5000, 300)
    with FeatureStore(path) as store:
        np.testing.assert_array_equal(store.rows(wanted).features, features[wanted])


def test_other_processes_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    features = some_features(200)
    write(path, features)
    code = (
        "import sys; from pathlib import Path\n"
        "from headstart.features.feature_store import FeatureStore\n"
        "with FeatureStore(Path(sys.argv[1])) as s: print(s.split('train').features.sum())"
    )
    with FeatureStore(path) as store:
        command = [sys.executable, "-c", code, str(path)]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        answers = [reader.communicate()[0].strip() for reader in readers]
        assert answers == [str(store.split("train").features.sum())] * 3


def test_same_bytes_however_the_rows_came(tmp_path: Path) -> None:
    features = some_features(50)
    write(tmp_path / "a.h5", features, n_parts=1)
    write(tmp_path / "b.h5", features, n_parts=7)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_too_few_rows_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with pytest.raises(ValueError, match="expected 3 rows of features, got 2"):
        write_features(
            path,
            rows=feature_rows(3),
            parts=[some_features(2)],
            n_views=1,
            encoder="small",
            blocks={"last": slice(0, 7)},
            classes=("cat", "dog"),
            recipe=RECIPE,
            fingerprint="f" * 64,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"features\.h5 must exist.*run dvc repro extract"):
        FeatureStore(tmp_path / "features.h5")


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    write(path, some_features(4))
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(
        FormatError, match=r"features\.h5 must be of version 2 .* is of version 9: run dvc repro"
    ):
        FeatureStore(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "headstart-images"
    with pytest.raises(
        FormatError, match="must be of the format headstart-features, but is headstart-images"
    ):
        FeatureStore(path)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, part: float) -> None:
    path = tmp_path / "features.h5"
    write(path, some_features(400))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(FormatError, match=r"features\.h5 .*truncated.*: run dvc repro extract"):
        FeatureStore(path)


@pytest.mark.parametrize("n", [10, 5_000])
def test_few_rows_and_many_are_those_that_are_asked_for(n: int) -> None:
    mapped = np.arange(n * 1024, dtype=np.float32).reshape(n, 1, 1024)
    for indices in (np.arange(n), np.arange(n)[::-1], np.array([n - 1, 0, 0, -1]), np.arange(0)):
        assert np.array_equal(gather(mapped, indices), mapped[indices])
    for wrong in (n, -n - 1):
        with pytest.raises(IndexError, match="out of bounds"):
            gather(mapped, np.array([wrong]))


def test_blocks_are_datasets_and_are_chosen_by_layer(tmp_path: Path) -> None:
    path = tmp_path / "features.h5"
    parts = some_features(20, dim=9)
    write_features(
        path,
        rows=feature_rows(20),
        parts=[parts[:12], parts[12:]],
        n_views=1,
        encoder="small",
        blocks={"head": slice(4, 9), "stage": slice(0, 3)},
        classes=("cat", "dog"),
        recipe=RECIPE,
        fingerprint="f" * 64,
    )
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features/small/stage"], parts[..., :3])
    wanted = np.array([13, 2])
    with FeatureStore(path) as store:
        assert store.layers == ("head", "stage")
        assert store.columns() == {"head": slice(0, 5), "stage": slice(5, 8)}
        assert store.columns(["stage"]) == {"stage": slice(0, 3)}
        both = np.concatenate([parts[..., 4:], parts[..., :3]], axis=-1)
        np.testing.assert_array_equal(store.rows(wanted).features, both[wanted])
        np.testing.assert_array_equal(store.rows(wanted, ["stage"]).features, parts[wanted, :, :3])
        with pytest.raises(FormatError, match="must hold the blocks stem, but holds head, stage"):
            store.rows(wanted, ["stem"])
