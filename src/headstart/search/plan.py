"""What a study trains on, and what it is called: fixed by the features, the params and the seed."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import SearchError
from headstart.common.files import sha256_of_json
from headstart.features.feature_store import FeatureStore
from headstart.heads.folds import RowGroup, count_folds, fold_groups, split_groups
from headstart.heads.metrics import check_metric
from headstart.params.head import Layers
from headstart.params.search import SearchParams
from headstart.params.search_space import Choices
from headstart.search.storage import study_exists

# What a study's name covers only where it is not the default: names given before it counted stay.
_ADDED = ("sampler", "pruner")
# Of more blocks there are too many sets to try each.
_MOST_BLOCKS = 5


@dataclass(frozen=True)
class StudyPlan:
    """Rows, groups of them, and the study's name.

    Attributes:
        features: float32 (n, n_views, feature_dim): of the train split, then of validation.
        blocks: layer → its columns of `features`.
        label_ids: int64 (n,).
        keys: of the groups that rows belong to.
        topic: all that the name covers; a study with the same topic may be gone on with.
    """

    features: NDArray[np.float32]
    blocks: dict[str, slice]
    label_ids: NDArray[np.int64]
    keys: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    n_classes: int
    name: str
    topic: dict[str, Any]

    @property
    def judged_rows(self) -> NDArray[np.int64]:
        """The rows that some head is scored on without having seen them, ascending."""
        return np.unique(np.concatenate([group.validation for group in self.groups]))

    @property
    def folds(self) -> int:
        """Folds of cross-validation; 1 where the validation split decides."""
        return int(self.topic["folds"])


def plan_study(
    store: FeatureStore, search: SearchParams, *, seed: int, folder: Path | None = None
) -> StudyPlan:
    """Choose the rows and name the study.

    Args:
        folder: where journals are; a study there, or in `search.storage`, that still has the name
            of version 0.1.0 keeps it, and is resumed.

    Raises:
        SearchError: a split is empty, or the metric needs more classes.
    """
    _check(store, search)
    train, validation = store.indices("train"), store.indices("validation")
    by_folds = search.folds > 1
    rows = np.concatenate([train, validation])
    batch = store.rows(rows)
    folds = 1
    if by_folds:
        folds = count_folds(batch.label_ids, batch.groups, search.folds)
        groups = fold_groups(
            batch.label_ids, batch.groups, folds=folds, repeats=search.repeats, seed=seed
        )
    else:
        groups = split_groups(len(train), len(validation), repeats=search.repeats, seed=seed)
    topic = {**_topic(store, search, rows, seed), "folds": folds}
    key = sha256_of_json(topic)[:12]
    name, former = f"{_described(store, search, len(rows))}-{key}", f"heads-{key}"
    if folder is not None and study_exists(search.storage, folder, former):
        name = former
    return StudyPlan(
        features=batch.features,
        blocks=store.columns(),
        label_ids=batch.label_ids,
        keys=tuple(batch.groups),
        groups=tuple(groups),
        n_classes=len(store.classes),
        name=name,
        topic=topic,
    )


def with_blocks(search: SearchParams, layers: Sequence[str]) -> SearchParams:
    """The same search, `space.layers: any` replaced by all sets of these feature blocks."""
    if search.space.layers != "any":
        return search
    if len(layers) == 1:
        chosen: Any = "all"
    else:
        sets = [
            "+".join(some)
            for size in range(1, len(layers))
            for some in itertools.combinations(layers, size)
            if some != (layers[0],) and len(layers) <= _MOST_BLOCKS
        ]
        chosen = Choices[Layers](choices=("last", "all", *sets))
    space = search.space.model_copy(update={"layers": chosen})
    return search.model_copy(update={"space": space})


def may_share_trials(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether trials of one topic mean the same in another: all but how heads are found agrees."""
    own = ("space", "default_head", *_ADDED)
    return {k: v for k, v in old.items() if k not in own} == {
        k: v for k, v in new.items() if k not in own
    }


def _described(store: FeatureStore, search: SearchParams, n_images: int) -> str:
    """What a person would call the study, fit for a file's name."""
    folds = [f"{search.folds}-folds"] if search.folds > 1 else []
    encoder = re.sub(r"[^A-Za-z0-9._]+", "-", store.contract["backbone"]).strip("-.")[:40]
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
    decisive = (
        "metric", "judged_on", "folds", "repeats", "batch_size", "patience", "default_head",
        "space",
    )  # fmt: skip
    chosen = search.model_dump(mode="json", include=set(decisive))
    added = {
        name: getattr(search, name)
        for name in _ADDED
        if getattr(search, name) != SearchParams.model_fields[name].default
    }
    return {
        "features": store.fingerprint,
        "n_views": store.n_views,
        "classes": list(store.classes),
        "rows": sha256_of_json(identity),
        "seed": seed,
        **{name: chosen[name] for name in decisive},
        **added,
        # Its values are not those of version 0.1.0, so trials of then belong to another study.
        **({"ece": "debiased"} if search.metric == "ece" else {}),
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
