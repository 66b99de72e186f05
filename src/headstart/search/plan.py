"""What a study trains on, what its models cost, and what it is called.

All of it is fixed by the features, the params and the seed.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.cost import Cost
from headstart.common.errors import SearchError
from headstart.common.files import sha256_of_json
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import HeadConfig, chosen_layers, encoder_of
from headstart.heads.folds import Fold, assign_folds, count_folds, folds_of
from headstart.heads.metrics import check_metric
from headstart.params.search import SearchParams
from headstart.params.search_space import SearchSpace

# How heads are found, not what their values mean.
_OF_SEARCHING = ("space", "default_head", "sampler", "pruner", "max_mflops", "max_model_mb")
_FOLDS = 5
# Of more blocks there are too many sets to try each.
_MOST_BLOCKS = 5


@dataclass(frozen=True)
class StudyPlan:
    """Rows, folds of them, and the study's name.

    Attributes:
        features: float32 (n, n_views, feature_dim): of the train split, then of validation.
        blocks: layer → its columns of `features`.
        label_ids: int64 (n,).
        keys: of the duplicate groups that rows belong to.
        costs: of the encoder up to each layer, where it is known.
        topic: all that the name covers; a study of the same topic is resumed.
    """

    features: NDArray[np.float32]
    blocks: dict[str, slice]
    label_ids: NDArray[np.int64]
    keys: tuple[str, ...]
    folds: tuple[Fold, ...]
    n_classes: int
    costs: dict[str, Cost]
    name: str
    topic: dict[str, Any]

    @property
    def judged_rows(self) -> NDArray[np.int64]:
        """The rows that some fold holds out, ascending."""
        return np.unique(np.concatenate([fold.validation for fold in self.folds]))

    def cost(self, *heads: HeadConfig) -> Cost | None:
        """What the model of these heads would cost; None where the encoder's is not known."""
        return model_cost(heads, self.blocks, self.costs, self.n_classes)


def plan_study(store: FeatureStore, search: SearchParams, *, seed: int) -> StudyPlan:
    """Choose the rows and folds, and name the study.

    Raises:
        SearchError: a split is empty, or the metric needs more classes.
    """
    _check(store, search)
    train, validation = store.indices("train"), store.indices("validation")
    rows = np.concatenate([train, validation])
    batch = store.rows(rows)
    seeds = range(seed, seed + search.repeats)
    n_folds = 1
    # A validation split that came with the data says what is new: a patient, a camera, a year.
    most = search.folds or (1 if store.validation_given else _FOLDS)
    if most > 1:
        n_folds = count_folds(batch.label_ids, batch.groups, most)
        folds = [
            fold
            for own in seeds  # every repeat has folds and seeds of its own
            for fold in folds_of(
                assign_folds(batch.label_ids, batch.groups, folds=n_folds, seed=own), [own]
            )
        ]
    else:
        place = np.arange(len(rows))
        folds = [Fold(place[: len(train)], place[len(train) :], own) for own in seeds]
    topic = {**_topic(store, search, rows, seed), "folds": n_folds}
    return StudyPlan(
        features=batch.features,
        blocks=store.columns(),
        label_ids=batch.label_ids,
        keys=tuple(batch.groups),
        folds=tuple(folds),
        n_classes=len(store.classes),
        costs=store.costs,
        name=f"{_described(store, search, len(rows), most)}-{sha256_of_json(topic)[:12]}",
        topic=topic,
    )


def with_blocks(search: SearchParams, layers: Sequence[str]) -> SearchParams:
    """The same search, `space.layers: any` replaced by all sets of these feature blocks."""
    space: Any = search.space  # its fields are made of HeadConfig's
    if space.layers != "any":
        return search
    chosen: Any = "all"
    if len(layers) > 1:
        of_encoder: dict[str, list[str]] = {}
        for layer in layers:
            of_encoder.setdefault(encoder_of(layer), []).append(layer)
        if len(of_encoder) > 1:
            # Each alone, and of all as many of the last blocks: every combination of numbers of
            # blocks, tried on two EfficientNet-Lites, found no better.
            alone, most = list(of_encoder.values()), max(map(len, of_encoder.values()))
            found = alone + [[x for own in alone for x in own[:n]] for n in range(1, most)]
        else:
            sizes = range(1, len(layers)) if len(layers) <= _MOST_BLOCKS else ()
            found = [list(some) for n in sizes for some in itertools.combinations(layers, n)]
        sets = ["+".join(some) for some in found if some not in ([layers[0]], [*layers])]
        chosen = {"choices": ("last", "all", *dict.fromkeys(sets))}
    changed = SearchSpace.model_validate({**space.model_dump(), "layers": chosen})
    return search.model_copy(update={"space": changed})


def model_cost(
    heads: Sequence[HeadConfig],
    blocks: Mapping[str, slice],
    costs: Mapping[str, Cost],
    n_classes: int,
) -> Cost | None:
    """The cost of an encoder and heads; None where the encoder's is not known.

    Args:
        blocks: layer → its columns of a row of features.
        costs: of the encoder up to each layer. Blocks of one encoder are nested: the deepest of
            those that some head uses is what that encoder costs.
    """
    used = [chosen_layers(head.layers, tuple(blocks)) for head in heads]
    if not all(layer in costs for own in used for layer in own):
        return None
    deepest: dict[str, Cost] = {}
    for layer in {layer for own in used for layer in own}:
        known = deepest.get(encoder_of(layer), costs[layer])
        deepest[encoder_of(layer)] = max(known, costs[layer], key=lambda cost: cost.mflops)
    total = Cost(0.0, 0.0)
    for cost in deepest.values():
        total += cost
    for head, own in zip(heads, used, strict=True):
        dim = sum(blocks[layer].stop - blocks[layer].start for layer in own)
        hidden = [head.width] * head.hidden_layers if head.kind == "network" else []
        sizes = [dim, *hidden, n_classes]
        kernels = sum(n_in * n_out for n_in, n_out in pairwise(sizes))
        is_standardised = head.kind == "ridge" or head.normalisation == "standardise"
        statistics = 2 * dim if is_standardised else 0
        total += Cost.of_kernels(kernels, kernels + sum(sizes[1:]) + statistics)
    return total


def excess(search: SearchParams, cost: Cost | None) -> str:
    """Why a model of this cost is over the limits, or nothing."""
    if cost is None:
        return ""
    limits = (
        ("max_mflops", search.max_mflops, cost.mflops, "MFLOPs"),
        ("max_model_mb", search.max_model_mb, cost.megabytes, "MB"),
    )
    over = [
        f"{value:,.4g} {unit}, over search.{name} {most:,.4g}"
        for name, most, value, unit in limits
        if most is not None and value > most
    ]
    return " and ".join(over)


def may_share_trials(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether trials of one topic mean the same in another: all but how heads are found agrees."""
    return {k: v for k, v in old.items() if k not in _OF_SEARCHING} == {
        k: v for k, v in new.items() if k not in _OF_SEARCHING
    }


def _described(store: FeatureStore, search: SearchParams, n_images: int, n_folds: int) -> str:
    """What a person would call the study, fit for a file's name."""
    folds = [f"{n_folds}-folds"] if n_folds > 1 else []
    encoder = re.sub(r"[^A-Za-z0-9._]+", "-", store.recipe["backbone"]).strip("-.")[:40]
    parts = [
        encoder, search.metric, *folds, f"{len(store.classes)}-classes", f"{n_images}-images"
    ]  # fmt: skip
    return "-".join(parts)


def _topic(
    store: FeatureStore, search: SearchParams, rows: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    identity = [
        [store.sha256[row], int(store.label_ids[row]), store.splits[row], store.groups[row]]
        for row in rows.tolist()
    ]
    decisive = {"metric", "validation_views", "repeats", "batch_size", "patience", *_OF_SEARCHING}
    return {
        "features": store.fingerprint,
        "n_views": store.n_views,
        "classes": list(store.classes),
        "rows": sha256_of_json(identity),
        "seed": seed,
        **search.model_dump(mode="json", include=decisive),
        # What a value means: the metric, its ties broken by log loss (`metrics.objective`).
        "value": 2,
    }


def _check(store: FeatureStore, search: SearchParams) -> None:
    for split in ("train", "validation"):
        if len(store.indices(split)) == 0:
            raise SearchError(
                f"a search needs images in the {split} split, but there are none: "
                f"add images (a class of three groups has one in each split), or raise "
                f"ingest.split.{split}"
            )
    check_metric(search.metric, len(store.classes))
    if not store.costs and (search.max_mflops or search.max_model_mb):
        raise SearchError(
            "search.max_mflops and search.max_model_mb need to know what the encoder costs, but "
            f"{store.path} does not say: run `dvc repro --force extract`"
        )
