"""reports/model_card.md: what a model is, what it was made of, and how far to trust it.

One screen of Markdown, from what evaluate has anyway. The same inputs give the same text: no run,
time or library version.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headstart.common.files import sha256_of_json
from headstart.common.secrets import without_secrets
from headstart.common.terminal import printable
from headstart.dataset.manifest import FLAGS
from headstart.encoders.catalogue import ENCODERS
from headstart.encoders.weights import RANDOM_IDENTITY
from headstart.evaluation.error_analysis import likely_label_errors, sliced
from headstart.evaluation.evaluate_model import score_intervals
from headstart.heads.config import list_layers
from headstart.heads.metrics import scores
from headstart.params.split import Split
from headstart.reports.evaluation_report import Subject

_MOST_CLASSES = 12
_MOST_SLICES = 8
_FEW_IMAGES = 30
_MOST_RESAMPLES = 1000
_SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def model_card(subject: Subject, source: str) -> str:
    """Return the card, Markdown.

    Args:
        source: of the images, as `data.source` has it.
    """
    classes = subject.loaded.classes
    named = ", ".join(map(_cell, classes[:_MOST_CLASSES])) + _more(len(classes))
    parts = [
        "# Model card",
        f"A classifier of images into {len(classes)} classes: {named}.",
        "## Data",
        *_data(subject, source),
        "## Model",
        _table(("", ""), _model(subject)),
        "## Accuracy",
        *_accuracy(subject),
        "## Known issues",
        _table(("found", "images"), _issues(subject)),
        "## Use and limits",
        _limits(subject),
        "## Load and serve",
        '```python\nimport headstart\n\nmodel = headstart.load_model("models/model.h5")\n'
        'model.predict(["photo.jpg"])\n```',
        "```console\n$ mlflow models serve -m models/serving --env-manager local -p 5001\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _data(subject: Subject, source: str) -> list[str]:
    manifest, metadata = subject.manifest, subject.loaded.metadata
    splits, labels = np.array(manifest.splits), manifest.label_ids
    given = [split for split in _SPLITS if manifest.is_given(split)]
    how = f"{', '.join(given)} as the data came" if given else "at random within each class"
    test = sha256_of_json(sorted(subject.evaluation.test.sha256))
    trained = metadata["trained_on"]
    facts = [
        ("source", _cell(without_secrets(source))),
        ("split", f"{how}; copies and near copies are in one split"),
        (
            f"trained on {' and '.join(trained['splits'])}",
            f"{trained['n_images']:,} images, sha256 of their sorted hashes "
            f"{trained['images_sha256'][:16]}…",
        ),
        ("tested on", f"{len(subject.evaluation.test):,} images, sha256 {test[:16]}…"),
    ]
    counts = np.stack([np.bincount(labels[splits == s], minlength=len(manifest.classes))
                       for s in _SPLITS], axis=1)  # fmt: skip
    rows = [
        (_cell(name), *(f"{n:,}" for n in own))
        for name, own in zip(manifest.classes[:_MOST_CLASSES], counts.tolist(), strict=False)
    ]
    rows.append((f"all {len(manifest.classes)}", *(f"{n:,}" for n in counts.sum(axis=0).tolist())))
    return [_table(("", ""), facts), _table(("class", *_SPLITS), rows)]


def _model(subject: Subject) -> list[tuple[str, str]]:
    metadata = subject.loaded.metadata
    recipe, head = metadata["extractor"], metadata["head"]
    rows = [("encoder", f"{_encoder(each)}; input {subject.loaded.image.size} px")
            for each in ({**recipe, **own} for own in recipe.get("encoders", ({},)))]  # fmt: skip
    what = str(head["kind"]).replace("_", " ")
    if metadata.get("ensemble"):
        what = f"ensemble of {len(metadata['ensemble'])} trials, the first {what}"
    layers = "+".join(metadata["layers"])
    rows.append(("head", f"{what}, on {_cell(list_layers(layers))}"))
    tuned = metadata["fine_tuned"]
    rows.append(("fine-tuned", f"from {_cell(tuned['first_layer'])} on" if tuned else "no"))
    rows.append(("temperature", f"{metadata['temperature']:.3f}"))
    rows.append(("features", f"fingerprint {metadata['fingerprint'][:16]}…"))
    return rows


def _encoder(recipe: Mapping[str, Any]) -> str:
    """An encoder, its weights and their licence, as far as they are known."""
    encoder = ENCODERS.get(recipe["backbone"])
    identity = str(recipe["weights"])
    if identity == RANDOM_IDENTITY:
        return f"{recipe['backbone']}, random weights"
    imagenet = encoder.imagenet if encoder is not None else None
    kind, licence = "a given file of weights", "not known here"
    if encoder is not None and imagenet is not None and imagenet.identity == identity:
        kind = "ImageNet weights"
        licence = encoder.licence or "not known here: see who publishes them"
    elif recipe.get("preprocessing") == "onnx":
        kind, licence = "a given .onnx file", "as its description says"
    elif encoder is not None and encoder.published:
        licence = f"{encoder.licence}, if it is the {encoder.published}"
    return f"{recipe['backbone']}, {kind} ({identity[:12]}…; licence: {licence})"


def _accuracy(subject: Subject) -> list[str]:
    evaluation, seen = subject.evaluation, subject.validation
    groups = dict(zip(subject.manifest.sha256, subject.manifest.groups, strict=True))
    resamples = min(subject.n_bootstrap, _MOST_RESAMPLES)
    own = scores(seen.label_ids, seen.probabilities)
    intervals = score_intervals(
        seen.label_ids,
        seen.probabilities,
        [groups[sha256] for sha256 in seen.sha256],
        n_resamples=resamples,
        seed=subject.seed,
    )
    # Where heads were trained on train and validation together, they are judged out of fold.
    is_out_of_fold = "validation" in subject.loaded.metadata["trained_on"]["splits"]
    development = "out-of-fold" if is_out_of_fold else "validation"
    rows = []
    for name, found, around, n in (
        ("test", evaluation.scores, evaluation.intervals, len(evaluation.test)),
        (development, own, intervals, len(seen)),
    ):
        low, high = 100 * around["accuracy"].low, 100 * around["accuracy"].high
        rows.append(
            (
                name,
                f"{n:,}",
                f"{100 * found['accuracy']:.1f} %",
                f"{low:.1f} to {high:.1f}",
                f"{found['log_loss']:.3f}",
                f"{found['ece']:.3f}",
            )
        )
    slices = sliced(
        evaluation.test, subject.manifest, n_resamples=resamples, seed=subject.seed
    )[:_MOST_SLICES]  # fmt: skip
    rows += [
        (
            f"test, {one.kind}: {one.name}",
            f"{one.n_images:,}",
            f"{100 * one.accuracy:.1f} %",
            f"{100 * one.interval.low:.1f} to {100 * one.interval.high:.1f}",
            f"{one.log_loss:.3f}",
            "",
        )
        for one in slices
    ]
    hardest = np.argsort(evaluation.f1, kind="stable")[:3]
    classes = evaluation.test.classes
    worst = ", ".join(f"{_cell(classes[i])} {100 * evaluation.recall[i]:.0f} %" for i in hardest)
    text = [f"Recall of the hardest classes: {worst}."]
    if optimism := float(subject.loaded.metadata.get("optimism") or 0.0):
        text.append(
            f"Of the {development} accuracy {100 * optimism:.1f} points come of choosing the best "
            "of many heads."
        )
    if evaluation.novel is not None and evaluation.novel.left_out:
        novel = evaluation.novel.metrics()
        text.append(
            "Novelty tells images of a class that the model does not know with an AUROC of "
            f"{novel['novelty_auroc']:.2f} (worst class {novel['novelty_auroc_worst']:.2f})."
        )
    header = ("images", "number", "accuracy", "95 % interval", "log loss", "calibration error")
    return [_table(header, rows), " ".join(text)]


def _issues(subject: Subject) -> list[tuple[str, str]]:
    parts = (subject.validation, subject.evaluation.test)
    labels = np.concatenate([part.label_ids for part in parts])
    probabilities = np.concatenate([part.probabilities for part in parts])
    count = len(likely_label_errors(labels, probabilities))
    rows = [("label issues (reports/evaluation/index.html)", f"{count:,} of {len(labels):,}")]
    found = {flag: int(subject.manifest.table[flag].sum()) for flag in FLAGS}
    n_all = len(subject.manifest)
    return rows + [
        (flag.replace("_", " "), f"{n:,} of {n_all:,}") for flag, n in found.items() if n
    ]


def _limits(subject: Subject) -> str:
    """What it is for, and where its figures do not reach: two sentences."""
    evaluation = subject.evaluation
    instead = ", or none where a request sets `max_novelty`" if evaluation.novel is not None else ""
    use = (
        "It is meant for single images like those above, of one of its classes; an image of "
        f"anything else gets the label of one of them too{instead}."
    )
    few = [i for i, n in enumerate(evaluation.support.tolist()) if n < _FEW_IMAGES]
    names = ", ".join(_cell(evaluation.test.classes[i]) for i in few[:_MOST_CLASSES])
    uncertain = (
        f", and the figures of {names}{_more(len(few))}, with fewer than {_FEW_IMAGES} test images "
        "each, say little of a class alone"
        if few
        else ""
    )
    return f"{use} How good it is on images of other sources was not measured{uncertain}."


def _more(n: int) -> str:
    return f" and {n - _MOST_CLASSES} more" if n > _MOST_CLASSES else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", printable(text))
