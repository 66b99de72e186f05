"""Headstart as an estimator of scikit-learn: `headstart.HeadstartClassifier`.

In memory, without a project: for `Pipeline`, `cross_val_score` and `GridSearchCV`.

from headstart import HeadstartClassifier
from sklearn.model_selection import cross_val_score

cross_val_score(HeadstartClassifier(), paths, labels)
"""

from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data

from headstart.common.errors import ParamsError, SearchError
from headstart.common.paths import cache_folder
from headstart.encoders.runtimes import resolve
from headstart.features.extractor import Extractor, extracted_rows
from headstart.heads.config import chosen_layers
from headstart.heads.folds import assign_folds, count_folds, folds_of
from headstart.heads.metrics import softmax
from headstart.heads.temperature import fit_temperature
from headstart.heads.trainer import HeadTrainer, mean_by_row
from headstart.images.input_pixels import Picture, PicturePixels
from headstart.params.load import validate
from headstart.params.search import SearchParams
from headstart.params.whole_file import Params
from headstart.search.plan import with_blocks
from headstart.search.space import grid

_FOLDS = 5
_EXTRACT = ("encoders", "weights", "weights_sha256", "pooling")
# Of the default space what solved heads use: sets of feature blocks.
_SEARCH = SearchParams()


class HeadstartClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A frozen encoder and the head that cross-validation chooses, with a temperature.

    `X` is a list or an array of paths, of the bytes of image files, or of RGB pixels, uint8
    (height, width, 3); or features, (n, n_features). Features of images come from the row cache, as
    in the extract stage, and an image is computed once. The head is the best of logistic regression
    on the last feature block and ridge on every set of blocks, as in the default search; copies of
    an image share a fold. Given features are one block.

    Args:
        encoders, weights, weights_sha256, pooling: as `extract` in params.yaml; not of given
            features.
        size_px: of the input, as `image.size_px`.
        folds: of cross-validation, 2 to 20; None: 5. Fewer where a class has fewer images.
        random_state: of the folds.

    Attributes:
        classes_: the labels, sorted.
        n_features_in_: columns of the features, given or the encoder's.
        head_: the `FittedHead`, on the columns `columns_`; its logits are divided by
            `temperature_`.
    """

    def __init__(
        self,
        encoders: str | tuple[str, ...] = "efficientnet-lite0",
        *,
        weights: str | dict[str, str] = "imagenet",
        weights_sha256: str | dict[str, str] | None = None,
        pooling: str = "avg",
        size_px: int = 224,
        folds: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.encoders = encoders
        self.weights = weights
        self.weights_sha256 = weights_sha256
        self.pooling = pooling
        self.size_px = size_px
        self.folds = folds
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike) -> Self:  # noqa: N803 (scikit-learn's name)
        """Choose a head by cross-validation, and train it on all rows.

        Raises:
            ValueError: features or labels cannot be learned from, as scikit-learn says it.
            DataError: an image cannot be read; it names which.
            ParamsError: a parameter is not allowed.
        """
        params = self._params()
        pictures = _pictures(X)
        if pictures is None:
            features, y = validate_data(self, X, y, dtype=np.float32)
            blocks = {"features": slice(0, features.shape[1])}
            contents = features
        else:
            y = column_or_1d(y, warn=True)
            check_consistent_length(pictures, y)
            features, blocks, contents = _extracted(params, pictures)
            self.n_features_in_ = features.shape[1]
        check_classification_targets(y)
        self._is_of_images = pictures is not None
        self.classes_, label_ids = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ValueError(
                f"a classifier needs labels of two classes or more, but got {n_classes} class: "
                "add samples of another"
            )
        _, first, copies = np.unique(contents, axis=0, return_index=True, return_inverse=True)
        keys = [str(row) for row in first[copies.ravel()].tolist()]
        seed = int(check_random_state(self.random_state).randint(2**31))
        try:
            n_folds = count_folds(label_ids, keys, params.search.folds or _FOLDS)
        except SearchError:
            raise ValueError(
                "cross-validation needs a class of two samples that are not the same, but got none "
                f"among n_samples={len(keys)}: add samples"
            ) from None
        folds = folds_of(assign_folds(label_ids, keys, folds=n_folds, seed=seed), [seed])
        trainer = HeadTrainer(
            features[:, None], label_ids, n_classes, blocks, metric=_SEARCH.metric
        )
        space = with_blocks(_SEARCH, tuple(blocks)).space
        found = [
            trainer.cross_validate(config, folds, path=True)
            for config in (_SEARCH.default_head, *grid(space))
        ]
        best = max(found, key=lambda one: one.curve.objective)
        rows, logits = mean_by_row(folds, best.logits)
        self.temperature_ = fit_temperature(logits, label_ids[rows])
        (self.head_,) = trainer.fit(
            best.config,
            np.arange(len(features)),
            [seed],
            epochs=1,
            temperature=best.temperature,
        )
        columns = np.arange(features.shape[1])
        chosen = chosen_layers(best.config.layers, tuple(blocks))
        self.columns_ = np.concatenate([columns[blocks[layer]] for layer in chosen])
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Return probabilities, float64 (n, n_classes), in the order of `classes_`.

        Raises:
            ValueError: features of another number, or images where it was fitted on features.
            DataError: an image cannot be read; it names which.
        """
        check_is_fitted(self)
        pictures = _pictures(X)
        if (pictures is not None) != self._is_of_images:
            kinds = ("features", "images")
            raise ValueError(
                f"X must be {kinds[self._is_of_images]}, as it was when this was fitted, but got "
                f"{kinds[pictures is not None]}"
            )
        if pictures is None:
            features = validate_data(self, X, dtype=np.float32, reset=False)
        else:
            features, _, _ = _extracted(self._params(), pictures)
        return softmax(self.head_.logits(features[:, self.columns_]) / self.temperature_)

    def predict(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """Return the most probable class of each row; raises as `predict_proba` does."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _params(self) -> Params:
        """The parameters as sections of params.yaml, by whose rules and defaults they are."""
        given = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
        }
        if given["folds"] == 1:
            raise ParamsError("folds must be 2 or more, but got 1: leave it out for 5")
        extract = {name: given[name] for name in _EXTRACT}
        return validate(
            Path(type(self).__name__),
            Params,
            {
                "extract": extract,
                "image": {"size_px": given["size_px"]},
                "search": {"folds": given["folds"]},
            },
        )


def _pictures(X: Any) -> list[Picture] | None:  # noqa: N803
    """The pictures that X is, or None where it is features."""
    if len(getattr(X, "shape", ())) == 2 or not hasattr(X, "__len__") or not len(X):
        return None
    first = next(iter(X))
    is_picture = isinstance(first, str | PathLike | bytes) or np.ndim(first) > 1
    return list(X) if is_picture else None


def _extracted(
    params: Params, pictures: list[Picture]
) -> tuple[NDArray[np.float32], dict[str, slice], NDArray[np.str_]]:
    """Features of pictures, their blocks, and the pictures' hashes."""
    pixels = PicturePixels(pictures, params.image)
    extract = resolve(params.extract)
    extractor = Extractor(extract, params.image, params.seed, Path.cwd(), cache_folder())
    with extracted_rows(extractor, pixels, pixels.names, pixels.sha256) as found:
        return np.concatenate(list(found.parts))[:, 0], found.blocks, np.array(pixels.sha256)
