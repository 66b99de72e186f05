"""Every page in a real browser, at a desk's width and a phone's, with few and with many classes."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from headstart.common import files
from headstart.common.paths import Project
from headstart.dataset.manifest import read_manifest
from headstart.evaluation.comparison import compare_models
from headstart.evaluation.evaluate_model import evaluate_model
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import HeadConfig
from headstart.heads.fitted import DenseWeights, FittedHead
from headstart.models.assemble import assemble
from headstart.models.model_file import load_encoder
from headstart.models.predictions import as_predictions
from headstart.params.image import ImageParams
from headstart.params.ingest import IngestParams
from headstart.params.search import SearchParams
from headstart.reports.charts import Axis, Chart, Series, shortened
from headstart.reports.compare_report import comparison_page
from headstart.reports.evaluation_report import Subject, write_evaluation_report
from headstart.reports.search_report import write_search_report
from headstart.search.results import StudyResult, TrialResult
from headstart.search.selection import Corrected
from headstart.stages import ingest
from headstart.tracking.compare_runs import ChangedPrediction, DataChange, RunComparison, RunPair
from tests.models.conftest import IMAGE, make_workspace, saved

NAMES = (
    "cat", "Ilex aquifolium, the common holly of European gardens, variegated", "大熊猫",
    "Обыкновенная лисица", "folder_name_without_any_space_that_goes_on_and_on_0123456789_and_on",
    "ثعلب أحمر", "दिल्ली का लाल किला", '<b>bold & "quoted"',
)  # fmt: skip


def class_names(n: int) -> tuple[str, ...]:
    """Names such as folders have: short, long, without spaces, of other alphabets."""
    numbered = (f"{NAMES[i % len(NAMES)]}{f' {i}' if i >= len(NAMES) else ''}" for i in range(n))
    return tuple(sorted(numbered))


def write_evaluation(project: Project) -> Path:
    """The evaluation page of a ridge head on the features of the small encoder."""
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
        model = assemble(load_encoder(project.encoder), [head], 1.0)
        loaded = saved(project.model, model, metadata)
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
        write_evaluation_report(project.evaluation_report, subject)
    return project.evaluation_report / "index.html"


def write_data_card(project: Project) -> Path:
    """The data card of the same images, with some that are left out."""
    for number in range(3):
        (project.fetched / class_names(3)[0] / f"broken {number}.jpg").write_bytes(b"\xff\xd8\xff")
    params = IngestParams(max_rejected_fraction=0.5)
    ingest.run(project, ingest.Sections(seed=0, image=ImageParams(), ingest=params))
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
        pairs=[
            RunPair(run_id, test, DataChange(["new.png"], [], [], []), changed)
            for run_id in ids[1:]
        ],
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
            kind="network" if number % 4 else "logistic_regression",
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
                curve={"accuracy": curve.tolist(), "log_loss": (1 - curve).tolist()},
                reason="it diverged: " + "loss " * 40 if failed else "",
                reused_from="",
            )
        )
    result = StudyResult(
        "heads-1", "x", "accuracy", "maximize", 64, {"folds": 5}, tuple(trials), Corrected(0.9, 0.0)
    )
    write_search_report(folder, result, SearchParams())
    return folder / "index.html"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every page there is, of 17 and of 60 classes."""
    found = {"search": write_search(tmp_path_factory.mktemp("search"))}
    for n_classes, n_per_class in ((17, 24), (60, 12)):
        classes = class_names(n_classes)
        project = make_workspace(tmp_path_factory.mktemp("pages"), classes, n_per_class)
        found[f"evaluation-{n_classes}"] = write_evaluation(project)
        found[f"data-{n_classes}"] = write_data_card(project)
        found[f"compare-{n_classes}"] = write_comparison(project, classes)
    return found


NAMES_OF_PAGES = (
    "search", *(f"{kind}-{n}" for n in (17, 60) for kind in ("evaluation", "data", "compare")),
)  # fmt: skip


@contextmanager
def opened(browser: Any, path: Path, width: int) -> Iterator[Any]:
    """A page in a window of a width."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
    page.goto(path.as_uri())
    yield page
    page.close()


@pytest.mark.parametrize("width", [1400, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", NAMES_OF_PAGES)
def test_nothing_leaves_the_page_and_what_scrolls_says_so(
    pages: dict[str, Path], browser: Any, name: str, width: int
) -> None:
    with opened(browser, pages[name], width) as page:
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        outside = """[...document.querySelectorAll("main *, header *")]
            .filter(e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 200))"""
        assert page.evaluate(outside) == []
        # What is cut off without a way to reach it: wider than its box, which does not scroll.
        cut = """[...document.querySelectorAll("main *")].filter(e => !e.closest("svg")
            && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX == "hidden")
            .map(e => e.outerHTML.slice(0, 200))"""
        assert page.evaluate(cut) == []
        cues = """[...document.querySelectorAll(".scroll")].map(e => getComputedStyle(e))
            .map(s => [s.backgroundImage, s.backgroundAttachment, s.overflowX])"""
        for image, attachment, overflow in page.evaluate(cues):
            assert image.count("linear-gradient") >= 4
            assert {"local", "scroll"} <= set(attachment.split(", "))
            assert overflow == "auto"


def test_a_table_that_goes_on_has_a_shadow_at_its_edge_until_it_ends(
    pages: dict[str, Path], browser: Any
) -> None:
    with opened(browser, pages["evaluation-17"], 390) as page:
        box = page.locator(".scroll:has(table.matrix)")
        box.scroll_into_view_if_needed()
        assert box.evaluate("e => e.scrollWidth > e.clientWidth")
        before = _edge(box)
        box.evaluate("e => e.scrollLeft = e.scrollWidth")
        assert before < _edge(box) - 20, "the edge is darker while there is more beyond it"


def _edge(box: Any) -> float:
    """The brightness of the last columns of pixels of an element, 0 to 255."""
    with Image.open(io.BytesIO(box.screenshot())) as picture:
        pixels = np.asarray(picture.convert("L"))
    # Beside the sticky heads; the median passes over coloured cells.
    return float(np.median(pixels[pixels.shape[0] // 2 :, -4:-1]))


@pytest.mark.parametrize("n_classes", [17, 60])
def test_heads_of_the_confusion_matrix_stay_in_sight(
    pages: dict[str, Path], browser: Any, n_classes: int
) -> None:
    with opened(browser, pages[f"evaluation-{n_classes}"], 390) as page:
        box = page.locator(".scroll:has(table.matrix)")
        assert box.locator("tbody tr").count() == n_classes
        assert box.locator("tbody td").count() == n_classes**2
        box.evaluate("e => { e.scrollLeft = 9999; e.scrollTop = 9999 }")
        left = box.evaluate("e => e.getBoundingClientRect().left")
        head = box.locator("tbody th").last.bounding_box()
        assert left <= head["x"] < left + 5
        top = box.evaluate("e => e.getBoundingClientRect().top")
        assert top <= box.locator("thead th").last.bounding_box()["y"] < top + 5
        assert page.locator("h2", has_text="Most confused pairs").count() == 1


@pytest.mark.parametrize("n_classes", [17, 60])
def test_every_class_of_the_map_has_a_colour_and_shape_of_its_own(
    pages: dict[str, Path], browser: Any, n_classes: int
) -> None:
    looks = """[...document.querySelectorAll(".map .chart g:has(.dot)")]
        .map(g => getComputedStyle(g.querySelector(".dot")).fill + g.getAttribute("class"))"""
    shapes = """[...document.querySelectorAll(".map .chart:not(.key) g:has(.dot)")]
        .map(g => g.querySelector("polygon")?.points.length ?? 0)"""
    with opened(browser, pages[f"evaluation-{n_classes}"], 1400) as page:
        found = page.evaluate(looks)
        assert len(found) == 2 * n_classes, "each once in the map and once in its legend"
        assert len(set(found)) == n_classes
        assert len(set(page.evaluate(shapes))) > (1 if n_classes == 17 else 3)
        assert page.locator(".map .label").count() > 2


def test_any_number_of_series_can_be_told_apart() -> None:
    dot = [Series(f"{i}", np.zeros(1), np.zeros(1), line=False, dots=True) for i in range(150)]
    page = Chart(Axis("x"), Axis("y"), dot, "Many", legend=False).svg()
    groups = re.findall(r'<g (class="[^"]+"(?: style="[^"]+")?)><title>', page)
    assert len(groups) == len(set(groups)) == 150


@pytest.mark.parametrize("name", ["search", "evaluation-17", "evaluation-60"])
def test_charts_can_be_read_on_a_phone(pages: dict[str, Path], browser: Any, name: str) -> None:
    sizes = """[...document.querySelectorAll("svg.chart:not(.key)")].map(svg =>
        parseFloat(getComputedStyle(svg).fontSize) * svg.getBoundingClientRect().width
        / svg.viewBox.baseVal.width)"""
    with opened(browser, pages[name], 390) as page:
        found = page.evaluate(sizes)
        assert len(found) >= 5
        assert min(found) >= 9


def test_svg_files_are_well_formed_and_hold_every_class(pages: dict[str, Path]) -> None:
    folder = pages["evaluation-60"].parent
    charts = {path.stem: ElementTree.parse(path).getroot() for path in folder.glob("*.svg")}
    assert charts.keys() == {
        "confusion", "coverage", "per_class", "precision_recall", "reliability", "roc",
    }  # fmt: skip
    for name in ("confusion", "per_class"):
        texts = {text.strip("\u2068\u2069") for text in charts[name].itertext()}
        assert {shortened(one, 22) for one in class_names(60)} <= texts


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(6, 40))
def test_a_shortened_name_keeps_both_ends(name: str, most: int) -> None:
    short = shortened(name, most)
    if short != name:
        assert len(short) <= len(name)
        head, _, tail = short.rpartition("…")
        assert name.startswith(head)
        assert name.endswith(tail)
