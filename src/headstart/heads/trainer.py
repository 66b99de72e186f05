"""Training heads: ridge and logistic regression are solved, networks trained by gradient steps.

The one training loop of the search, of the final head, and of its out-of-fold predictions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.heads.config import HeadConfig
from headstart.heads.curve import Curve, curve_metrics, epoch_scores
from headstart.heads.fitted import FittedHead
from headstart.heads.folds import Fold
from headstart.heads.linear import LinearHeads
from headstart.heads.metrics import one_of_views
from headstart.params.head import ValidationViews

if TYPE_CHECKING:
    from headstart.heads.backend import Tensors
    from headstart.heads.network import NetworkData

Float32s = NDArray[np.float32]


@dataclass(frozen=True)
class CrossValidation:
    """What heads of one config say of rows that they were not trained on.

    Attributes:
        config: of ridge with the penalty that was best of the path.
        curve: metrics of the validation rows after each epoch, of which a solved head has one.
        logits: of each fold's validation rows, float32 (n, n_classes), at the best epoch, or the
            last where the number of epochs was given.
        heads: the heads themselves, one a fold, where they were asked for.
        temperature: what the scores of ridge were divided by; 1 for others.
    """

    config: HeadConfig
    curve: Curve
    logits: list[Float32s]
    heads: tuple[FittedHead, ...]
    temperature: float = 1.0


class HeadTrainer:
    """Trains heads on one set of rows; what they have in common is computed once.

    Args:
        features: float32 (n, n_views, d); a row's first view is the plain one.
        label_ids: int64 (n,).
        blocks: layer → its columns of `features`.
        metric: what decides the best epoch, on validation rows.
        validation_views: which view of a validation row its logits are of.

    Attributes:
        blocks: as given.
    """

    def __init__(
        self,
        features: Float32s,
        label_ids: NDArray[np.int64],
        n_classes: int,
        blocks: Mapping[str, slice],
        *,
        batch_size: int = 64,
        metric: str = "log_loss",
        validation_views: ValidationViews = "plain",
    ) -> None:
        self._features, self._label_ids, self._n_classes = features, label_ids, n_classes
        self.blocks, self._batch_size = dict(blocks), batch_size
        self._metric, self._validation_views = metric, validation_views
        self._linear = LinearHeads(features, label_ids, n_classes, blocks)

    def cross_validate(
        self,
        config: HeadConfig,
        folds: Sequence[Fold],
        *,
        epochs: int | None = None,
        patience: int | None = None,
        path: bool = False,
        keep_heads: bool = False,
        on_epoch: Callable[[Curve], bool] = lambda _: False,
    ) -> CrossValidation:
        """Train a head on each fold's training rows, and score it on its validation rows.

        Args:
            epochs: of networks: end after so many, with the weights of then; None: at the best
                epoch of at most `config.epochs`.
            patience: without `epochs`, stop after so many epochs without progress; None: never.
            path: of ridge, try every penalty of the path; that with the least log loss counts: it
                differs where penalties get the same rows right.
            on_epoch: told the curve after each epoch; True ends the training.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        if config.kind != "network":
            return self._solve(config, folds, path, keep_heads, on_epoch)
        # Keras is imported where networks are trained, and not where heads are solved alone.
        from headstart.heads.network import Network

        n_views = self._features.shape[1]
        views = np.arange(n_views if self._validation_views == "mean_of_views" else 1)
        networks = [
            Network(
                config,
                self._network_data,
                fold,
                batch_size=self._batch_size,
                judged=(fold.validation[:, None] * n_views + views).ravel(),
            )
            for fold in folds
        ]
        curve = Curve(self._metric)
        kept: list[Float32s] = []
        weights: list[Tensors] = []
        while curve.epochs < (epochs or config.epochs):
            logits = [one_of_views(network.run_epoch(), len(views)) for network in networks]
            is_best = curve.add(self._scores(folds, logits))
            if not np.isfinite(curve.values[curve.metric][-1]):
                raise TrainingError(
                    "a head's loss must stay a number, but it did not in epoch "
                    f"{curve.epochs}: lower learning_rate"
                )
            if is_best or epochs is not None:
                kept = logits
                weights = [network.weights for network in networks if keep_heads]
            if on_epoch(curve) or (epochs is None and curve.stalled(patience)):
                break
        trained = curve.best_epoch if epochs is None else curve.epochs
        heads = tuple(
            replace(network.fitted(own, trained), curve=curve.values)
            for network, own in zip(networks, weights, strict=False)
        )
        return CrossValidation(config, curve, kept, heads)

    def fit(
        self,
        config: HeadConfig,
        rows: NDArray[np.int64],
        seeds: Sequence[int],
        *,
        epochs: int,
        temperature: float = 1.0,
    ) -> list[FittedHead]:
        """Train a head on some rows from each seed; a solved one does not depend on it.

        Args:
            epochs: of a network.
            temperature: of ridge, as cross-validation found it.

        Raises:
            TrainingError: weights are no longer numbers: without validation rows no curve says so.
        """
        if config.kind != "network":
            return [self._linear.fit(config, rows, temperature)]
        from headstart.heads.network import Network

        heads = []
        for seed in seeds:
            fold = Fold(rows, rows[:0], seed)
            network = Network(config, self._network_data, fold, batch_size=self._batch_size)
            for _ in range(epochs):
                network.run_epoch()
            head = network.fitted()
            arrays = [array for layer in head.layers for array in (layer.kernel, layer.bias)]
            if not all(np.isfinite(array).all() for array in arrays):
                raise TrainingError(
                    f"a head's weights must stay numbers, but they did not in {epochs} epochs: "
                    "lower learning_rate"
                )
            heads.append(head)
        return heads

    def _solve(
        self,
        config: HeadConfig,
        folds: Sequence[Fold],
        path: bool,
        keep_heads: bool,
        on_epoch: Callable[[Curve], bool],
    ) -> CrossValidation:
        n_views = self._features.shape[1]
        curves, judged = [], []
        found = self._linear.out_of_fold(config, folds, path=path)
        for one in found:
            if self._validation_views == "mean_of_views":
                judged.append([one_of_views(logits, n_views) for logits in one.logits])
            else:
                judged.append([logits[::n_views] for logits in one.logits])
            curves.append(Curve(self._metric))
            curves[-1].add(self._scores(folds, judged[-1]))
        best = min(range(len(found)), key=lambda i: curves[i].values["log_loss"][0])
        chosen, curve = found[best], curves[best]
        if not np.isfinite(curve.objective):
            raise TrainingError(
                "a head's logits must be numbers, but those of "
                f"{config.kind} are not: look at the features"
            )
        on_epoch(curve)
        heads = [
            replace(
                self._linear.fit(chosen.config, fold.train, chosen.temperature), curve=curve.values
            )
            for fold in folds
            if keep_heads
        ]
        return CrossValidation(chosen.config, curve, judged[best], tuple(heads), chosen.temperature)

    def _scores(
        self, folds: Sequence[Fold], logits: Sequence[Float32s]
    ) -> dict[str, NDArray[np.float64]]:
        """Metrics of each fold's validation rows, (n_folds,) by name."""
        labels = [self._label_ids[fold.validation] for fold in folds]
        return epoch_scores(curve_metrics(self._metric), labels, logits)

    @cached_property
    def _network_data(self) -> "NetworkData":
        from headstart.heads.network import NetworkData

        return NetworkData(self._features, self._label_ids, self._n_classes, self.blocks)


def mean_by_row(
    folds: Sequence[Fold], logits: Sequence[Float32s]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows that some fold holds out, ascending, and their logits: the mean over repeats."""
    rows, index = np.unique(
        np.concatenate([fold.validation for fold in folds]), return_inverse=True
    )
    total = np.zeros((len(rows), logits[0].shape[1]))
    np.add.at(total, index, np.concatenate(logits))
    return rows, total / np.bincount(index)[:, None]
