"""Ensembles of trials: what is chosen, and that the choice is judged on other images."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from headstart.features.feature_store import FeatureStore
from headstart.heads.config import read_head, write_head
from headstart.heads.metrics import log_loss, softmax
from headstart.params.search import SearchParams
from headstart.params.train import TrainParams
from headstart.search.ensemble import Ensemble, choose_ensemble
from headstart.search.search_heads import run_study
from headstart.training.final_fit import train_model
from tests.heads.made_features import write_made_features

Floats = NDArray[np.float64]
N, CLASSES = 900, 4
LABELS = np.arange(N) % CLASSES
GROUPS = [f"group-{i // 2}" for i in range(N)]


def _answers(seed: int, skill: float, shared: Floats | None = None) -> Floats:
    """Probabilities of a head that sees the truth through noise of its own."""
    chance = np.random.default_rng(seed)
    noise = chance.standard_normal((N, CLASSES)) if shared is None else shared
    return np.asarray(softmax(skill * np.eye(CLASSES)[LABELS] + noise))


def _choose(*answers: Floats) -> Ensemble:
    found = choose_ensemble(LABELS, GROUPS, dict(enumerate(answers)), range(len(answers)), seed=0)
    assert found is not None
    return found


def test_heads_that_err_apart_are_better_together() -> None:
    heads = [_answers(seed, 1.5) for seed in range(7)]
    found = _choose(*heads)
    assert found.is_better
    assert 1 < len(found.members) <= 5
    chosen = np.mean([t * np.log(heads[n]) for n, t in found.members.items()], axis=0)
    together = softmax(chosen * len(found.members) / sum(found.members.values()))
    alone = min(float(log_loss(LABELS, head)) for head in heads)
    assert float(log_loss(LABELS, together)) < alone - 0.8 * found.gain
    # what is said of it is of images that did not choose: somewhat worse, not far off
    honest = float(log_loss(LABELS[found.rows], found.answers))
    assert honest == pytest.approx(float(log_loss(LABELS, together)), abs=0.05)


def test_copies_of_one_head_are_no_ensemble() -> None:
    noise = np.random.default_rng(0).standard_normal((N, CLASSES))
    copies = [
        _answers(0, 1.5, noise + 1e-3 * np.random.default_rng(seed).standard_normal((N, CLASSES)))
        for seed in range(6)
    ]
    assert not _choose(*copies).is_better


def test_a_worse_head_is_left_out_unless_it_helps() -> None:
    good, useless = _answers(0, 4.0), np.full((N, CLASSES), 1 / CLASSES)
    assert _choose(good, useless).members == {0: 1}
    assert not _choose(good, useless).is_better


def test_a_group_is_judged_as_one() -> None:
    """Each image twice is no more evidence."""
    heads = {seed: _answers(seed, 1.5) for seed in range(4)}
    once = choose_ensemble(LABELS, [str(i) for i in range(N)], heads, range(4), seed=0)
    twice = choose_ensemble(
        np.concatenate([LABELS, LABELS]),
        [str(i) for i in range(N)] * 2,
        {number: np.concatenate([one, one]) for number, one in heads.items()},
        range(4),
        seed=0,
    )
    assert once is not None
    assert twice is not None
    assert twice.members == once.members
    assert twice.gain == pytest.approx(once.gain)
    assert twice.error == pytest.approx(once.error)


def test_of_many_images_some_choose() -> None:
    """Groups are named so that the last ones may have no image among those."""
    times = 12
    heads = {
        seed: np.concatenate([_answers(seed * 100 + part, 1.5) for part in range(times)])
        for seed in range(3)
    }
    groups = [str(image) for image in range(N * times)]
    found = choose_ensemble(np.tile(LABELS, times), groups, heads, range(3), seed=0)
    assert found is not None
    assert len(found.rows) == len(found.answers) == 4096
    assert found.is_better


def test_too_few_to_choose_from() -> None:
    one = _answers(0, 1.0)
    assert choose_ensemble(LABELS, GROUPS, {0: one}, [0], seed=0) is None
    assert choose_ensemble(LABELS, GROUPS, {}, [0, 1], seed=0) is None
    assert choose_ensemble(LABELS, ["a"] * N, {0: one, 1: one}, [0, 1], seed=0) is None


def test_from_a_study_to_one_linear_head(tmp_path: Path) -> None:
    """The model answers as the weighted mean of its members does."""
    path = tmp_path / "features.h5"
    blocks = {"top": slice(0, 10), "middle": slice(10, 18), "early": slice(18, 24)}
    write_made_features(path, n=600, blocks=blocks)
    with h5py.File(path, "r+") as file:  # heavy tails, which kinds of heads take differently
        for name, block in file["features/made-up"].items():
            file[f"features/made-up/{name}"][...] = block[...] ** 5
    with FeatureStore(path) as store:
        result = run_study(store, SearchParams(), seed=0, storage_folder=tmp_path)
        best = result.best_head()
        assert best.ensemble is not None
        write_head(tmp_path / "best_head.json", best)
        assert read_head(tmp_path / "best_head.json") == best
        assert {m.trial for m in best.ensemble.members} <= {t.number for t in result.trials}
        together = train_model(store, best, TrainParams(), seed=0)
        alone = train_model(store, best, TrainParams(combine="ensemble"), seed=0)
        assert (len(together.heads), together.members) == (1, best.ensemble.members)
        assert alone.members == ()
        assert together.optimism == best.ensemble.optimism
        assert alone.optimism == best.optimism
        # Out of fold as the ensemble of the study: the same folds, the same heads.
        assert together.scores["log_loss"] < alone.scores["log_loss"]
        development = store.split("train", "validation")
        logits = []
        total = sum(member.times for member in best.ensemble.members)
        for member in best.ensemble.members:
            single = best.model_copy(
                update={"config": member.config, "epochs": member.epochs, "ensemble": None}
            )
            own = train_model(store, single, TrainParams(), seed=0)
            rows = store.split("train", "validation", layers=own.layers).features[:, 0]
            logits.append(member.times / total * own.heads[0].logits(rows))
        rows = store.split("train", "validation", layers=together.layers).features[:, 0]
        found = together.heads[0].logits(rows)
        np.testing.assert_allclose(found, np.sum(logits, axis=0), atol=1e-4)
        assert len(found) == len(development)
