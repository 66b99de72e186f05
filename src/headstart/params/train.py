"""The train section: how the winner is made into a model."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from headstart.params.base import Flag, Section


class FineTuneParams(Section):
    """Training the encoder's last layers from pixels, with the frozen model as the start."""

    rarely_changed: ClassVar = frozenset(
        {"patience", "weight_decay", "zoom", "shift", "contrast", "devices"}
    )
    no_longer: ClassVar = {"warmup_fraction": "always 0.1", "label_smoothing": "always 0"}

    enabled: Flag = Field(False, description="kept only if it makes the model better")
    from_layer: str | None = Field(
        None, description="train this layer and all after it; null: the last `blocks` blocks"
    )
    blocks: int = Field(4, ge=1, description="blocks of the encoder that are trained")
    epochs: int = Field(12, ge=1, description="most epochs")
    patience: int = Field(6, ge=1, description="epochs without a better log loss before stopping")
    batch_size: int = Field(32, ge=2, description="images per gradient step")
    learning_rate: float = Field(1.0e-4, gt=0, le=1, description="its highest, after the warm-up")
    weight_decay: float = Field(1.0e-4, ge=0, lt=1, description="decoupled; not of biases")
    flip: Flag = Field(True, description="mirror training images at random")
    rotation_degrees: float = Field(10.0, ge=0, le=180, description="largest random rotation")
    zoom: float = Field(0.1, ge=0, lt=1, description="largest fraction in or out")
    shift: float = Field(0.05, ge=0, lt=1, description="largest fraction of the side")
    contrast: float = Field(0.1, ge=0, lt=1, description="largest fraction more or less")
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = Field(
        "float32", description="Keras's dtype policy in training"
    )
    devices: Literal["one", "all"] = Field("one", description="all: every GPU of the machine")


class TrainParams(Section):
    """How the best head becomes models/model.h5. What is null is as the search found it."""

    rarely_changed: ClassVar = frozenset({"combine", "folds"})
    no_longer: ClassVar = {"batch_size": "the head's", "class_weights": "the head's"}

    splits: Literal["auto", "train", "train+validation"] = Field(
        "auto", description="auto: both where cross-validation chose the head, unless fine-tuned"
    )
    seeds: int = Field(3, ge=1, le=32, description="heads that are trained, one per seed")
    combine: Literal["trials", "ensemble", "best"] = Field(
        "trials",
        description="trials: the search's ensemble where it beats the best head, else as ensemble: "
        "of the seeds; best: the best seed",
    )
    patience: int = Field(8, ge=1, description="epochs without a better metric before stopping")
    folds: int = Field(5, ge=2, le=20, description="on train+validation, where a split chose")
    learning_rate: float | None = Field(None, gt=0, description="instead of the head's")
    weight_decay: float | None = Field(None, ge=0, description="instead of the head's")
    epochs: int | None = Field(None, ge=1, description="instead of the head's")
    fine_tune: FineTuneParams = Field(default_factory=FineTuneParams)

    def trains_on_all(self, *, cross_validated: bool) -> bool:
        """Whether the head is trained on train and validation together."""
        if self.splits != "auto":
            return self.splits == "train+validation"
        return cross_validated and not self.fine_tune.enabled and self.combine != "best"

    @model_validator(mode="after")
    def _has_images_to_choose_by(self) -> Self:
        if self.splits == "train+validation" and self.fine_tune.enabled:
            raise ValueError(
                "fine-tuning needs validation images to stop and to decide by, but splits: "
                "train+validation leaves none: set splits: train or fine_tune.enabled: false"
            )
        if self.splits == "train+validation" and self.combine == "best" and self.seeds > 1:
            raise ValueError(
                "combine: best needs validation images to choose by, but splits: train+validation "
                "leaves none: set combine: ensemble or splits: train"
            )
        return self
