"""The cost of a head's model: exactly that of the assembled one; limits; the Pareto front."""

from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.common.cost import Cost
from headstart.common.errors import SearchError
from headstart.encoders.builders import build
from headstart.encoders.costs import block_costs
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead
from headstart.models.assemble import assemble
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.params.search import SearchParams
from headstart.search.plan import model_cost
from headstart.search.results import StudyResult
from headstart.search.search_heads import run_study
from tests.heads.made_features import write_made_features

BLOCKS = {"top": slice(0, 12), "middle": slice(12, 18), "early": slice(18, 24)}
COSTS = {"top": Cost(800.0, 13.0), "middle": Cost(500.0, 5.0), "early": Cost(200.0, 1.0)}


def _multiply_adds(model: Any) -> int:
    """As TensorFlow's profiler counts them in the graph that would run, halved."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    size = model.input.shape[1]
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((1, size, size, 3), tf.uint8)
    )
    graph = convert_variables_to_constants_v2(function).graph
    options = {
        **tf.compat.v1.profiler.ProfileOptionBuilder.float_operation(),
        "output": "none",
        "account_type_regexes": ["Conv2D", "DepthwiseConv2dNative", "MatMul"],
    }
    with graph.as_default():
        found = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    counted = {child.name: child.float_ops for child in _all(found)}
    total: int = sum(counted.get(name, 0) for name in options["account_type_regexes"])
    return total // 2


def _all(node: Any) -> list[Any]:
    return [node, *(found for child in node.children for found in _all(child))]


@pytest.mark.parametrize(
    "config",
    [
        HeadConfig(kind="ridge", layers="all"),
        HeadConfig(kind="ridge", layers="block14_add"),
        HeadConfig(kind="logistic_regression", layers="block14_add+block10_add"),
        HeadConfig(kind="network", layers="last", width=20, hidden_layers=2),
        HeadConfig(kind="network", hidden_layers=1, width=16, normalisation="standardise"),
    ],
    ids=lambda config: f"{config.kind} {config.layers}",
)
def test_it_is_that_of_the_assembled_model(config: HeadConfig) -> None:
    image = ImageParams(size=64)
    encoder = build(ExtractParams(encoders="efficientnet-lite0", weights="random"), image)
    blocks, start = {}, 0
    for layer in ("head_relu", "block15_project_bn", "block14_add", "block10_add"):
        width = encoder.get_layer(layer).output.shape[-1]
        blocks[layer] = slice(start, start + width)
        start += width
    used = {"all": tuple(blocks), "last": ("head_relu",)}.get(config.layers)
    used = used or tuple(config.layers.split("+"))
    dim = sum(blocks[name].stop - blocks[name].start for name in used)
    hidden = [config.width] * config.hidden_layers if config.kind == "network" else []
    sizes = [dim, *hidden, 7]
    is_standardised = config.kind == "ridge" or config.normalisation == "standardise"
    head = FittedHead(
        config=config,
        n_classes=7,
        layers=tuple(
            DenseWeights(np.zeros(pair, np.float32), np.zeros(pair[1], np.float32))
            for pair in pairwise(sizes)
        ),
        mean=np.zeros(dim, np.float32) if is_standardised else None,
        variance=np.ones(dim, np.float32) if is_standardised else None,
    )
    model = assemble(encoder, [head], 1.0, used)
    cost = model_cost([config], blocks, block_costs(encoder), 7)
    assert cost is not None
    assert cost.megabytes == pytest.approx(4e-6 * sum(prod(w.shape) for w in model.weights))
    assert cost.mflops == pytest.approx(2e-6 * _multiply_adds(model))


def test_published_numbers() -> None:
    """15.3 GMACs of VGG16's convolutions (Canziani and others, 2016), 4.7 M weights of Lite0."""
    vgg16 = build(ExtractParams(encoders="vgg16", weights="random"), ImageParams())
    assert block_costs(vgg16)["block5_pool"].mflops / 2 == pytest.approx(15_347, rel=1e-3)
    lite0 = build(ExtractParams(encoders="efficientnet-lite0", weights="random"), ImageParams())
    with_classifier = block_costs(lite0)["head_relu"] + Cost.of_kernels(0, 1280 * 1000)
    assert with_classifier.megabytes / 4 == pytest.approx(4.7, rel=0.02)


def _run(folder: Path, **changes: Any) -> StudyResult:
    path = folder / "features.h5"
    if not path.exists():
        write_made_features(path, blocks=BLOCKS, costs=COSTS)
    search = SearchParams.model_validate({"n_trials": 12, **changes})
    with FeatureStore(path) as store:
        return run_study(store, search, seed=0, storage_folder=folder)


def test_the_best_that_fits(tmp_path: Path) -> None:
    every = _run(tmp_path)
    assert {trial.state for trial in every.trials} == {"COMPLETE"}
    by_layers = {t.config.layers: t for t in every.trials[1:] if t.config}
    assert by_layers["early"].mflops == pytest.approx(200 + 2e-6 * 6 * 4)
    assert by_layers["middle+early"].model_mb == pytest.approx(5 + 4e-6 * (12 * 4 + 4 + 24))
    front = every.pareto_front()
    assert front[-1] == every.best
    assert [t.mflops for t in front] == sorted(t.mflops or 0 for t in front)
    for limits in (
        {"max_mflops": 600},
        {"max_model_mb": 6},
        {"max_mflops": 600, "max_model_mb": 9},
    ):
        some = _run(tmp_path, **limits)
        assert some.best.config is not None
        assert set(some.best.config.layers.split("+")) <= {"middle", "early"}
        assert some.best.value == max(
            t.value or 0 for t in every.trials if t.mflops is not None and t.mflops < 600
        )
        over = [t for t in some.trials if t.state == "PRUNED"]
        assert {t.reason.split(" ")[1] for t in over} <= {"MFLOPs,", "MB,"}
        assert {t.value for t in over} == {None}
        assert len(some.trials) == len(every.trials)


def test_nothing_fits(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"the last model has .* search.max_mflops 100"):
        _run(tmp_path, max_mflops=100)


def test_old_trials_over_the_limit_are_not_added(tmp_path: Path) -> None:
    every = _run(tmp_path)
    some = _run(tmp_path, max_mflops=300, reuse_trials=True, n_trials=1)
    reused = [t for t in some.trials if t.reused_from]
    assert [t.config.layers for t in reused if t.config] == ["early"]
    assert every.trials[0].mflops != reused[0].mflops


def test_features_of_before_have_no_costs(tmp_path: Path) -> None:
    write_made_features(tmp_path / "features.h5", blocks=BLOCKS)
    found = _run(tmp_path, n_trials=3)
    assert found.best.mflops is None
    assert found.pareto_front() == []
    with pytest.raises(SearchError, match="dvc repro --force extract"):
        _run(tmp_path, max_mflops=300)
