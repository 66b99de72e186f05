"""How good a model is on a labelled folder that is not part of a project: `headstart evaluate`."""

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.common import files
from headstart.common.errors import DataError
from headstart.common.progress import progress_bar
from headstart.common.terminal import printable, table
from headstart.evaluation.bootstrap import Interval
from headstart.evaluation.evaluate_model import score_intervals
from headstart.heads.metrics import scores
from headstart.images.decode import MAX_PIXELS, decode_input
from headstart.models.model_file import LoadedModel
from headstart.models.predictions import Predictions, write_predictions
from headstart.sources.folders import readable_name
from headstart.sources.layout import outer_folder, scan

# Of images like the training images, 5 % are above.
_NOVEL = 0.95
_MOST_SHOWN = 10


@dataclass(frozen=True)
class ClassFigures:
    """One class: how many images, and the class that most of its errors are taken for."""

    label: str
    n: int
    recall: float
    precision: float | None
    confused_with: str | None
    n_confused: int


@dataclass(frozen=True)
class FolderEvaluation:
    """What a labelled folder says of a model.

    Attributes:
        test: images of classes that the model knows.
        unknown: label → novelty of each image of a class that it does not know, float64.
        unreadable: path → why it could not be decoded.
        notes: sentences about what was read.
    """

    test: Predictions
    scores: dict[str, float]
    intervals: dict[str, Interval]
    unknown: dict[str, NDArray[np.float64]]
    unreadable: dict[str, str]
    notes: tuple[str, ...] = ()

    def metrics(self) -> dict[str, float]:
        """For metrics.json: each score with its 95 % interval."""
        found: dict[str, float] = {"n": len(self.test)}
        for name, value in self.scores.items():
            interval = self.intervals[name]
            found |= {name: value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return found

    def by_class(self) -> list[ClassFigures]:
        """Return the figures of each class with images here, the lowest recall first."""
        test, found = self.test, []
        for label_id in np.unique(test.label_ids):
            own, said = test.label_ids == label_id, test.predicted_ids == label_id
            right = int((own & said).sum())
            wrong = Counter(test.predicted_ids[own & ~said].tolist()).most_common(1)
            found.append(
                ClassFigures(
                    label=test.classes[label_id],
                    n=int(own.sum()),
                    recall=right / int(own.sum()),
                    precision=right / int(said.sum()) if said.any() else None,
                    confused_with=test.classes[wrong[0][0]] if wrong else None,
                    n_confused=wrong[0][1] if wrong else 0,
                )
            )
        return sorted(found, key=lambda figures: figures.recall)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "metrics": self.metrics(),
            "classes": [asdict(figures) for figures in self.by_class()],
            "unknown_classes": {label: len(novelty) for label, novelty in self.unknown.items()},
            "unreadable": self.unreadable,
            "notes": self.notes,
        }

    def as_text(self) -> str:
        """For a terminal."""
        accuracy, interval = self.scores["accuracy"], self.intervals["accuracy"]
        lines = [
            f"Accuracy   {100 * accuracy:.1f} % (95 % interval {100 * interval.low:.1f} to "
            f"{100 * interval.high:.1f}) on {len(self.test):,} images",
            f"Log loss   {self.scores['log_loss']:.3f}, calibration error {self.scores['ece']:.3f}",
            "",
        ]
        rows = []
        for one in self.by_class():
            taken = f"{printable(one.confused_with)} ({one.n_confused})" if one.n_confused else ""
            precision = (
                "none predicted" if one.precision is None else f"{100 * one.precision:.1f} %"
            )
            rows.append(
                [printable(one.label), f"{one.n:,}", f"{100 * one.recall:.1f} %", precision, taken]
            )
        lines += table(["class", "images", "recall", "precision", "most confused with"], rows)
        for label, novelty in self.unknown.items():
            caught = f": {100 * (novelty > _NOVEL).mean():.0f} % have a novelty above {_NOVEL}"
            known = "" if np.isnan(novelty).any() else caught
            lines.append(f"Not a class of the model: {printable(label)} ({len(novelty):,}){known}")
        lines += [printable(note) for note in self.notes]
        shown = list(self.unreadable.items())[:_MOST_SHOWN]
        lines += [f"{printable(path)}: {reason}" for path, reason in shown]
        if len(self.unreadable) > len(shown):
            lines.append(f"and {len(self.unreadable) - len(shown):,} more that cannot be read")
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write metrics.json and predictions.csv."""
        files.write_json(folder / "metrics.json", self.metrics())
        write_predictions(folder / "predictions.csv", [self.test])


def evaluate_folder(
    loaded: LoadedModel, folder: Path, *, n_bootstrap: int = 2000, max_pixels: int = MAX_PIXELS
) -> FolderEvaluation:
    """Evaluate a model on a folder in any layout that ingest reads, with the same class names.

    Where there is a test split, that alone. Copies of one file are drawn together for intervals.

    Raises:
        DataError: the folder has no classes, none that the model knows, or no image.
    """
    if not folder.is_dir():
        raise DataError(
            f"a model is evaluated on a folder of images, but {folder} is none: unpack or name one"
        )
    folder = folder / outer_folder(folder)
    layout = scan(folder, least_classes=1)
    entries = layout.entries
    of_test = [entry for entry in entries if entry.split == "test"]
    entries = of_test or entries
    notes = list(layout.notes)
    if of_test and len(of_test) < len(layout.entries):
        notes.append(f"Of {len(layout.entries):,} images the {len(of_test):,} of the test split.")
    if layout.without_class or layout.left_out:
        n_without = len(layout.without_class) + len(layout.left_out)
        notes.append(f"{n_without:,} images without a class were left out.")
    known = {name: number for number, name in enumerate(loaded.classes)}
    labels = {entry.label for entry in entries}
    if not labels & known.keys():
        raise DataError(
            f"{folder} must have classes that the model knows, {_shown(loaded.classes)}, but has "
            f"{_shown(sorted(labels))}: name its folders as the model's classes"
        )
    hashes: dict[str, str] = {}

    def read(path: str) -> NDArray[np.uint8]:
        data = (folder / path).read_bytes()
        hashes[path] = hashlib.sha256(data).hexdigest()
        return decode_input(data, loaded.image, max_pixels=max_pixels)

    unknown: dict[str, list[float]] = {}
    unreadable: dict[str, str] = {}
    kept: list[str] = []
    label_ids: list[int] = []
    rows: list[NDArray[np.float64]] = []
    novelty: list[float] = []
    answers = loaded.inference.answers((entry.path for entry in entries), read)
    with progress_bar(total=len(entries), unit="images", title="evaluate") as bar:
        for entry, answer in zip(entries, answers, strict=True):
            bar.update()
            value = np.nan if answer.novelty is None else answer.novelty
            if answer.probabilities is None:
                unreadable[entry.path] = answer.reason
            elif entry.label not in known:
                unknown.setdefault(entry.label, []).append(value)
            else:
                kept.append(entry.path)
                label_ids.append(known[entry.label])
                rows.append(answer.probabilities.astype(np.float64))
                novelty.append(value)
    if not kept:
        path, reason = next(iter(unreadable.items()), (str(folder), "there is none"))
        raise DataError(f"evaluation needs images of known classes, but got none: {path}: {reason}")
    test = Predictions(
        classes=loaded.classes,
        split="test",
        paths=tuple(readable_name(path) for path in kept),
        sha256=tuple(hashes[path] for path in kept),
        label_ids=np.array(label_ids, np.int64),
        probabilities=np.stack(rows),
        novelty=None if np.isnan(novelty).any() else np.array(novelty),
    )
    return FolderEvaluation(
        test=test,
        scores=scores(test.label_ids, test.probabilities),
        intervals=score_intervals(
            test.label_ids, test.probabilities, test.sha256, n_resamples=n_bootstrap, seed=0
        ),
        unknown={label: np.array(values) for label, values in sorted(unknown.items())},
        unreadable=unreadable,
        notes=tuple(notes),
    )


def _shown(names: "list[str] | tuple[str, ...]") -> str:
    shown = ", ".join(map(printable, names[:_MOST_SHOWN]))
    return f"{shown} and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else shown
