"""Headstart from Python: a folder of images in, a model and its figures out.

import headstart

fitted = headstart.fit("photos")                    # as `headstart run photos`
fitted.evaluate()["accuracy"]
model = headstart.load_model("photos-headstart/models/model.h5")
model.predict(["cat.jpg", open("dog.jpg", "rb").read(), pixels])
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from headstart.common import files
from headstart.common.errors import DataError
from headstart.common.paths import Project, project
from headstart.images.input_pixels import Picture, picture_pixels
from headstart.models.answers import answers_table
from headstart.models.model_file import LoadedModel, load_model
from headstart.projects.run_folder import run_project
from headstart.tracking.model_uri import model_file


@dataclass(frozen=True)
class Classifier:
    """A trained model.

    Attributes:
        loaded: what its file says of it, and the Keras model, `loaded.model`.
    """

    loaded: LoadedModel
    # Holds the file of a model that an MLflow URI names.
    _kept: contextlib.ExitStack = field(default_factory=contextlib.ExitStack, repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.loaded.classes

    def predict(
        self,
        images: Sequence[Picture],
        *,
        top_k: int = 0,
        threshold: float = 0.0,
        max_novelty: float = 1.0,
        on_error: Literal["refuse", "row"] = "refuse",
    ) -> pd.DataFrame:
        """Return one row an image, with the columns that the server answers with.

        Args:
            images: paths, bytes of image files, or RGB pixels, uint8 (height, width, 3).
            top_k: the best classes in place of a column for each; 0: all.
            threshold, max_novelty: an image whose best probability is below, or whose novelty is
                above, has no label.
            on_error: `row` answers an image that cannot be read with the reason, in a column
                `error`.

        Raises:
            DataError: an image cannot be read, and `on_error` is `refuse`; it names which.
        """
        answers = []
        image = self.loaded.image
        found = self.loaded.inference.answers(images, lambda one: picture_pixels(one, image))
        for row, answer in enumerate(found):
            if answer.reason and on_error == "refuse":
                raise DataError(f"image {row}: {answer.reason}")
            answers.append(answer)
        return answers_table(
            answers,
            self.classes,
            has_novelty=self.loaded.novelty is not None,
            top_k=top_k,
            threshold=threshold,
            max_novelty=max_novelty,
            with_reasons=on_error == "row",
        )


@dataclass(frozen=True)
class FittedProject:
    """A project whose pipeline has run: in `project.root` is all of it."""

    project: Project

    @property
    def model(self) -> Classifier:
        return Classifier(load_model(self.project.model))

    def evaluate(self) -> dict[str, Any]:
        """Return the metrics of the test split, as reports/metrics.json has them."""
        metrics: dict[str, Any] = files.read_json(self.project.metrics)
        return metrics

    def predict(self, images: Sequence[Picture], **options: Any) -> pd.DataFrame:
        """Return the answers of the model; see `Classifier.predict`."""
        return self.model.predict(images, **options)


def fit(folder: str | PathLike[str], project: str | PathLike[str] | None = None) -> FittedProject:
    """Train on a folder of images, one folder per class, as `headstart run` does.

    Args:
        project: where its project is made or resumed; by default FOLDER-headstart.

    Raises:
        HeadstartError: see `headstart.projects.run_folder.run_project`.
    """
    return FittedProject(run_project(Path(folder), None if project is None else Path(project)))


def load_classifier(model: str | PathLike[str] = "models/model.h5") -> Classifier:
    """Load a model file, or what an MLflow URI such as `models:/headstart@champion` names."""
    kept = contextlib.ExitStack()
    return Classifier(load_model(kept.enter_context(model_file(str(model), project().root))), kept)
