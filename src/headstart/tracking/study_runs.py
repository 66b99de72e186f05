"""A finished search as MLflow runs: one parent for the study, one nested run for each trial."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from mlflow.entities import Metric, Param

from headstart.common.errors import one_line
from headstart.common.paths import Project, state_folder
from headstart.common.secrets import without_secrets
from headstart.params.search import SearchParams
from headstart.params.whole_file import load_params
from headstart.search.results import StudyResult
from headstart.tracking.lineage import gather_lineage
from headstart.tracking.runs import Run, curve_names, new_run
from headstart.tracking.store import TrackingStore, answering, open_store
from headstart.tracking.training_runs import describe_head, flatten_params, run_name

_PARENT_TAG = "mlflow.parentRunId"
# MLflow takes 1,000 entities per call, params included.
_METRICS_PER_CALL = 900


def log_search(
    project: Project,
    outcome: StudyResult | Exception,
    search: SearchParams,
    *,
    fingerprint: str,
    reports: Sequence[Path] = (),
) -> None:
    """Log a study as a parent run, and its trials nested below; what is logged already stays.

    A study that was resumed after a kill, or joined by other workers, keeps its parent run: it is
    found by the study's name, so no trial is logged twice. MLFLOW_RUN_ID is left alone: the run
    that `mlflow run` opened is that of the trained model.

    Args:
        outcome: the study, or the error that ended its search, which leaves a FAILED run: a study
            has no run before its end.

    Raises:
        TrackingError: the store went away; the study itself is kept, and a new run of the stage
            logs it without searching again.
    """
    tags = {"headstart.kind": "study", "fingerprint": fingerprint}
    lineage = gather_lineage(project, "search", tags)
    if isinstance(outcome, Exception):
        failed = new_run(project, "failed search", lineage.tags)
        with contextlib.suppress(type(outcome)), failed:
            failed.describe(f"A search that ended with an error: {one_line(outcome, 5000)}")
            raise outcome
        return
    store, study, best = open_store(project.root), outcome.study_name, outcome.best
    assert best.value is not None
    # Two experiments that search over the same end in the same study, perhaps at the same time.
    lock = FileLock(state_folder(project.root) / f"log-{study}.lock")
    with answering(store.uri), lock:
        query = f"tags.`headstart.study` = '{study}' and tags.`headstart.kind` = 'study'"
        found = store.client.search_runs([store.experiment_id], query, max_results=1)
        if found:
            run = Run(project.root, store, found[0].info.run_id)
        else:
            name = run_name(load_params(project.params), "search")
            run = new_run(project, name, {**lineage.tags, "headstart.study": study})
        params = flatten_params({"search": search.model_dump(mode="json")})
        run.log_params({name: value for name, value in params.items() if len(value) < 6000})
        _log_trials(store, run.run_id, outcome)
        run.log_inputs([(output, "training") for output in lineage.inputs], lineage)
        storage = without_secrets(outcome.storage)
        tags = {"study": study, "best.trial": str(best.number), "optuna.storage": storage}
        run.set_tags({**lineage.tags, **tags})
        run.log_results(
            {f"best_{outcome.metric}": best.value, "n_trials": float(len(outcome.trials))},
            f"Best {outcome.metric} **{best.value:.4f}** by trial {best.number} of "
            f"{len(outcome.trials)} of study `{study}`. The trials are nested below; select them "
            "all and press Compare for parallel coordinates. `search/index.html` among the "
            "artifacts explains the search.",
            reports,
        )
        run.end()


def _log_trials(store: TrackingStore, parent_id: str, result: StudyResult) -> None:
    """Log the trials that have no run yet, each in three calls.

    MLflow's own bridges to Optuna take 120 to 310 ms per trial; three calls take about 36.
    """
    logged: set[int] = set()
    token: str | None = None
    while True:
        page = store.client.search_runs(
            [store.experiment_id],
            f"tags.`{_PARENT_TAG}` = '{parent_id}'",
            max_results=1000,
            page_token=token,
        )
        for run in page:
            if run.info.status == "RUNNING":
                # A kill between its beginning and its end left it empty.
                store.client.delete_run(run.info.run_id)
            else:
                logged.add(int(run.data.tags["optuna.trial"]))
        token = page.token
        if not token:
            break
    for trial in result.trials:
        if trial.number in logged:
            continue
        reason = without_secrets(trial.reason)
        if trial.value is not None:
            outcome = f"{result.metric} {trial.value:.4f} at epoch {trial.best_epoch}"
        elif reason:
            outcome = f"failed: {reason}"
        else:
            n_epochs = len(trial.curve.get(result.metric, []))
            outcome = f"{trial.state.lower()} after {n_epochs} epochs"
        head = describe_head(trial.config) if trial.config is not None else "no head"
        tags = {
            _PARENT_TAG: parent_id,
            "headstart.kind": "trial",
            "headstart.study": result.study_name,
            "optuna.trial": str(trial.number),
            "optuna.state": trial.state,
            "mlflow.note.content": (
                f"Trial {trial.number} of {result.study_name}: {head}; {outcome}."
            ),
            **({"error": reason} if reason else {}),
        }
        now_ms = int(time.time() * 1000)
        finals = {} if trial.value is None else {"value": trial.value}
        finals |= {f"val_{name}": value for name, value in trial.at_best().items()}
        costs = {"mflops": trial.mflops, "model_mb": trial.model_mb}
        finals |= {name: value for name, value in costs.items() if value is not None}
        metrics = [Metric(name, value, now_ms, 0) for name, value in finals.items()]
        for step, values in enumerate(zip(*trial.curve.values(), strict=True), start=1):
            epoch = curve_names(dict(zip(trial.curve, values, strict=True)))
            metrics += [Metric(name, value, now_ms, step) for name, value in epoch.items()]
        # Every trial of a study has the same param and metric names.
        params = [Param(name, str(value)) for name, value in trial.params.items()]
        created = store.client.create_run(
            store.experiment_id, tags=tags, run_name=f"trial {trial.number}"
        )
        run_id = created.info.run_id
        for start in range(0, max(len(metrics), 1), _METRICS_PER_CALL):
            some = metrics[start : start + _METRICS_PER_CALL]
            store.client.log_batch(run_id, metrics=some, params=[] if start else params)
        status = "FAILED" if trial.state == "FAIL" else "FINISHED"
        store.client.set_terminated(run_id, status=status)
