"""Training given heads: with early stopping and best-epoch weights, or for so many epochs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.features.feature_store import FeatureBatch
from headstart.heads.config import HeadConfig
from headstart.heads.curve import Curve, curve_metrics, epoch_scores
from headstart.heads.fitted import FittedHead
from headstart.heads.folds import RowGroup
from headstart.heads.lanes import columns_needed, groups_that_fit, shape_for
from headstart.heads.linear import LinearHeads
from headstart.heads.metrics import one_of_views
from headstart.heads.program import Shape
from headstart.heads.stack import HeadStack, StackData
from headstart.params.head import JudgedOn


@dataclass(frozen=True)
class FitOptions:
    """How long heads are trained.

    Attributes:
        epochs: end after so many epochs, with the weights of then; None: at the best epoch.
        patience: without `epochs`, stop after so many epochs that were no better; None: never.
        metric: what decides the best epoch, on validation.
        first_epoch: where in the seed's row orders to begin (see `BestHead.first_epoch`).
        judged_on: which view of a validation image decides the best epoch.
    """

    batch_size: int = 64
    epochs: int | None = None
    patience: int | None = None
    metric: str = "log_loss"
    first_epoch: int = 0
    judged_on: JudgedOn = "plain"


def fit_head(
    config: HeadConfig,
    train: FeatureBatch,
    validation: FeatureBatch | None,
    *,
    n_classes: int,
    seed: int,
    options: FitOptions = FitOptions(),
) -> FittedHead:
    """Train one head; see `fit_heads`."""
    return fit_heads(
        [config], train, validation, n_classes=n_classes, seeds=[seed], options=options
    )[0]


def fit_heads(
    configs: Sequence[HeadConfig],
    train: FeatureBatch,
    validation: FeatureBatch | None,
    *,
    n_classes: int,
    seeds: Sequence[int],
    options: FitOptions = FitOptions(),
) -> list[FittedHead]:
    """Train every config from every seed, all in one stack.

    With `validation` each head carries its curve there, and ends with the weights of its best
    epoch, unless `options.epochs` says when to end.

    Returns:
        Heads in the order of configs, then seeds.

    Raises:
        TrainingError: the loss is no longer a number, or nothing says when to end.
    """
    if validation is None and options.epochs is None:
        raise TrainingError("training without validation rows needs a number of epochs: give one")
    features, label_ids, held_out = _joined(train, validation)
    weights = np.ones(len(label_ids), np.float32)
    weights[held_out] = 0
    groups = [RowGroup(weights, held_out, seed) for seed in seeds]
    heads: dict[int, list[FittedHead]] = {}
    for index, config in enumerate(configs):
        if config.kind != "network":
            head = _fit_linear(config, features, label_ids, n_classes, groups[0], options)
            heads[index] = [head] * len(seeds)
    networks = {i: config for i, config in enumerate(configs) if config.kind == "network"}
    if networks:
        data = StackData(features, label_ids, n_classes, options.judged_on)
        heads |= _fit_networks(networks, data, groups, options)
    return [head for index in range(len(configs)) for head in heads[index]]


def linear_heads(
    config: HeadConfig,
    features: NDArray[np.float32],
    label_ids: NDArray[np.int64],
    n_classes: int,
) -> tuple[LinearHeads, HeadConfig]:
    """What fits a linear head on the features of its own layers alone, and its config for that."""
    solver = LinearHeads(features, label_ids, n_classes, {"all": slice(0, features.shape[2])})
    return solver, config.model_copy(update={"layers": "all"})


def _joined(
    train: FeatureBatch, validation: FeatureBatch | None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Features and labels of both, and the row numbers of the validation rows."""
    if validation is None:
        return train.features, train.label_ids, np.arange(0)
    features = np.concatenate([train.features, validation.features])
    label_ids = np.concatenate([train.label_ids, validation.label_ids])
    return features, label_ids, np.arange(len(train.label_ids), len(label_ids))


def _fit_linear(
    config: HeadConfig,
    features: NDArray[np.float32],
    label_ids: NDArray[np.int64],
    n_classes: int,
    group: RowGroup,
    options: FitOptions,
) -> FittedHead:
    """Solve a head; its curve is one epoch on the held-out rows, where there are some."""
    solver, whole = linear_heads(config, features, label_ids, n_classes)
    if not len(group.validation):
        return replace(solver.fit(whole, group.rows), config=config)
    (answers,) = solver.out_of_fold(whole, [group])
    n_views = features.shape[1]
    logits = answers.logits[0][::n_views]
    if options.judged_on == "mean_of_views":
        logits = one_of_views(answers.logits[0], n_views)
    labels = label_ids[group.validation]
    found = epoch_scores(curve_metrics(options.metric), [labels], [logits[None]])
    head = solver.fit(whole, group.rows, answers.temperature)
    curve = {name: [float(value[0, 0])] for name, value in found.items()}
    return replace(head, config=config, curve=curve)


def _fit_networks(
    configs: dict[int, HeadConfig],
    data: StackData,
    groups: Sequence[RowGroup],
    options: FitOptions,
) -> dict[int, list[FittedHead]]:
    shape = shape_for(
        list(configs.values()),
        groups=len(groups),
        feature_dim=data.features.shape[2],
        n_classes=data.n_classes,
        batch_size=options.batch_size,
    )
    heads: dict[int, list[FittedHead]] = {number: [] for number in configs}
    for part, some in groups_that_fit(shape, groups):
        for number, found in _fit_together(configs, data, some, part, options).items():
            heads[number] += found
    return heads


def _fit_together(
    configs: dict[int, HeadConfig],
    data: StackData,
    groups: Sequence[RowGroup],
    shape: Shape,
    options: FitOptions,
) -> dict[int, list[FittedHead]]:
    stack = HeadStack(data, groups, shape, first_epoch=options.first_epoch)
    widest_first = sorted(configs, key=lambda n: -columns_needed(configs[n], data.n_classes))
    for number in widest_first:
        stack.add(number, configs[number])
    results = _Results(stack, groups, data, options)
    while len(stack):
        stack.run_epoch()
        results.note()
    return results.heads


class _Results:
    """What each head in each group has come to; removes heads from the stack that have ended."""

    def __init__(
        self,
        stack: HeadStack,
        groups: Sequence[RowGroup],
        data: StackData,
        options: FitOptions,
    ) -> None:
        self.heads: dict[int, list[FittedHead]] = {}
        self._stack, self._data, self._options = stack, data, options
        self._held_out = [group.validation for group in groups]
        self._labels = [data.label_ids[rows] for rows in self._held_out]
        self._curves: dict[int, list[Curve]] = {}
        self._best: dict[tuple[int, int], FittedHead] = {}

    def note(self) -> None:
        """Note the epoch just run."""
        scored = self._scores()
        for number, epochs in self._stack.epochs().items():
            curves = self._curves.setdefault(
                number, [Curve(self._options.metric) for _ in self._held_out]
            )
            for group, curve in enumerate(curves):
                if number in scored and curve.add(scored[number][group]):
                    self._best[number, group] = self._stack.fitted(number, group)
            self._check(number, curves)
            if self._ended(number, epochs, curves):
                self.heads[number] = [self._final(number, g, c) for g, c in enumerate(curves)]
                self._stack.remove([number])

    def _scores(self) -> dict[int, list[dict[str, NDArray[np.float64]]]]:
        if not len(self._held_out[0]):
            return {}
        numbers, logits = self._stack.validation_logits()
        found = epoch_scores(curve_metrics(self._options.metric), self._labels, logits)
        return {
            number: [
                {name: values[group : group + 1, place] for name, values in found.items()}
                for group in range(len(logits))
            ]
            for place, number in enumerate(numbers)
        }

    def _check(self, number: int, curves: Sequence[Curve]) -> None:
        for curve in curves:
            if curve.epochs and np.isnan(curve.values[curve.metric][-1]):
                raise TrainingError(
                    f"a head's loss must stay a number, but it did not after {curve.epochs} "
                    f"epochs (head {number}): lower learning_rate"
                )

    def _ended(self, number: int, epochs: int, curves: Sequence[Curve]) -> bool:
        options, config = self._options, self._stack.config(number)
        if options.epochs is not None:
            return epochs >= options.epochs
        return epochs >= config.epochs or all(curve.stalled(options.patience) for curve in curves)

    def _final(self, number: int, group: int, curve: Curve) -> FittedHead:
        is_last = self._options.epochs is not None
        head = self._stack.fitted(number, group) if is_last else self._best[number, group]
        check_finite(head, f"number {number}")
        return replace(head, curve=curve.values)


def check_finite(head: FittedHead, name: str) -> None:
    """Refuse weights that are no longer numbers: without validation rows no curve shows them.

    Raises:
        TrainingError: one is not finite.
    """
    arrays = [array for layer in head.layers for array in (layer.kernel, layer.bias)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise TrainingError(
            f"a head's weights must stay numbers, but they did not in {head.epochs} epochs "
            f"(head {name}): lower learning_rate"
        )
