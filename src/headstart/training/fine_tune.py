"""Training the last layers of the whole model from pixels; the frozen model is the start.

TensorFlow's own loop: one compiled step, on one device or on all of them. Randomness depends on
the seed and the epoch alone, so that a run that was killed ends with the weights of one that was
not. Knows arrays of pixels and an assembled model; not files of images, splits or runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headstart.common.errors import TrainingError
from headstart.common.progress import begin_step, progress_bar
from headstart.heads.metrics import accuracy, log_loss, softmax
from headstart.models.assemble import logits_model
from headstart.models.pixels import BATCH_SIZE, predict_batch
from headstart.params.train import FineTuneParams
from headstart.training.augment import change, draw_views
from headstart.training.checkpoint import (
    Checkpoint,
    as_arrays,
    assign,
    read_checkpoint,
    write_checkpoint,
)
from headstart.training.precision import at_precision
from headstart.training.unfreeze import unfreeze

if TYPE_CHECKING:
    import keras

# The fraction of all steps in which the learning rate rises; then it falls along a cosine.
WARMUP_FRACTION = 0.1
_FASTER = "fewer train.fine_tune.epochs; a smaller encoder; no fine-tuning: heads take seconds"

OnEpoch = Callable[[int, Mapping[str, float]], None]


class Pixels(Protocol):
    """Decoded images that can be indexed: an `ImageStore`, or an array."""

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Examples:
    """Rows of an image store.

    Attributes:
        rows: int64, shape (n,); where the images are in `pixels`.
        label_ids: int64, shape (n,).
        weights: float32, shape (n,); of each image in the loss, of mean 1.
    """

    pixels: Pixels
    rows: NDArray[np.int64]
    label_ids: NDArray[np.int64]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Progress:
    """How far training is; what a checkpoint's state says.

    Attributes:
        curve: metrics of each epoch.
        best_epoch: 0 is the frozen model.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = float("inf")


@dataclass(frozen=True)
class FineTuned:
    """The outcome: `model` has the weights of the best epoch.

    Attributes:
        logits: of the validation images by `model`, float32, shape (n_validation, n_classes).
        first_layer: the first that was trained.
    """

    model: "keras.Model"
    logits: NDArray[np.float32]
    curve: tuple[dict[str, float], ...]
    best_epoch: int
    first_layer: str


def fine_tune(
    model: "keras.Model",
    train: Examples,
    validation: Examples,
    params: FineTuneParams,
    *,
    seed: int,
    checkpoints: Path,
    on_epoch: OnEpoch | None = None,
) -> FineTuned:
    """Train the last layers of an assembled model; its weights are changed in place.

    Args:
        checkpoints: a folder for this run alone; it is resumed from what lies there.
        on_epoch: called with the number of each epoch, from 1, and its metrics; of those that were
            done before a kill too, since who listens now did not hear of them.

    Raises:
        TrainingError: Keras does not run on TensorFlow, or the layers cannot be told.
    """
    trainer = Trainer(model, params, n_steps=-(-len(train) // params.batch_size), seed=seed)
    progress = _restored(trainer, checkpoints) or _begun(trainer, validation)
    if on_epoch is not None:
        for epoch, metrics in enumerate(progress.curve, start=1):
            on_epoch(epoch, metrics)
    while not _ended(progress, params):
        epoch = len(progress.curve) + 1
        loss = trainer.run_epoch(train, epoch)
        _note(trainer, progress, loss, validation)
        state = {"curve": progress.curve, "best": [progress.best_epoch, progress.best_loss]}
        write_checkpoint(checkpoints, Checkpoint(state, trainer.arrays()))
        if on_epoch is not None:
            on_epoch(epoch, progress.curve[-1])
    trainer.use_best()
    return FineTuned(
        model=model,
        logits=trainer.logits(validation),
        curve=tuple(progress.curve),
        best_epoch=progress.best_epoch,
        first_layer=trainer.first_layer,
    )


class Trainer:
    """The compiled training step, its optimizer, and the best weights so far.

    Attributes:
        step: one step on a batch of `batches`; returns the sum of its losses.
    """

    def __init__(
        self, model: "keras.Model", params: FineTuneParams, *, n_steps: int, seed: int
    ) -> None:
        import tensorflow as tf

        _check_backend()
        tf.config.experimental.enable_op_determinism()
        self._params, self._seed, self._n_steps = params, seed, n_steps
        self._size = int(model.input.shape[1])
        self.first_layer = unfreeze(model, params)
        self._exact = logits_model(model)
        self._strategy = _strategy(params)
        with self._strategy.scope():
            self._model = self._working_copy(model)
            self._weights = self._model.trainable_weights
            self._optimizer = _optimizer(params, n_steps)
            self._optimizer.build(self._weights)
        self.best = as_arrays(self._weights)
        self.step = tf.function(self._distributed_step)

    def run_epoch(self, train: Examples, epoch: int) -> float:
        """Train on every image once; returns the mean loss."""
        losses = []
        title = f"fine-tune, epoch {epoch} of {self._params.epochs}"
        begin_step(title)
        # Of all epochs: the time left is that to the last one.
        every, done = self._params.epochs * len(train), (epoch - 1) * len(train)
        with progress_bar(
            total=every, unit="images", title=title, done=done, faster=_FASTER
        ) as bar:
            for batch in self.batches(train, epoch):
                losses.append(self.step(*batch))
                bar.update(min(self._params.batch_size, epoch * len(train) - bar.n))
        return float(np.sum([float(loss) for loss in losses]) / len(train))

    def logits(self, examples: Examples) -> NDArray[np.float32]:
        """Logits in float32, by the exact model with the weights as they are now."""
        if self._model is not self._exact:
            assign(self._exact.trainable_weights, as_arrays(self._weights))
        starts = range(0, len(examples), BATCH_SIZE)
        batches = (examples.pixels[examples.rows[s : s + BATCH_SIZE]] for s in starts)
        return np.concatenate([predict_batch(self._exact, pixels) for pixels in batches])

    def remember(self) -> None:
        """Keep the weights as they are now as the best."""
        self.best = as_arrays(self._weights)

    def use_best(self) -> None:
        """Give the model the best weights."""
        assign(self._weights, self.best)
        assign(self._exact.trainable_weights, self.best)

    def arrays(self) -> dict[str, list[NDArray[Any]]]:
        """All that going on later needs."""
        return {
            "weights": as_arrays(self._weights),
            "optimizer": as_arrays(self._optimizer.variables),
            "best": self.best,
        }

    def restore(self, arrays: Mapping[str, Sequence[NDArray[Any]]]) -> None:
        """Go on from `arrays`."""
        assign(self._weights, arrays["weights"])
        assign(self._optimizer.variables, arrays["optimizer"])
        self.best = list(arrays["best"])

    def _working_copy(self, model: "keras.Model") -> "keras.Model":
        """The model that is trained: the exact one, or a copy in another precision or place."""
        import tensorflow as tf

        is_plain = self._params.precision == "float32"
        if is_plain and not isinstance(self._strategy, tf.distribute.MirroredStrategy):
            return self._exact
        copy = at_precision(model, self._params.precision)
        unfreeze(copy, self._params)
        return logits_model(copy)

    def batches(self, train: Examples, epoch: int) -> Iterator[tuple[Any, ...]]:
        """What `step` takes, in this epoch's order; the last is filled with images of weight 0."""
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(train))
        views = draw_views(self._params, len(train), self._size, generator)
        size = self._params.batch_size
        n_filled = self._n_steps * size
        order = np.concatenate([order, np.zeros(n_filled - len(train), np.int64)])
        weights = train.weights[order]
        weights[len(train) :] = 0

        def gather(step: int) -> tuple[Any, ...]:
            chosen = order[step * size : (step + 1) * size]
            return self._placed(
                train.pixels[train.rows[chosen]],
                train.label_ids[chosen],
                weights[step * size : (step + 1) * size],
                views.transforms[chosen],
                views.contrast[chosen],
            )

        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(gather, 0)
            for step in range(1, self._n_steps):
                ready, ahead = ahead.result(), pool.submit(gather, step)
                yield ready
            yield ahead.result()

    def _placed(self, *arrays: NDArray[Any]) -> tuple[Any, ...]:
        """Arrays as tensors, parted among the devices."""
        import tensorflow as tf

        n_devices = self._strategy.num_replicas_in_sync
        if n_devices == 1:
            return tuple(tf.convert_to_tensor(array) for array in arrays)
        parts = [np.array_split(array, n_devices) for array in arrays]
        return tuple(
            self._strategy.experimental_distribute_values_from_function(
                lambda context, part=part: tf.convert_to_tensor(
                    part[context.replica_id_in_sync_group]
                )
            )
            for part in parts
        )

    def _distributed_step(self, *batch: Any) -> Any:
        import tensorflow as tf

        losses = self._strategy.run(self._replica_step, args=batch)
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _replica_step(
        self, pixels: Any, label_ids: Any, weights: Any, transforms: Any, contrast: Any
    ) -> Any:
        """One step on one device's part of a batch; returns the sum of its losses."""
        import tensorflow as tf
        from keras import ops

        params = self._params
        n_classes = self._exact.output.shape[-1]
        targets = ops.one_hot(label_ids, n_classes)
        views = change(pixels, transforms, contrast)
        with tf.GradientTape() as tape:
            logits = ops.cast(self._model(views, training=False), "float32")
            each = -ops.sum(ops.log_softmax(logits) * targets, axis=-1)
            total = ops.sum(each * weights)
            loss = self._optimizer.scale_loss(total / params.batch_size)
        gradients = tape.gradient(loss, [weight.value for weight in self._weights])
        self._optimizer.apply(gradients, self._weights)
        return total


def _check_backend() -> None:
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise TrainingError(
            f"fine-tuning runs on TensorFlow, but Keras runs on {backend}: set "
            "KERAS_BACKEND=tensorflow, or train.fine_tune.enabled: false"
        )


def _strategy(params: FineTuneParams) -> Any:
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if params.devices == "one" or len(devices) == 1:
        return tf.distribute.get_strategy()
    if params.batch_size % len(devices):
        raise TrainingError(
            f"train.fine_tune.batch_size must be a multiple of the {len(devices)} devices, but got "
            f"{params.batch_size}: change it, or set train.fine_tune.devices: one"
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _optimizer(params: FineTuneParams, n_steps: int) -> Any:
    import keras

    total = params.epochs * n_steps
    warm = round(WARMUP_FRACTION * total)
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm else params.learning_rate,
        decay_steps=max(1, total - warm),
        warmup_target=params.learning_rate if warm else None,
        warmup_steps=warm,
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=params.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    if params.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _begun(trainer: Trainer, validation: Examples) -> Progress:
    logits = trainer.logits(validation)
    return Progress(best_loss=float(log_loss(validation.label_ids, softmax(logits))))


def _restored(trainer: Trainer, folder: Path) -> Progress | None:
    checkpoint = read_checkpoint(folder)
    if checkpoint is None:
        return None
    trainer.restore(checkpoint.arrays)
    best_epoch, best_loss = checkpoint.state["best"]
    return Progress(checkpoint.state["curve"], best_epoch, best_loss)


def _ended(progress: Progress, params: FineTuneParams) -> bool:
    epochs = len(progress.curve)
    return epochs >= params.epochs or epochs - progress.best_epoch >= params.patience


def _note(trainer: Trainer, progress: Progress, loss: float, validation: Examples) -> None:
    """Judge the epoch just run, and remember its weights if it is the best so far."""
    probabilities = softmax(trainer.logits(validation))
    found = {
        "loss": loss,
        "log_loss": float(log_loss(validation.label_ids, probabilities)),
        "accuracy": float(accuracy(validation.label_ids, probabilities)),
    }
    if not np.isfinite(loss):
        raise TrainingError(
            f"the loss must stay a number, but got {loss} in epoch {len(progress.curve) + 1}: "
            "lower train.fine_tune.learning_rate"
        )
    progress.curve.append(found)
    if found["log_loss"] < progress.best_loss:
        progress.best_epoch, progress.best_loss = len(progress.curve), found["log_loss"]
        trainer.remember()
