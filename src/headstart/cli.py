"""The `headstart` command: what DVC, MLflow and Optuna do not do themselves.

Nothing heavy is imported before a command runs, so that `--help` answers at once. A command finds
something, and `_tell` prints it: as text, or as one JSON value with `--json`.
"""

import atexit
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headstart.common.errors import HeadstartError, of_the_disk, of_tracking_library
from headstart.common.json_output import print_json, reserve_stdout
from headstart.common.terminal import printable, say

if TYPE_CHECKING:
    from headstart.models.model_file import LoadedModel
    from headstart.models.predict import Prediction

app = typer.Typer(
    name="headstart",
    help="Transfer learning on image folders, as an experiment one can trust.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_kept = contextlib.ExitStack()
atexit.register(_kept.close)

# Panels of `headstart --help`.
_BEGIN, _USE, _LOOK = "Begin", "Use a model", "Look"
_KEEP, _REST = "Registry and history", "Search and cache"

cache_app = typer.Typer(help="The feature cache.", no_args_is_help=True)
app.add_typer(cache_app, name="cache", rich_help_panel=_REST)
encoders_app = typer.Typer(help="The encoders there are, and their weights.")
app.add_typer(encoders_app, name="encoders", rich_help_panel=_LOOK)


def _path_option(path: str, *names: str, help: str) -> Any:
    """An option whose default is a path of the project, in whichever of its folders one works."""

    def default() -> str:
        from headstart.common.paths import project

        return os.path.relpath(project().root / path)

    shown = f"the project's {path}"
    return typer.Option(*names, default_factory=default, show_default=shown, help=help)


ModelOption = Annotated[
    str,
    _path_option(
        "models/model.h5",
        "--model",
        help="a model file of this project, or models:/headstart@champion",
    ),
]
_RUN_NAMES = "a run id or how it begins, a DVC experiment, a registered version"
MaxPixelsOption = Annotated[
    int | None,
    typer.Option("--max-pixels", min=1, help="refuse larger images", show_default="100 million"),
]


def _begin_json(wanted: bool) -> bool:
    if wanted:
        reserve_stdout()
    return wanted


JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", callback=_begin_json, is_eager=True, help="print one JSON value, for programs"
    ),
]


def _tell(text: object, value: object, *, as_json: bool) -> None:
    """Print what a command found."""
    if as_json:
        print_json(value)
    else:
        say(text)


def _tell_version(wanted: bool) -> None:
    if wanted:
        import headstart

        say(f"headstart {headstart.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")] = False,
    version: Annotated[  # noqa: ARG001 (its callback is what it does)
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="show the version"),
    ] = False,
) -> None:
    """Transfer learning on image folders, as an experiment one can trust."""
    if debug:
        os.environ["HEADSTART_DEBUG"] = "1"


@app.command(rich_help_panel=_BEGIN)
def init(
    name: Annotated[Path, typer.Argument(help="a new folder")],
    source: Annotated[
        str, typer.Option(help="what data.source becomes: images in class folders, or a URL")
    ] = "",
    workflow: Annotated[
        bool, typer.Option("--workflow", help="add a GitHub workflow that runs pull requests")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Make a project of one's own: dvc.yaml, params.yaml and MLproject, in git and DVC."""
    from headstart.projects.create import init_project

    own = name / "data" / "images"
    made = init_project(name, source or str(own), workflow=workflow)
    lines = [f"Made {printable(name)}. Next:", f"  cd {shlex.quote(str(name))}"]
    if not source:
        lines.append("  cp -r ~/pictures data/images           # data/images/<class>/<image>")
        lines.append("  dvc add data/images")
    lines.append("  dvc repro")
    _tell("\n".join(lines), {"project": made.root}, as_json=json_)


@app.command(rich_help_panel=_BEGIN)
def upgrade(json_: JsonOption = False) -> None:
    """Renew headstart.lock for the installed version: what computes otherwise will run again."""
    from headstart.common.paths import project
    from headstart.projects.create import upgrade_project

    changed = upgrade_project(project())
    text = f"`dvc repro` will run {', '.join(changed)} again." if changed else "Nothing changes."
    _tell(text, {"stages": changed}, as_json=json_)


@app.command(rich_help_panel=_BEGIN)
def run(
    folder: Annotated[Path, typer.Argument(help="images, one folder per class")],
    project: Annotated[
        Path | None,
        typer.Option(help="where its project is made", show_default="FOLDER-headstart"),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Train on a folder of images: a model, its accuracy, label issues, and a page."""
    from headstart.projects.run_folder import label_issues, run_folder
    from headstart.reports.summary import summarise

    made = run_folder(folder, project)
    if json_:
        value = {"project": made.root, **summarise(made).as_json()}
        print_json({**value, "label_issues": label_issues(made)})


@app.command(rich_help_panel=_USE)
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(help="image files, folders, patterns; -: a list on standard input"),
    ],
    model: ModelOption,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="classes per image", show_default="3; in a file, all"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="write a .csv, .jsonl or .parquet file instead")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="no label below this probability")
    ] = 0.0,
    max_novelty: Annotated[
        float, typer.Option(min=0, max=1, help="no label above this novelty")
    ] = 1.0,
    max_pixels: MaxPixelsOption = None,
    json_: JsonOption = False,
) -> None:
    """Predict the class of images."""
    from headstart.images.decode import MAX_PIXELS
    from headstart.models.predict import find_images, named_paths, predict_files

    if output is not None:
        from headstart.models.answer_file import check_suffix

        check_suffix(output)
    readable, failed = _readable(list(named_paths(images, sys.stdin.buffer)))
    loaded = _load(model)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    options = {"top_k": top or 0, "threshold": threshold, "max_novelty": max_novelty}
    if output is not None:
        found = list(find_images(readable))
        predictions = predict_files(loaded, found, max_pixels=limit)
        n_failed = _write_predictions(output, predictions, loaded, len(found), options)
        if json_:
            counts = {"n_predicted": len(found) - n_failed, "n_unreadable": n_failed}
            print_json({"file": output, **counts})
        if failed or n_failed:
            raise typer.Exit(1)
        return
    if json_:
        from headstart.models.answer_file import answer_rows

        has_novelty = loaded.novelty is not None
        predictions = predict_files(loaded, find_images(readable), max_pixels=limit)
        rows = list(answer_rows(predictions, loaded.classes, has_novelty=has_novelty, **options))
        print_json(rows)
        if failed or any(row["error"] for row in rows):
            raise typer.Exit(1)
        return
    for prediction in predict_files(loaded, find_images(readable), max_pixels=limit):
        path = printable(prediction.path)
        answer = prediction.answer
        if answer.reason:
            failed = True
            say(f"{path}: {answer.reason}", error=True)
        else:
            shown = prediction.top(top or 3)
            best = ", ".join(f"{name} {value:.3f}" for name, value in shown)
            novelty = "" if answer.novelty is None else f"; novelty {answer.novelty:.2f}"
            is_none = shown[0][1] < threshold or (answer.novelty or 0.0) > max_novelty
            say(f"{path}: {'none of these classes: ' if is_none else ''}{best}{novelty}")
    if failed:
        raise typer.Exit(1)


def _write_predictions(
    output: Path,
    predictions: "Iterable[Prediction]",
    loaded: "LoadedModel",
    n_files: int,
    options: dict[str, Any],
) -> int:
    """Write them, tell of those that have no answer, and return how many these are."""
    from headstart.common.progress import progress_bar, telling
    from headstart.models.answer_file import write_answers

    reasons: list[str] = []

    def watched() -> "Iterator[Prediction]":
        with progress_bar(total=n_files, unit="images", title="predict") as bar:
            for one in predictions:
                if one.answer.reason:
                    reasons.append(f"{printable(one.path)}: {one.answer.reason}")
                yield one
                bar.update()

    started = time.monotonic()
    with telling("predict"):
        has_novelty = loaded.novelty is not None
        write_answers(output, watched(), loaded.classes, has_novelty=has_novelty, **options)
    for reason in reasons:
        say(reason, error=True)
    seconds = time.monotonic() - started
    say(
        f"{n_files - len(reasons):,} images predicted in {seconds:.1f} s, {len(reasons):,} could "
        f"not be read: {printable(output)}"
    )
    return len(reasons)


@app.command(rich_help_panel=_USE)
def evaluate(
    folder: Annotated[Path, typer.Argument(help="images in class folders, or with a labels.csv")],
    model: ModelOption,
    output: Annotated[
        Path | None, typer.Option(help="folder for metrics.json and predictions.csv")
    ] = None,
    max_pixels: MaxPixelsOption = None,
    json_: JsonOption = False,
) -> None:
    """Say how good a model is on another labelled folder: accuracy, intervals, each class."""
    from headstart.common.progress import telling
    from headstart.evaluation.evaluate_folder import evaluate_folder
    from headstart.images.decode import MAX_PIXELS

    readable, _ = _readable([folder])
    loaded = _load(model)
    with telling("evaluate"):
        found = evaluate_folder(
            loaded, readable[0], max_pixels=MAX_PIXELS if max_pixels is None else max_pixels
        )
    if output is not None:
        found.write(output)
    _tell(found.as_text(), found.as_json(), as_json=json_)
    if output is not None and not json_:
        say(f"\nmetrics.json and predictions.csv are in {printable(output)}.")


@app.command(rich_help_panel=_LOOK)
def explain(
    images: Annotated[list[Path], typer.Argument(help="image files, or folders of them")],
    model: ModelOption,
    output: Annotated[Path, _path_option("explained", help="folder for the pictures")],
    top: Annotated[int, typer.Option(min=1, help="classes shown per image")] = 5,
    max_pixels: MaxPixelsOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what in an image spoke for its class (Grad-CAM), with the most probable classes."""
    from headstart.evaluation.explain import explain_files
    from headstart.images.decode import MAX_PIXELS
    from headstart.models.predict import find_images

    readable, failed = _readable(images)
    loaded = _load(model)
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    found = explain_files(loaded, find_images(readable), output, top=top, max_pixels=limit)
    rows = []
    for explained in found:
        rows.append(explained)
        if explained.picture is None:
            failed = True
            say(f"{printable(explained.path)}: {explained.reason}", error=True)
        else:
            best = ", ".join(f"{name} {value:.3f}" for name, value in explained.top)
            say(f"{printable(explained.picture)}: {best}")
    if json_:
        print_json(rows)
    if failed:
        raise typer.Exit(1)


def _readable(paths: Sequence[Path]) -> tuple[list[Path], bool]:
    """Those that can be read, after the others have been told; and whether there are others."""
    from headstart.models.predict import why_unreadable

    if not paths:
        say("images must be named, but the list of paths is empty", error=True)
    readable = []
    for path in paths:
        if reason := why_unreadable(path):
            say(f"{printable(path)}: {reason}", error=True)
        else:
            readable.append(path)
    if not readable:
        raise typer.Exit(1)
    return readable, len(readable) < len(paths)


def _load(model: str) -> "LoadedModel":
    from headstart.common.paths import project
    from headstart.models.model_file import load_model
    from headstart.tracking.model_uri import model_file

    # What a URI names is there until the process ends: Keras reads the file when it is asked.
    return load_model(_kept.enter_context(model_file(model, project().root)))


@app.command(rich_help_panel=_USE)
def export(
    format_: Annotated[str, typer.Option("--format", help="onnx, openvino or litert")],
    model: ModelOption,
    output: Annotated[Path, _path_option("models/export/model", help="the file to write")],
    images: Annotated[Path, _path_option("data/fetched", help="real images to check on")],
    json_: JsonOption = False,
) -> None:
    """Export a model to another runtime, checked against the .h5 on real images."""
    from headstart.common.paths import project
    from headstart.common.progress import begin_step, telling
    from headstart.models.export import export_model
    from headstart.models.model_file import load_model
    from headstart.models.predict import find_images
    from headstart.tracking.model_uri import model_file

    readable, _ = _readable([images])
    with telling("export"), model_file(model, project().root) as path:
        begin_step("converting and checking the model")
        rows = export_model(load_model(path), format_, output, list(find_images(readable)))
    lines = [f"{'format':<10}{'MB':>8}{'ms an image':>14}{'largest difference':>21}  file"]
    for row in rows:
        megabytes = row.size_bytes / 1e6
        figures = f"{megabytes:>8.1f}{row.latency_ms:>14.1f}{row.largest_difference:>21.1e}"
        lines.append(f"{row.format:<10}{figures}  {printable(row.path)}")
    _tell("\n".join(lines), rows, as_json=json_)


@app.command(rich_help_panel=_LOOK)
def inspect(
    file: Annotated[Path, typer.Argument(help="an .h5 file of this project")],
    json_: JsonOption = False,
) -> None:
    """Print what a features, images or model file is and holds."""
    from headstart.features.h5_contents import inspect_h5

    found = inspect_h5(file)
    _tell(found.as_text(), found, as_json=json_)


@app.command(rich_help_panel=_USE)
def serve(
    model: Annotated[str, _path_option("models/serving", help="a pyfunc folder or a model URI")],
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
) -> None:
    """Serve the model over HTTP, with limits on what a request may be."""
    from headstart.common.paths import project
    from headstart.serving.server import run_server
    from headstart.tracking.store import tracking_uri

    run_server(model, host, port, tracking_uri(project().root))


@app.command(rich_help_panel=_LOOK)
def summary(json_: JsonOption = False) -> None:
    """What the last `dvc repro` made: accuracy, champion, reports, seconds, and what to try."""
    from headstart.common.paths import project
    from headstart.reports.summary import summarise

    found = summarise(project())
    _tell(found.as_text(), found.as_json(), as_json=json_)


@app.command(rich_help_panel=_LOOK)
def doctor(json_: JsonOption = False) -> None:
    """Check what nothing else notices: that the tracking store has the run of the model here."""
    from headstart.common.paths import project
    from headstart.tracking.doctor import examine

    findings = examine(project())
    _tell("\n".join(map(str, findings)), findings, as_json=json_)
    if any(not finding.is_well for finding in findings):
        raise typer.Exit(1)


@app.command(rich_help_panel=_KEEP)
def promote(
    version: Annotated[str, typer.Argument(help="a registered version, or a run that has one")],
    json_: JsonOption = False,
) -> None:
    """Make a registered version the champion."""
    from headstart.common.paths import project
    from headstart.params.whole_file import load_params
    from headstart.tracking.named_runs import version_of_run
    from headstart.tracking.registry import open_registry

    here = project()
    registry = open_registry(here, load_params(here.params).register_.model_name)
    number = version_of_run(here, registry, version)
    registry.promote(number, "promoted by hand")
    value = {"model": registry.name, "champion": number}
    _tell(f"version {number} of {registry.name} is champion", value, as_json=json_)


@app.command(rich_help_panel=_KEEP)
def rollback(json_: JsonOption = False) -> None:
    """Give the champion alias back to the previous champion."""
    from headstart.common.paths import project
    from headstart.params.whole_file import load_params
    from headstart.tracking.registry import open_registry

    here = project()
    registry = open_registry(here, load_params(here.params).register_.model_name)
    before, after = registry.roll_back()
    text = f"version {after} of {registry.name} is champion again, in place of {before}"
    value = {"model": registry.name, "champion": after, "before": before}
    _tell(text, value, as_json=json_)


@app.command(rich_help_panel=_KEEP)
def sync(json_: JsonOption = False) -> None:
    """Send offline runs: what was kept while the tracking store was away."""
    from headstart.common.paths import project
    from headstart.tracking.offline_runs import sync_runs

    synced = sync_runs(project())
    lines = [f"run {run.run_id}: {run.n_operations} operations sent" for run in synced]
    _tell("\n".join(lines) or "there is no offline run to send", synced, as_json=json_)


@app.command(rich_help_panel=_KEEP)
def reproduce(
    run: Annotated[str, typer.Argument(help=f"the run of a trained model: {_RUN_NAMES}")],
    output: Annotated[
        Path | None, typer.Option(help="write the verdict here as JSON, and as .txt beside it")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make a past run again from its commit, and say whether it comes out the same."""
    from headstart.common import files
    from headstart.common.paths import project
    from headstart.tracking.reproduce_run import reproduce_run

    verdict = reproduce_run(project(), run)
    if output is not None:
        files.write_json(output, verdict.as_json())
        files.write_text(output.with_suffix(".txt"), verdict.as_text() + "\n")
    _tell(verdict.as_text(), verdict.as_json(), as_json=json_)
    if not verdict.holds:
        raise typer.Exit(1)


@app.command(rich_help_panel=_LOOK)
def compare(
    runs: Annotated[list[str], typer.Argument(help=f"the baseline, then candidates: {_RUN_NAMES}")],
    html: Annotated[Path | None, typer.Option(help="write a page with pictures here")] = None,
    json_: JsonOption = False,
) -> None:
    """What differs between runs: params, metrics, data, and single predictions."""
    from headstart.common import files
    from headstart.common.paths import project
    from headstart.tracking.compare_runs import compare_runs

    here = project()
    comparison = compare_runs(here, runs, seed=0)
    _tell(comparison.as_text(), comparison.as_json(), as_json=json_)
    if html is not None:
        from headstart.reports.compare_report import comparison_page

        files.write_text(html, comparison_page(comparison, here.fetched))


@app.command(rich_help_panel=_LOOK)
def leaderboard(
    baseline: Annotated[
        str | None,
        typer.Option(
            help=f"run that params are compared with: {_RUN_NAMES}", show_default="the oldest"
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="runs that are shown")] = 20,
    html: Annotated[Path | None, typer.Option(help="write a page here")] = None,
    json_: JsonOption = False,
) -> None:
    """Which run is best, by how much, what made it so, and how to adopt it."""
    from headstart.common.paths import project
    from headstart.tracking.leaderboard import rank_runs

    found = rank_runs(project(), baseline=baseline, most=most)
    _tell(found.as_text(), found.as_json(), as_json=json_)
    if html is not None:
        from headstart.common import files
        from headstart.reports.leaderboard_page import leaderboard_page

        files.write_text(html, leaderboard_page(found))


@app.command(rich_help_panel=_KEEP)
def tidy(
    keep: Annotated[int, typer.Option(min=0, help="best runs that stay")] = 5,
    yes: Annotated[bool, typer.Option("--yes", help="remove it")] = False,
    json_: JsonOption = False,
) -> None:
    """Say which runs, models and experiments are not needed any more, and remove them."""
    from headstart.common.paths import project
    from headstart.common.progress import begin_step, telling
    from headstart.common.terminal import size_text
    from headstart.tracking.tidy import plan_tidy, remove_unneeded

    with telling("tidy"):
        begin_step("looking at runs, experiments and DVC's cache")
        plan = plan_tidy(project(), keep=keep)
        removed = yes and not plan.is_empty
        if removed:
            begin_step("removing")
            remove_unneeded(plan)
    size = size_text(plan.n_bytes)
    after = f"\nNothing is removed yet: `--yes` removes it and frees {size}."
    if plan.is_empty:
        after = "There is nothing to remove."
    elif removed:
        after = f"\nRemoved; {size} are free."
    _tell(f"{plan.as_text()}\n{after}", plan.as_json() | {"removed": removed}, as_json=json_)


@app.command(
    hidden=True, context_settings={"ignore_unknown_options": True, "help_option_names": []}
)
def mlproject(
    entry_point: Annotated[str, typer.Argument()],
    options: Annotated[list[str] | None, typer.Argument(help="--section.field value, …")] = None,
) -> None:
    """Run an entry point of MLproject (called by `mlflow run`)."""
    from headstart.mlproject import assignments_of, run_entry_point

    run_entry_point(entry_point, assignments_of(options or []))


@encoders_app.callback(invoke_without_command=True)
def encoders(context: typer.Context, json_: JsonOption = False) -> None:
    """List the encoders: input size, features, cost, and where their weights come from."""
    if context.invoked_subcommand is None:
        from headstart.encoders.encoder_commands import listed_encoders, listing

        _tell(listing(), listed_encoders(), as_json=json_)


@encoders_app.command("show")
def encoders_show(
    name: Annotated[str, typer.Argument(help="an encoder")], json_: JsonOption = False
) -> None:
    """Show one encoder: its feature blocks, cost, weights and their licence."""
    from headstart.encoders.encoder_commands import details, listed_encoder

    _tell(details(name), listed_encoder(name), as_json=json_)


@encoders_app.command("fetch")
def encoders_fetch(
    name: Annotated[str, typer.Argument(help="an encoder")],
    file: Annotated[
        Path | None, typer.Argument(help="a weights file, to see whether it is of that encoder")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Fetch an encoder's weights now, checked, for work without a network."""
    from headstart.encoders.encoder_commands import fetch_weights

    found = fetch_weights(name, file)
    _tell(found.as_text(), found, as_json=json_)


@encoders_app.command("describe")
def encoders_describe(
    file: Annotated[Path, typer.Argument(help="an encoder of your own, an .onnx file")],
    json_: JsonOption = False,
) -> None:
    """Write a first description of an .onnx encoder beside it, to be looked through."""
    from headstart.encoders.encoder_commands import describe_onnx

    path, told = describe_onnx(file)
    _tell(told, {"description": str(path)}, as_json=json_)


@app.command(rich_help_panel=_REST)
def search(
    join: Annotated[bool, typer.Option("--join", help="be one more worker")] = False,
    json_: JsonOption = False,
) -> None:
    """Add a worker to the study that `dvc repro search` is running."""
    from headstart.common.errors import SearchError
    from headstart.common.paths import project, state_folder
    from headstart.features.feature_store import FeatureStore
    from headstart.params.whole_file import load_params
    from headstart.search.search_heads import join_study

    if not join:
        raise SearchError("a search is a stage, so that DVC knows it: run `dvc repro search`")
    here = project()
    params = load_params(here.params)
    folder = state_folder(here.root) / "studies"
    with FeatureStore(here.features) as store:
        result = join_study(store, params.search, seed=params.seed, storage_folder=folder)
    n_trials = len(result.trials)
    text = f"{result.study_name}: {n_trials} trials have ended"
    _tell(text, {"study": result.study_name, "n_trials": n_trials}, as_json=json_)


@cache_app.command("ls")
def cache_ls(json_: JsonOption = False) -> None:
    """Show what is cached, by fingerprint, and what each is."""
    from headstart.common.paths import cache_folder
    from headstart.features.cache_commands import entries, entries_text

    root = cache_folder()
    found = entries(root)
    value = {"cache": root, "entries": [entry.as_json() for entry in found]}
    _tell(entries_text(root, found), value, as_json=json_)


@cache_app.command("verify")
def cache_verify(json_: JsonOption = False) -> None:
    """Check the checksum of every shard; damaged ones are set aside."""
    from headstart.common.paths import cache_folder
    from headstart.features.cache_commands import verify

    found = verify(cache_folder())
    _tell(found.as_text(), found, as_json=json_)


@cache_app.command("gc")
def cache_gc(
    older_than_days: Annotated[
        float | None, typer.Option(min=0, help="free what was not used for so long")
    ] = None,
    max_gb: Annotated[float | None, typer.Option(min=0, help="free down to this size")] = None,
    dry_run: Annotated[bool, typer.Option(help="only say what would go")] = False,
    json_: JsonOption = False,
) -> None:
    """Free space by age or size."""
    from headstart.common.paths import cache_folder
    from headstart.features.cache_commands import collect

    done = collect(
        cache_folder(),
        older_than_days=older_than_days,
        max_bytes=None if max_gb is None else int(max_gb * 1e9),
        dry_run=dry_run,
    )
    _tell(done.as_text(), done.as_json(), as_json=json_)


def main() -> None:
    """Run the command line; what the user can fix is printed without a traceback."""
    from headstart.common.interrupts import STATUS, end_plainly_when_interrupted, tell_interrupted
    from headstart.common.quiet import quiet_libraries

    end_plainly_when_interrupted()
    quiet_libraries()
    try:
        app()
    except SystemExit as end:
        # Typer makes this of an interrupt, without a word.
        if end.code == STATUS:
            tell_interrupted()
        raise
    except Exception as error:
        told = error if isinstance(error, HeadstartError) else None
        told = told or of_the_disk(error) or of_tracking_library(error)
        if told is None or os.environ.get("HEADSTART_DEBUG") == "1":
            raise
        say(f"headstart: {told}", error=True)
        raise SystemExit(1) from None
