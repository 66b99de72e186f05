"""What `headstart tidy` keeps and what it frees, on a project with real models and experiments."""

import base64
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from mlflow.entities import ViewType

from headstart.common import files
from headstart.common.errors import TrackingError
from headstart.common.paths import Project
from headstart.params.register import RegisterParams
from headstart.stages import register
from headstart.tracking.runs import new_run
from headstart.tracking.store import TrackingStore, open_store
from headstart.tracking.tidy import PINNED_TAG, TidyPlan, plan_tidy, remove_unneeded
from tests.models.conftest import make_workspace
from tests.stages.conftest import run_evaluate, run_package, run_train
from tests.tracking.conftest import git
from tests.tracking.test_offline_runs import running_server

N_EXPERIMENTS = 9
_STAGES = {
    "train": {
        "cmd": "true",
        "deps": ["data/features.h5"],
        "params": ["seed"],
        "outs": ["models/model.h5", "models/run.json", "models/serving"],
    },
    "evaluate": {
        "cmd": "true",
        "deps": ["models/model.h5", "models/run.json"],
        "outs": ["reports/predictions.csv"],
        "metrics": [{"reports/metrics.json": {"cache": False}}],
    },
}


def _make_model(project: Project, seed: int) -> str:
    """Train, package and register, as the stages do; returns the run's id."""
    project.params.write_text(f"seed: {seed}\n")
    run_train(project, seeds=1, learning_rate=0.003 * (seed + 1))
    run_package(project)
    if not project.metrics.is_file():
        # Of the first model alone: it takes longer than the rest.
        run_evaluate(project)
    register.run(project, register.Sections(seed=0, register=RegisterParams()))
    return str(files.read_json(project.run)["run_id"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose first model is in git, and nine experiments: folder, and runs' ids in it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
            if name != "MLFLOW_DISABLE_TELEMETRY":
                patch.delenv(name)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "t")
            patch.setenv(f"GIT_{role}_EMAIL", "t@example.invalid")
        patch.setenv("HEADSTART_CACHE", str(tmp_path_factory.mktemp("cache")))
        root = tmp_path_factory.mktemp("made") / "my café #1 50%20?x"
        root.mkdir()
        project = make_workspace(root)
        patch.chdir(root)
        project.dvc_yaml.write_text(yaml.safe_dump({"stages": _STAGES}, sort_keys=False))
        git(root, "init", "-q", "-b", "main")
        ignored = ("/data/", ".headstart/", "mlflow.db*", "mlruns/", "/reports/", "/runs.json")
        (root / ".gitignore").write_text("".join(f"{line}\n" for line in ignored))
        with Repo.init(str(root)) as repo:
            repo.scm_context.quiet = True
            runs = [_make_model(project, 0)]
            repo.commit(force=True)
            git(root, "add", ".")
            git(root, "commit", "-q", "-m", "the first model")
            for number in range(1, N_EXPERIMENTS + 1):
                patch.setenv("DVC_EXP_NAME", f"try-{number}")
                runs.append(_make_model(project, number))
                repo.commit(force=True)
                repo.experiments.save(name=f"try-{number}", force=True)
            patch.delenv("DVC_EXP_NAME")
            git(root, "checkout", "-q", "--", ".")
            repo.checkout(force=True)
        files.write_json(root / "runs.json", runs)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of it to remove from."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "t")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "t@example.invalid")
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "DVC_"))]:
        if name != "MLFLOW_DISABLE_TELEMETRY":
            monkeypatch.delenv(name)
    root = tmp_path / made.name
    shutil.copytree(made, root, symlinks=True)
    monkeypatch.chdir(root)
    # The artifacts are those beside the database from now on.
    open_store(root)
    return Project(root)


def _runs(project: Project) -> list[str]:
    found: list[str] = files.read_json(project.root / "runs.json")
    return found


def _disk(project: Project) -> int:
    folders = (project.root / "mlruns", project.root / ".dvc" / "cache")
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in paths)


def _experiments(project: Project) -> set[str]:
    refs = git(project.root, "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps").split()
    return {name for name in refs if name.startswith("try-")}


def _check_answers(project: Project, store: TrackingStore, run_id: str) -> None:
    """The logged model of a run still answers, through MLflow."""
    picture = next(project.fetched.rglob("*.png")).read_bytes()
    rows = pd.DataFrame({"image": [base64.b64encode(picture).decode()]})
    model_id = store.client.get_run(run_id).data.tags["headstart.model_id"]
    folder = project.root / "mlruns" / "models" / model_id / "artifacts"
    with tempfile.TemporaryDirectory() as plain:
        # MLflow takes the path of a model for an address, with what `%` means there.
        copy = shutil.copytree(folder, Path(plain) / "model")
        answers = mlflow.pyfunc.load_model(str(copy)).predict(rows)
    assert answers["probability"].between(0.2, 1.0).all()


def _check_kept(project: Project, plan: TidyPlan) -> None:
    """Every kept run still answers, and every kept experiment and commit still has its model."""
    store = open_store(project.root)
    for run in plan.kept:
        _check_answers(project, store, run.run_id)
    with Repo(str(project.root)) as repo:
        for name in sorted(_experiments(project)):
            repo.experiments.apply(name)
            run_id = files.read_json(project.run)["run_id"]
            assert run_id in {run.run_id for run in plan.kept}
            assert store.client.get_run(run_id).data.tags["dvc.exp_name"] == name
            path = store.client.download_artifacts(run_id, "model.h5")
            assert files.sha256_of_file(Path(path)) == files.sha256_of_file(project.model)
        git(project.root, "checkout", "-q", "--", ".")
        repo.checkout(force=True)
    assert files.read_json(project.run)["run_id"] == _runs(project)[0]


def test_what_is_kept_still_answers_and_the_rest_frees_what_was_said(project: Project) -> None:
    runs = _runs(project)
    store = open_store(project.root)
    # The last of the leaderboard, which nothing else keeps.
    last = plan_tidy(project, keep=N_EXPERIMENTS + 1).kept[-1].run_id
    store.client.set_tag(last, PINNED_TAG, "yes")
    with new_run(project, "by hand", {}) as other:
        other.log_params({"a": "1"})
    before = _disk(project)
    plan = plan_tidy(project, keep=2)
    reasons = {run.run_id: run.reasons for run in plan.kept}
    assert "pinned" in reasons[last]
    assert {"of HEAD in git", "of main in git", "version 1, champion"} <= set(reasons[runs[0]])
    assert [why for whys in reasons.values() for why in whys if "challenger" in why]
    assert 3 <= len(plan.kept) <= 5
    text = plan.as_text()
    assert f"runs of models                           {len(runs) - len(plan.kept)}" in text
    assert "headstart cache gc" in text
    assert _disk(project) == before, "nothing goes before it is asked for"
    remove_unneeded(plan)
    freed = before - _disk(project)
    assert freed == pytest.approx(plan.n_bytes, rel=0.03)
    assert freed > 0.3 * before
    left = store.client.search_runs([store.experiment_id], run_view_type=ViewType.ALL)
    assert {run.info.run_id for run in left} == {*reasons, other.run_id}
    assert len(_experiments(project)) == len(set(reasons) - {runs[0]})
    versions = store.client.search_model_versions("name = 'headstart'")
    assert {version.run_id for version in versions} == set(reasons)
    _check_kept(project, plan)
    again = plan_tidy(project, keep=2)
    assert again.is_empty
    assert {run.run_id for run in again.kept} == set(reasons)


def test_a_kill_loses_nothing_that_is_kept_and_the_next_call_finishes(project: Project) -> None:
    plan = plan_tidy(project, keep=2)
    command = [sys.executable, "-m", "headstart", "tidy", "--keep", "2", "--yes"]
    process = subprocess.Popen(command, cwd=project.root, start_new_session=True)
    models = project.root / "mlruns" / "models"
    n_models = len(list(models.iterdir()))
    while process.poll() is None:
        # When some of the files are gone.
        if len(list(models.iterdir())) < n_models - 1:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.001)
    process.wait()
    second = plan_tidy(project, keep=2)
    assert {run.run_id for run in second.kept} == {run.run_id for run in plan.kept}
    remove_unneeded(second)
    _check_kept(project, plan)
    kept = {run.run_id for run in plan.kept}
    store = open_store(project.root)
    left = store.client.search_runs([store.experiment_id], run_view_type=ViewType.ALL)
    assert {run.info.run_id for run in left} == kept
    logged = store.client.search_logged_models([store.experiment_id])
    assert {model.source_run_id for model in logged} == kept
    folders = [path for path in (project.root / "mlruns").glob("*") if path.name != "models"]
    assert {path.name for path in folders if any(path.rglob("*"))} == kept
    assert plan_tidy(project, keep=2).is_empty


def test_branches_other_worktrees_and_renamed_experiments_keep_their_runs(
    project: Project, tmp_path: Path
) -> None:
    runs = _runs(project)
    with Repo(str(project.root)) as repo:
        repo.experiments.branch("try-3", "wanted")
        repo.experiments.rename("good", "try-4")
    tree = tmp_path / "tree"
    git(project.root, "worktree", "add", "-q", "--detach", str(tree))
    (tree / "models").mkdir(exist_ok=True)
    shutil.copy(project.run, tree / "models" / "run.json")
    files.write_json(tree / "models" / "run.json", {"run_id": runs[5]})
    kept = {run.run_id: run.reasons for run in plan_tidy(project, keep=0).kept}
    assert kept[runs[3]] == ("of wanted in git",)
    assert kept[runs[4]] == ("of the experiment good",)
    assert "of the model in tree" in kept[runs[5]]
    assert runs[6] not in kept
    head = git(project.root, "rev-parse", "HEAD").strip()
    git(project.root, "tag", "of-six", f"refs/exps/{head[:2]}/{head[2:]}/try-6")
    assert runs[6] in {run.run_id for run in plan_tidy(project, keep=0).kept}


def test_a_shared_cache_of_dvc_and_a_running_stage_are_left_alone(
    project: Project, tmp_path: Path
) -> None:
    lock = project.root / ".dvc" / "tmp" / "rwlock"
    running = {"pid": os.getpid(), "cmd": "dvc repro"}
    lock.write_text(json.dumps({"write": {"models/model.h5": running}, "read": {}}))
    plan = plan_tidy(project, keep=1)
    with pytest.raises(TrackingError, match=rf"stages must have ended .* process {os.getpid()}"):
        remove_unneeded(plan)
    lock.write_text("{}")
    copy = project.root / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc"
    copy.mkdir(parents=True)
    with pytest.raises(TrackingError, match=r"experiments must have ended .*tmpabc"):
        remove_unneeded(plan)
    copy.rmdir()
    shutil.move(project.root / ".dvc" / "cache", tmp_path / "shared")
    with Repo(str(project.root)) as repo, repo.config.edit() as config:
        config["cache"]["dir"] = str(tmp_path / "shared")
    plan = plan_tidy(project, keep=1)
    assert isinstance(plan.objects, str)
    assert "may be shared with other projects" in " ".join(plan.as_text().split())
    n_files = len(list((tmp_path / "shared").rglob("*")))
    remove_unneeded(plan)
    assert len(list((tmp_path / "shared").rglob("*"))) == n_files
    assert len(plan_tidy(project, keep=1).kept) == len(plan.kept)


def test_studies_go_with_their_last_model_and_runs_that_have_not_ended_stay(
    workspace: Project,
) -> None:
    def logged(tags: dict[str, str], accuracy: float | None = None) -> str:
        with new_run(workspace, "n", tags) as run:
            if accuracy is not None:
                run.log_results({"val_accuracy": accuracy}, "", [])
        return run.run_id

    model = {"headstart.kind": "model"}
    best = logged({**model, "study": "s1"}, 0.9)
    others = [logged({**model, "study": study}, 0.8) for study in ("s1", "s2")]
    studies = [logged({"headstart.kind": "study", "headstart.study": f"s{i}"}) for i in (1, 2, 3)]
    trials = [logged({"headstart.kind": "trial", "mlflow.parentRunId": study}) for study in studies]
    verdict = logged({"headstart.kind": "reproduction", "headstart.of": others[0]})
    unsent = logged({**model, "study": "s4"})
    (workspace.root / ".headstart" / "pending" / unsent).mkdir(parents=True)
    running = new_run(workspace, "n", model)
    store = open_store(workspace.root)
    store.client.delete_run(others[1])
    plan = plan_tidy(workspace, keep=1)
    assert {run.run_id for run in plan.kept} == {best, unsent, running.run_id}
    gone = [run.info.run_id for run in plan.runs]
    # s1 has a model that stays, and s3 may be of a training under way.
    assert set(gone) == {*others, studies[1], trials[1], verdict}
    assert gone[0] == trials[1]
    assert isinstance(plan.objects, str), "no DVC here"
    remove_unneeded(plan)
    assert plan_tidy(workspace, keep=1).is_empty


@pytest.mark.slow
@pytest.mark.ci
def test_on_a_server_only_ones_own_runs_are_marked_as_deleted(
    workspace: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    (tmp_path / "server").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    commit = git(workspace.root, "rev-parse", "HEAD").strip()
    own = {"headstart.kind": "model", "mlflow.user": getpass.getuser(), "git.commit": commit}
    with running_server(tmp_path / "server", port):
        made = {}
        for name, accuracy, tags in (
            ("best", 0.9, own),
            ("worse", 0.8, own),
            ("a colleague's", 0.7, {**own, "mlflow.user": "somebody else"}),
            ("of another project", 0.6, {**own, "git.commit": "0" * 40}),
        ):
            with new_run(workspace, name, tags) as run:
                run.log_results({"val_accuracy": accuracy}, "", [])
                run.log_text("x" * 1000, "a.txt")
            made[name] = run.run_id
        plan = plan_tidy(workspace, keep=1)
        assert [run.info.run_id for run in plan.runs] == [made["worse"]]
        assert "and 2 of other users or projects" in plan.as_text()
        assert "by `mlflow gc`" in plan.as_text()
        remove_unneeded(plan)
        client = plan.store.client
        stages = {
            name: client.get_run(run_id).info.lifecycle_stage for name, run_id in made.items()
        }
        assert stages == {name: "deleted" if name == "worse" else "active" for name in made}
        assert plan_tidy(workspace, keep=1).is_empty
