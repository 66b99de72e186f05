"""Every page in a real browser, at a desk's width and a phone's, with few and with many classes."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart import files
from headstart.features.store import FeatureStore
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead
from headstart.heads.search import StudyResult, TrialResult
from headstart.images.manifest import read_manifest
from headstart.models.assemble import assemble
from headstart.models.comparison import compare_models
from headstart.models.evaluation import evaluate_model
from headstart.models.model_file import LoadedModel, load_backbone
from headstart.models.predictions import as_predictions
from headstart.params import SearchParams
from headstart.params.images import IngestParams
from headstart.paths import Project
from headstart.reports.compare_report import comparison_page
from headstart.reports.evaluation_report import Subject, write_report
from headstart.reports.search_report import write_report as write_search_report
from headstart.stages import ingest
from headstart.tracking.compare import ChangedPrediction, DataChange, Pair, RunComparison
from tests.models.conftest import IMAGE, make_workspace

NAMES = (
    "cat", "Ilex aquifolium, the common holly of European gardens, variegated", "大熊猫",
    "Обыкновенная лисица", "folder_name_without_any_space_that_goes_on_and_on_0123456789_and_on",
    "ثعلب أحمر", "दिल्ली का लाल किला", '<b>bold</b> & "quoted"',
)  # fmt: skip


def class_names(n: int) -> tuple[str, ...]:
    """Names such as folders have: short, long, without spaces, of other alphabets."""
    numbered = (f"{NAMES[i % len(NAMES)]}{f' {i}' if i >= len(NAMES) else ''}" for i in range(n))
    return tuple(sorted(numbered))


def write_evaluation(project: Project) -> Path:
    """The evaluation page of a ridge head on the features of the small backbone."""
    manifest = read_manifest(project.manifest)
    with FeatureStore(project.features) as store:
        train = store.split("train")
        x = np.column_stack([train.features[:, 0], np.ones(len(train))])
        y = np.eye(len(store.classes))[train.label_ids] * 12
        weights = np.linalg.solve(x.T @ x + 0.01 * np.eye(x.shape[1]), x.T @ y).astype(np.float32)
        head = FittedHead(
            config=HeadConfig(hidden_layers=0, normalisation="none"),
            n_classes=len(store.classes),
            layers=(DenseWeights(weights[:-1], weights[-1]),),
            mean=None,
            variance=None,
        )
        metadata = {
            "classes": list(store.classes),
            "image": IMAGE.model_dump(),
            "fingerprint": store.fingerprint,
            "extractor": {"backbone": "small"},
            "temperature": 1.0,
            "fine_tuned": None,
            "trained_on": {"n_images": len(train), "splits": ["train"]},
        }
        loaded = LoadedModel(assemble(load_backbone(project.backbone), [head], 1.0), metadata)
        evaluation = evaluate_model(store, loaded, project.fetched, n_bootstrap=50, seed=0)
        held_out = store.split("validation")
        n_classes = len(store.classes)
        guesses = np.full((len(held_out), n_classes), 0.1 / n_classes)
        guesses[np.arange(len(held_out)), held_out.label_ids] += 0.9
        subject = Subject(
            evaluation=evaluation,
            validation=as_predictions(held_out, "validation", store.classes, guesses),
            loaded=loaded,
            store=store,
            manifest=manifest,
            fetched=project.fetched,
            summary={},
            n_bootstrap=50,
            seed=0,
        )
        write_report(project.evaluation_report, subject)
    return project.evaluation_report / "index.html"


def write_data_card(project: Project) -> Path:
    """The data card of the same images, with some that are left out."""
    for number in range(3):
        (project.fetched / class_names(3)[0] / f"broken {number}.jpg").write_bytes(b"\xff\xd8\xff")
    params = IngestParams(max_rejected_fraction=0.5)
    ingested = ingest.ingest(project.fetched, params, seed=0)
    ingest.write_data_card(project.data_report, ingest.DataCard(ingested, [], project.fetched))
    return project.data_report / "index.html"


def write_comparison(project: Project, classes: tuple[str, ...]) -> Path:
    """The comparison of four runs."""
    right = np.tile([0.9, 0.1], (30, 1))
    test = compare_models(right[:, ::-1], right, np.zeros(30, np.int64), seed=0)
    manifest = read_manifest(project.manifest)
    changed = [
        ChangedPrediction(path, sha256, label, "test", classes[i % len(classes)], label)
        for i, (path, sha256, label) in enumerate(
            zip(manifest.paths, manifest.sha256, manifest.table["label"], strict=True)
        )
    ][:20]
    ids = [letter * 32 for letter in "abcd"]
    comparison = RunComparison(
        run_ids=ids,
        names=[f"own images, network of 256 units, learning rate 0.00{i}" for i in range(4)],
        params={f"params.section.value_{i}": ["x" * 90, "1", "", "2"] for i in range(9)},
        versions={"git.commit": ["0123456789" * 4] * 4},
        metrics={"test_accuracy": [0.5, 0.75, None, 0.25]},
        pairs=[Pair(run_id, test, DataChange(["new.png"], [], [], []), changed) for run_id in ids],
    )
    path = project.root / "compare.html"
    files.write_text(path, comparison_page(comparison, project.fetched))
    return path


def write_search(folder: Path) -> Path:
    """The page of a search over every field, a failed trial among them."""
    chance = np.random.default_rng(0)
    trials = []
    for number in range(40):
        config = HeadConfig(
            kind="network" if number % 4 else "linear_probe",
            learning_rate=float(10 ** chance.uniform(-4, -1)),
            weight_decay=float(10 ** chance.uniform(-5, -1)),
            width=int(chance.choice([64, 128, 256])),
            hidden_layers=int(chance.choice([0, 1])),
            dropout=float(chance.choice([0.0, 0.3])),
            input_dropout=float(chance.choice([0.0, 0.3])),
            activation=("relu", "gelu")[number % 2],
            normalisation=("none", "standardise", "layer_norm")[number % 3],
            l2=float(10 ** chance.uniform(-4, 0)),
        )
        curve = np.linspace(0.5, 0.9, 20) - 0.1 * abs(np.log10(config.learning_rate) + 3)
        curve = np.clip(curve + chance.normal(0, 0.01, 20), 0, 1)
        failed = number == 39
        trials.append(
            TrialResult(
                number=number,
                state="FAIL" if failed else "COMPLETE",
                config=config,
                value=None if failed else float(curve.max()),
                value_std=0.0,
                best_epoch=int(curve.argmax()) + 1,
                first_epoch=0,
                curve={"accuracy": curve.tolist(), "log_loss": (1 - curve).tolist()},
                reason="it diverged: " + "loss " * 40 if failed else "",
                reused_from="",
            )
        )
    result = StudyResult("heads-1", "x", "accuracy", "maximize", 64, {}, tuple(trials))
    write_search_report(folder, result, SearchParams())
    return folder / "index.html"


def write_pages(root: Path, n_classes: int) -> dict[str, Path]:
    """Every page there is, of so many classes."""
    classes = class_names(n_classes)
    project = make_workspace(root, classes, n_per_class=24 if n_classes < 30 else 12)
    return {
        "evaluation": write_evaluation(project),
        "data": write_data_card(project),
        "compare": write_comparison(project, classes),
    }
