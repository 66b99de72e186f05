"""Names that a person can read where MLflow's table cuts them."""

from typing import Any

import pytest

from headstart.params.whole_file import Params
from headstart.tracking.run_names import data_in_words, run_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/sources/animal-silhouettes.yaml", "animal-silhouettes"),
        ("data/own/", "own"),
        ("https://me@host/pictures.tar.gz?token=x", "pictures"),
        ("/home/ann/.photos", ".photos"),
    ],
)
def test_a_source_by_its_last_part(source: str, name: str) -> None:
    assert data_in_words(source) == name


def _named(**given: Any) -> str:
    return run_name(Params.model_validate(given, by_alias=True), "linear")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "animal-silhouettes · linear"),
        ({"seed": 3}, "seed=3 · animal-silhouettes · linear"),
        ({"data": {"source": "data/own"}}, "own · linear"),
        ({"train": {"learning_rate": 0.003}}, "learning_rate=0.003 · animal-silhouettes · linear"),
        # search has a patience too
        ({"train": {"patience": 16}}, "train.patience=16 · animal-silhouettes · linear"),
        (
            {"train": {"fine_tune": {"enabled": True}}},
            "fine_tune.enabled=True · animal-silhouettes · linear",
        ),
        # what is nearest to the model comes first
        (
            {"seed": 3, "search": {"n_trials": 9}, "train": {"seeds": 1}, "extract": {"views": 2}},
            "seeds=1 · n_trials=9 · views=2 · … · animal-silhouettes · linear",
        ),
        (
            {"extract": {"weights": "/a/long/folder/of/ann/weights.h5"}},
            "weights=weights.h5 · animal-silhouettes · linear",
        ),
        # neither how something is computed nor a database's address
        (
            {"search": {"workers": 2, "storage": "postgresql://ann:pw@host/studies"}},
            "animal-silhouettes · linear",
        ),
    ],
)
def test_what_differs_from_the_defaults_comes_first(given: dict[str, Any], name: str) -> None:
    assert _named(**given) == name


def test_dvcs_experiment_name_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "dopey-seal")
    assert _named(seed=3).startswith("dopey-seal · seed=3 · ")
