"""HeadstartClassifier is an estimator as scikit-learn's own, on the features of the pipeline."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import headstart
from headstart import HeadstartClassifier
from headstart.common.errors import DataError, ParamsError
from headstart.features import extractor as extractor_module
from headstart.features.extractor import extract_features
from headstart.features.feature_store import FeatureStore
from headstart.heads.metrics import softmax
from headstart.images.decode import decode
from tests.features.conftest import exported
from tests.features.samples import SIZE_PX, extractor, manifest_of, pixels

__all__ = ["exported"]


# None is expected to fail. scikit-learn itself leaves out check_array_api_input unless
# SCIPY_ARRAY_API is set: this estimator answers in numpy alone.
@parametrize_with_checks([HeadstartClassifier()])  # type: ignore[untyped-decorator]
def test_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture
def pictures(exported: Path, own_cache: Path, tmp_path: Path) -> tuple[list[Path], list[str]]:
    """Paths of 24 reddish and bluish pictures and their labels; the encoder is in the cache."""
    (own_cache / "backbones").symlink_to(exported / "backbones")
    paths = []
    for number in range(24):
        tinted = pixels(number) // 2
        tinted[..., 2 * (number % 2)] += 100
        paths.append(tmp_path / ("red", "blue")[number % 2] / f"{number:02}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(tinted).save(paths[-1])
    return paths, [path.parent.name for path in paths]


def small(**options: Any) -> HeadstartClassifier:
    return HeadstartClassifier(size_px=SIZE_PX, **options)


def test_paths_bytes_and_pixels_give_the_same_answers(
    pictures: tuple[list[Path], list[str]],
) -> None:
    paths, labels = pictures
    model = small().fit(paths, labels)
    assert list(model.classes_) == ["blue", "red"]
    assert model.score(paths, labels) == 1.0
    assert model.n_features_in_ == 1904
    expected = model.predict_proba(paths)
    assert expected.shape == (24, 2)
    data = [path.read_bytes() for path in paths]
    whole = np.stack([decode(one) for one in data])
    for same in (np.array([str(path) for path in paths]), data, whole, list(whole)):
        np.testing.assert_array_equal(model.predict_proba(same), expected)
        np.testing.assert_array_equal(small().fit(same, labels).predict_proba(paths), expected)


def test_an_image_is_computed_once(
    pictures: tuple[list[Path], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, labels = pictures
    small().fit(paths, labels)
    monkeypatch.setattr(extractor_module, "open_forward", lambda *_: pytest.fail("computed again"))
    assert cross_val_score(small(), paths, labels, cv=3).mean() == 1.0


def test_pipelines_grids_and_clones(pictures: tuple[list[Path], list[str]]) -> None:
    paths, labels = pictures
    model = make_pipeline(FunctionTransformer(list), small())
    grid = {"headstartclassifier__folds": [2, 3], "headstartclassifier__pooling": ["avg", "max"]}
    found = GridSearchCV(model, grid, cv=2, error_score="raise").fit(paths, labels)
    assert found.best_score_ == 1.0
    assert found.score(paths, labels) == 1.0
    copy = clone(found.best_estimator_[-1])
    assert copy.get_params() == found.best_estimator_[-1].get_params()
    assert copy.set_params(folds=np.int64(4)).fit(paths, labels).score(paths, labels) == 1.0
    features = np.random.default_rng(0).normal(size=(40, 3)) + np.repeat([[0], [3]], 20, axis=0)
    scaled = make_pipeline(StandardScaler(), HeadstartClassifier())
    assert cross_val_score(scaled, features, np.repeat([0, 1], 20), cv=2).min() > 0.9


ANSWER = """
import pickle, sys
model, paths = pickle.load(open(sys.argv[1], "rb"))
heavy = {"mlflow", "optuna", "tensorflow", "keras"} & set(sys.modules)
assert not heavy, heavy
sys.stdout.buffer.write(model.predict_proba(paths).tobytes())
"""


def test_a_pickled_one_answers_in_a_fresh_process(
    pictures: tuple[list[Path], list[str]], tmp_path: Path
) -> None:
    paths, labels = pictures
    model = small().fit(paths[:20], labels[:20])
    expected = model.predict_proba(paths)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps((model, paths)))
    command = [sys.executable, "-c", ANSWER, str(tmp_path / "model.pickle")]
    done = subprocess.run(command, capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(done.stdout).reshape(-1, 2), expected)


def test_bad_images_are_named(pictures: tuple[list[Path], list[str]], tmp_path: Path) -> None:
    paths, labels = pictures
    (tmp_path / "text.png").write_text("no image")
    for wrong, message in (
        (tmp_path / "none.png", r"image 3 \(.*none\.png\) is not \(No such file.*correct its path"),
        (tmp_path, r"image 3 \(.*\) is not \(Is a directory\)"),
        (tmp_path / "text.png", r"image 3 \(.*text\.png\): It is not an image"),
        (
            np.zeros((8, 8, 3)),
            r"image 3: pixels must be RGB, uint8 .* float64 of shape \(8, 8, 3\)",
        ),
        (np.zeros((8, 8), np.uint8), r"image 3: pixels must be RGB, uint8 .* of shape \(8, 8\)"),
    ):
        with pytest.raises(DataError, match=message):
            small().fit([*paths[:3], wrong, *paths[4:]], labels)
    with pytest.raises(DataError, match=r"image 0: pixels must be RGB, .* of shape \(40, 48\)"):
        small().fit(np.zeros((24, 40, 48), np.uint8), labels)


def test_bad_labels_and_parameters(pictures: tuple[list[Path], list[str]]) -> None:
    paths, labels = pictures
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        small().fit(paths, labels[:-1])
    with pytest.raises(ValueError, match="needs labels of two classes or more, but got 1 class"):
        small().fit(paths, ["red"] * 24)
    with pytest.raises(ValueError, match="of two samples that are not the same"):
        small().fit([paths[0], paths[1], paths[0]], ["red", "blue", "red"])
    for wrong, message in (
        ({"pooling": "median"}, "extract.pooling: .* but got 'median'"),
        ({"encoders": "resnet"}, "resnet"),
        ({"folds": 1}, "folds must be 2 or more, but got 1"),
        ({"folds": 50}, "search.folds: .* but got 50"),
    ):
        with pytest.raises(ParamsError, match=message):
            HeadstartClassifier(**wrong).fit(paths, labels)
    features: NDArray[Any] = np.random.default_rng(0).normal(size=(24, 3))
    model = HeadstartClassifier().fit(features, labels)
    with pytest.raises(ValueError, match=r"X must be features, as it was .* but got images"):
        model.predict(paths)
    with pytest.raises(ValueError, match=r"X must be images, as it was .* but got features"):
        small().fit(paths, labels).predict(features)


def test_the_version_alone_loads_no_scikit_learn() -> None:
    script = "import sys, headstart; print('sklearn' in sys.modules); headstart.HeadstartClassifier"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"False\n"
    assert headstart.HeadstartClassifier is HeadstartClassifier


def test_photographs_have_the_features_of_the_pipeline(assets: Path, tmp_path: Path) -> None:
    paths = sorted((assets / "animals").rglob("*.jpg"))
    assert len(paths) == 600
    labels = [path.parent.name for path in paths]
    folds = StratifiedKFold(2, shuffle=True, random_state=0)
    assert cross_val_score(HeadstartClassifier(), paths, labels, cv=folds).mean() > 0.97
    model = HeadstartClassifier().fit(paths, labels)
    # The pipeline computes some of them anew, in a cache of its own.
    some = tmp_path / "images"
    for path in paths[::25]:
        (some / path.parent.name).mkdir(parents=True, exist_ok=True)
        (some / path.parent.name / path.name).symlink_to(path)
    listed, features = manifest_of(some), tmp_path / "features.h5"
    manifest = replace(listed, table=listed.table.assign(width=1000, height=1000))
    own = extractor(tmp_path / "cache", size=224)
    done = extract_features(own, manifest, some, features, tmp_path / "backbone.h5")
    assert done.n_extracted == 24
    with FeatureStore(features) as store:
        rows = store.rows(np.arange(24)).features[:, 0]
    logits = model.head_.logits(rows[:, model.columns_])
    np.testing.assert_array_equal(
        model.predict_proba([some / path for path in manifest.paths]),
        softmax(logits / model.temperature_),
    )
