"""The space of heads: what it may say in params.yaml, and what heads come of it."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstart.common.errors import ParamsError, SearchError
from headstart.heads.config import HeadConfig
from headstart.params.search import SearchParams
from headstart.params.search_space import DEFAULT_SPACE, SearchSpace
from headstart.params.whole_file import load_params
from headstart.search.space import (
    FIELDS,
    asking,
    distributions,
    essence,
    grid,
    grid_size,
    is_in_space,
    known_fields,
    suggest,
)


def _space(**fields: object) -> SearchSpace:
    """The default space of networks and logistic regression, with other fields."""
    kinds = {"choices": ["network", "logistic_regression"]}
    space = {**DEFAULT_SPACE.model_dump(), "kind": kinds, "layers": "all", **fields}
    return SearchParams.model_validate({"space": space}).space


def test_every_field_of_a_head_is_in_the_space() -> None:
    assert set(FIELDS) == set(SearchSpace.model_fields)
    assert set(HeadConfig.model_fields) - set(FIELDS) == {"penalty"}, "of which all are tried"


def test_only_fields_that_count_are_asked_for() -> None:
    space = _space(
        hidden_layers={"low": 0, "high": 2},
        width={"low": 8, "high": 64, "log": True},
        optimizer={"choices": ["adamw", "sgd"]},
        schedule={"choices": ["constant", "cosine"]},
        momentum={"low": 0.5, "high": 0.99},
        warmup={"low": 0.0, "high": 0.3},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(80):
        trial = study.ask()
        head = suggest(space, asking(trial))
        assert is_in_space(space, head)
        asked = trial.params
        assert {name: getattr(head, name) for name in asked} == asked
        assert known_fields(space, head) == asked
        assert trial.distributions == distributions(space, asked)
        assert ("l2" in asked) == (head.kind == "logistic_regression")
        assert ("learning_rate" in asked) == (head.kind == "network")
        hidden = head.kind == "network" and head.hidden_layers > 0
        assert {"width", "activation", "dropout"} <= set(asked) if hidden else "width" not in asked
        assert ("momentum" in asked) == (head.kind == "network" and head.optimizer == "sgd")
        assert ("warmup" in asked) == (head.kind == "network" and head.schedule == "cosine")
        seen.add((head.kind, head.hidden_layers, head.optimizer))
        study.tell(trial, 0.0)
    assert len(seen) == 7


def test_heads_outside_of_the_space() -> None:
    space = _space(width={"low": 16, "high": 64, "step": 16}, dropout=0.3, kind="network")
    head = HeadConfig(width=32, normalisation="none")
    assert is_in_space(space, head)
    for change in ({"width": 40}, {"width": 128}, {"dropout": 0.2}, {"learning_rate": 5.0}):
        assert not is_in_space(space, head.model_copy(update=change))
    assert "width" not in known_fields(space, head.model_copy(update={"width": 40}))


def test_a_grid_has_every_head_once() -> None:
    space = _space(
        kind="network",
        hidden_layers={"choices": [0, 1]},
        width={"low": 16, "high": 48, "step": 16},
        activation="relu",
        normalisation={"choices": ["none", "standardise"]},
        input_dropout=0.0,
        dropout=0.3,
        learning_rate={"choices": [0.001, 0.01]},
        weight_decay=0.0,
        label_smoothing=0.0,
    )
    heads = list(grid(space))
    # 2 normalisations and 2 rates, each without hidden layers or with one of three widths
    assert len(heads) == 2 * 2 * (1 + 3)
    assert len({head.model_dump_json() for head in heads}) == len(heads)
    with pytest.raises(SearchError, match="learning_rate is a range without steps"):
        list(grid(_space(kind="network")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("widht: 3", "search.space.widht: unknown; allowed here: kind, layers, hidden_layers"),
        ("width: {low: 64, high: 16}", "search.space.width: low must not be above high"),
        ("width: {choices: [16, 16]}", "search.space.width: choices must differ"),
        ("width: {choices: [16], low: 3}", "search.space.width: choices stand alone"),
        ("width: {low: 16, high: 60, step: 16}", "search.space.width: step must lead from low"),
        ("width: {low: 16}", "search.space.width: give either choices, or low and high"),
        ("width: 0", "search.space.width: Input should be greater than or equal to 1"),
        ("width: {lo: 1}", "search.space.width.lo: unknown; allowed here: choices, low, high"),
        ("l2: {low: '1e-4', high: 1.0}", "search.space.l2.low: .* write the number without quotes"),
        ("dropout: {low: 0.0, high: 1.5}", "search.space.dropout.high: .* less than or equal to"),
        ("weight_decay: {low: 0.0, high: 1.0, log: true}", "a log range needs low above 0"),
        ("l2: {low: 0.1, high: 1.0, log: true, step: 0.1}", "log and step exclude each other"),
        ("optimizer: adam", "search.space.optimizer: Input should be 'adamw' or 'sgd'"),
        ("kind: {choices: [svm]}", "search.space.kind.choices.0: Input should be 'ridge'"),
        ("kind: {choices: []}", "search.space.kind.choices: .* at least 1"),
    ],
)
def test_mistakes_are_named_with_their_path(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"search:\n  space:\n    {line}\n")
    with pytest.raises(ParamsError, match=message):
        load_params(path)


def test_a_field_that_the_space_leaves_out_keeps_the_default_heads_value(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "search:\n"
        "  default_head: {kind: network, optimizer: sgd, epochs: 7, dropout: 0.25}\n"
        "  space: {width: {choices: [16, 32]}, dropout: null}\n"
    )
    search = load_params(path).search
    heads = list(grid(search.space))
    assert {head.width for head in heads} == {16, 32}
    assert {head.model_copy(update={"width": 256}) for head in heads} == {search.default_head}


_DOMAINS: dict[str, list[list[Any]]] = {
    "kind": [["network"], ["logistic_regression"], ["network", "logistic_regression"]],
    "normalisation": [["none"], ["none", "standardise"]],
    "hidden_layers": [[0], [0, 1], [0, 1, 2]],
    "width": [[4], [4, 8, 16]],
    "optimizer": [["adamw"], ["adamw", "sgd"]],
    "momentum": [[0.9], [0.5, 0.9]],
    "schedule": [["constant"], ["constant", "cosine"]],
    "warmup": [[0.1], [0.0, 0.1]],
    "l2": [[0.1], [0.1, 1.0]],
}


@given(choices=st.fixed_dictionaries({k: st.sampled_from(v) for k, v in _DOMAINS.items()}))
def test_the_size_of_a_grid_is_how_many_heads_it_has(choices: dict[str, list[Any]]) -> None:
    search = SearchParams.model_validate(
        {"space": {name: {"choices": values} for name, values in choices.items()}}
    )
    heads = list(grid(search.space))
    assert len(set(heads)) == len(heads) == grid_size(search.space)
    assert all(is_in_space(search.space, head) and essence(head) == head for head in heads)


def test_a_range_of_whole_numbers_is_a_grid_and_of_hidden_layers_too() -> None:
    search = SearchParams.model_validate(
        {
            "space": {
                "kind": "network",
                "hidden_layers": {"low": 0, "high": 2},
                "width": {"low": 4, "high": 6},
            }
        }
    )
    heads = list(grid(search.space))
    assert len(heads) == len(set(heads)) == grid_size(search.space) == 1 + 2 * 3


def test_a_space_with_a_range_without_steps_has_no_size() -> None:
    assert grid_size(_space()) is None
