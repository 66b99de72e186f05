"""Stage package: models/model.h5 → models/serving/, the folder that `mlflow models serve` starts.

The run of models/run.json gets it as its logged model. A stage of its own, so that an edit of the
server packages the model anew and does not train it again.
"""

from headstart.common.paths import Project
from headstart.common.progress import begin_step
from headstart.dataset.manifest import read_manifest
from headstart.models.model_file import read_metadata
from headstart.params.base import Section
from headstart.serving.package import save_pyfunc
from headstart.stages.run_stage import run_stage
from headstart.tracking.runs import recorded_run


class Sections(Section):
    """This stage reads nothing of params.yaml."""


def run(project: Project, params: Sections) -> str:  # noqa: ARG001 (as every stage)
    """Package the model with the code that serves it, and log the package."""
    begin_step("packaging the model")
    classes = read_metadata(project.model)["classes"]
    example = read_manifest(project.manifest).select("train").paths[0]
    save_pyfunc(project.serving, project.model, classes, (project.fetched / example).read_bytes())
    begin_step("logging the package")
    with recorded_run(project, "package") as mlflow_run:
        mlflow_run.log_model(project.serving)
    sizes = [path.stat().st_size for path in project.serving.rglob("*") if path.is_file()]
    return summary(sum(sizes), len(classes))


def summary(n_bytes: int, n_classes: int) -> str:
    """Say how large the package is, and how many classes its model knows."""
    return f"{n_bytes / 1e6:.1f} MB in models/serving, for {n_classes} classes"


if __name__ == "__main__":
    run_stage("package", Sections, run)
