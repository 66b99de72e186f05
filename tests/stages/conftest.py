"""A small workspace that the train, package and evaluate stages have run in."""

import pytest

from headstart.common.paths import Project
from headstart.params.data import DataParams
from headstart.params.evaluate import EvaluateParams
from headstart.params.train import TrainParams
from headstart.stages import evaluate, package, train
from tests.models.conftest import IMAGE, make_workspace


def run_train(project: Project, **fields: object) -> str:
    """Run the train stage with these fields of its section."""
    chosen = TrainParams.model_validate(fields)
    return train.run(project, train.Sections(seed=0, image=IMAGE, train=chosen))


def run_package(project: Project) -> str:
    """Run the package stage."""
    return package.run(project, package.Sections())


def run_evaluate(project: Project) -> str:
    """Run the evaluate stage."""
    data, params = DataParams(source="photos"), EvaluateParams(n_bootstrap=200)
    return evaluate.run(project, evaluate.Sections(seed=0, data=data, evaluate=params))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A workspace after train, package and evaluate; not to be written to."""
    project = make_workspace(tmp_path_factory.mktemp("workspace"))
    assert "validation accuracy" in run_train(project)
    assert "for 4 classes" in run_package(project)
    assert "test accuracy" in run_evaluate(project)
    return project
