"""Novelty: equal to its definition, and a fraction that means what it says."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from headstart.models import novelty as module
from headstart.models.assemble import assemble
from headstart.models.model_file import load_model, save_model
from headstart.models.novelty import NEIGHBOURS, NoveltyReference, fit_novelty
from tests.models.conftest import IMAGE, make_encoder, make_head


def drawn(n: int, d: int = 12, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) + 3


def fitted(
    features: NDArray[np.float32], labels: NDArray[np.int64], groups: list[str]
) -> NoveltyReference:
    mean, variance = features.mean(axis=0), features.var(axis=0)
    found = fit_novelty(features, labels, groups, mean, variance, seed=0)
    assert found is not None
    return found


def whitened(
    found: NoveltyReference, features: NDArray[np.float32], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows and others of length 1, by definition, without the images that are not kept."""
    components = found.components.astype(np.float64)[kept]
    labels, outside = found.label_ids[kept], found.outside[kept].astype(np.float64)
    within = components.copy()
    for label in np.unique(labels):
        within[labels == label] -= components[labels == label].mean(axis=0)
    covariance = within.T @ within / len(within)
    mean = np.trace(covariance) / len(covariance) or 1.0
    inverse = np.linalg.inv(covariance + 0.3 * mean * np.eye(len(covariance)))
    root = np.linalg.cholesky(inverse)
    weight = 1 / (outside.mean() / max(len(found.mean) - len(covariance), 1) + 3 * mean)

    def unit(z: NDArray[np.float64], rest: NDArray[np.float64]) -> NDArray[np.float64]:
        white = z @ root
        return np.asarray(white / np.sqrt((white**2).sum(1) + rest * weight)[:, None])

    standard = (features.astype(np.float64) - found.mean) * found.scale
    z = standard @ found.principal.astype(np.float64)
    rest = np.maximum((standard**2).sum(axis=1) - (z**2).sum(axis=1), 0)
    return unit(components, outside), unit(z, rest)


def distance(rows: NDArray[np.float64], one: NDArray[np.float64]) -> float:
    """Mean distance to the nearest rows, by cosines: lengths are below 1 with what is outside."""
    nearest = np.sort(rows @ one)[::-1][:NEIGHBOURS]
    return float(np.sqrt(np.maximum(2 - 2 * nearest, 0)).mean())


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 8), st.sampled_from([3, 12, 60]), st.integers(0, 10**6))
def test_it_is_as_defined(n: int, n_groups: int, d: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    features, others = drawn(n, d, seed), drawn(20, d, seed + 1)
    groups = [str(i % max(2, n_groups)) for i in range(n)]
    labels = chance.integers(0, 3, n)
    found, each = fitted(features, labels, groups), np.array(groups)
    rows, given_ = whitened(found, others, np.ones(n, bool))
    typical = sorted(distance(rows[each != each[i]], rows[i]) for i in range(n))
    np.testing.assert_allclose(found.typical, typical, atol=2e-3)
    for one, value in zip(given_, found.novelty(others), strict=True):
        low, high = (distance(rows, one) + error for error in (-2e-3, 2e-3))
        assert (found.typical < low).mean() <= value <= (found.typical < high).mean()
    # Without a class that is not there: turned to components of their own, nothing is lost.
    np.testing.assert_allclose(found.without_class(9, others[:1]).shape, (1,))


def test_a_class_left_out_is_as_if_fitted_anew() -> None:
    """By how well its images are told from others: having seen it makes no figure better."""
    chance, d = np.random.default_rng(0), 600
    labels = np.arange(1200) % 4
    centres = 3 / np.sqrt(d) * chance.standard_normal((4, d))
    noise = chance.standard_normal((1200, d)) * np.linspace(2, 0.5, d)
    features = (centres[labels] + noise).astype(np.float32)
    whole = fitted(features[:800], labels[:800], [str(i) for i in range(800)])
    for label in range(4):
        kept = labels[:800] != label
        anew = fitted(features[:800][kept], labels[:800][kept], [str(i) for i in range(kept.sum())])
        own = labels[800:] == label
        here, there = (
            roc_auc_score(own, one.without_class(number, features[800:]))
            for one, number in ((whole, label), (anew, -1))
        )
        assert here == pytest.approx(there, abs=0.06)


def test_the_fraction_means_what_it_says() -> None:
    features = drawn(3000)
    found = fitted(features[:1500], np.zeros(1500, np.int64), [str(i) for i in range(1500)])
    values = found.novelty(features[1500:])
    assert 0.02 < (values > 0.95).mean() < 0.09
    assert 0.4 < values.mean() < 0.6
    # Three kinds of images, and a fourth.
    centres, labels = 10 * np.eye(12, dtype=np.float32), np.arange(1500) % 3
    kinds = fitted(features[:1500] + centres[labels], labels, [str(i) for i in range(1500)])
    assert (kinds.novelty(features[1500:] + centres[7]) > 0.95).all()
    assert (kinds.novelty(features[1500:] + centres[1]) > 0.95).mean() < 0.1
    assert found.novelty(features[:0]).shape == (0,)


def test_copies_do_not_make_each_other_typical() -> None:
    features = np.repeat(drawn(60), 6, axis=0)
    groups = [str(i // 6) for i in range(360)]
    together = fitted(features, np.zeros(360, np.int64), groups)
    apart = fitted(features, np.zeros(360, np.int64), [str(i) for i in range(360)])
    assert apart.typical.max() < 2e-3 < together.typical.min()


def test_of_many_images_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ROWS", 50)
    features, labels = drawn(200), np.arange(200) % 3
    found, again = (fitted(features, labels, [str(i) for i in range(200)]) for _ in range(2))
    assert found.components.shape == (50, 12)
    assert found.principal.shape == (12, 12)
    assert len(found.label_ids) == len(found.typical) == 50
    np.testing.assert_array_equal(found.components, again.components)


def test_images_of_one_group_say_nothing_of_others() -> None:
    features = drawn(9)
    labels = np.zeros(9, np.int64)
    assert fit_novelty(features, labels, ["a"] * 9, features[0], features[1] ** 2, seed=0) is None


def test_it_is_kept_in_the_model_file_and_changes_nothing_else(tmp_path: Path) -> None:
    import keras

    model = assemble(make_encoder(), [make_head()], 1.5)
    metadata = {"classes": ["a", "b", "c"], "image": IMAGE.model_dump(mode="json")}
    pixels = np.random.default_rng(0).integers(0, 256, (40, *model.input_shape[1:]), dtype=np.uint8)
    features = np.asarray(keras.Model(model.input, model.get_layer("features").output)(pixels))
    reference = fitted(features[:30], np.arange(30) % 3, [str(i) for i in range(30)])
    save_model(tmp_path / "plain.h5", model, metadata)
    for name in ("model.h5", "again.h5"):
        save_model(tmp_path / name, model, metadata, reference)
    assert (tmp_path / "model.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    plain = keras.models.load_model(tmp_path / "model.h5", compile=False)
    loaded, without = load_model(tmp_path / "model.h5"), load_model(tmp_path / "plain.h5")
    each = [loaded.inference.answer(one) for one in pixels]
    others = [without.inference.answer(one) for one in pixels]
    assert {other.novelty for other in others} == {None}
    for one, other, expected in zip(each, others, plain.predict(pixels, verbose=0), strict=True):
        assert one.probabilities is not None
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_allclose(one.probabilities, expected, atol=1e-6)
    novelty = [one.novelty for one in each]
    np.testing.assert_allclose(novelty, reference.novelty(features), atol=0.05)  # type: ignore[arg-type]
