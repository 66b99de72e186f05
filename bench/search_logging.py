"""What it costs to log a finished search to MLflow."""

import os
import time
from pathlib import Path

from headstart.common.paths import Project
from headstart.features.feature_store import FeatureStore
from headstart.params.search import SearchParams
from headstart.reports.search_report import write_search_report
from headstart.search.results import StudyResult
from headstart.tracking.store import open_store
from headstart.tracking.study_runs import log_search


def logging_seconds(
    features: Path, result: StudyResult, search: SearchParams, folder: Path
) -> float:
    """Seconds of `log_search` into a new database in `folder`, as the stage calls it."""
    # the folder's own database, not one that the shell names
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)
    project = Project(folder)
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text("seed: 0\n", encoding="utf-8")
    with FeatureStore(features) as store:
        fingerprint = store.fingerprint
    write_search_report(project.search_report, result, search)
    open_store(project.root)
    started = time.perf_counter()
    log_search(project, result, search, fingerprint=fingerprint, reports=[project.search_report])
    return time.perf_counter() - started
