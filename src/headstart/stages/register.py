"""Stage register: the trained model becomes a version, and champion or challenger.

Reads the manifest, the validation and test predictions, the model card, models/run.json,
models/model.h5 and that models/serving/ is logged; writes reports/registration.json and
reports/comparison.json.
"""

from pydantic import Field

from headstart.common import files
from headstart.common.paths import Project
from headstart.dataset.manifest import read_manifest
from headstart.models.model_file import read_metadata
from headstart.params.base import Section, Seed
from headstart.params.register import RegisterParams
from headstart.stages.run_stage import run_stage
from headstart.tracking.registration import Registration, register_model


class Sections(Section):
    seed: Seed = 0
    register_: RegisterParams = Field(alias="register")


def run(project: Project, params: Sections) -> str:
    """Register the model, unless a version holds the same file, and decide its alias."""
    manifest = read_manifest(project.manifest)
    registration = register_model(
        project,
        params.register_,
        metadata=read_metadata(project.model),
        test_metrics=files.read_json(project.metrics),
        groups=dict(zip(manifest.sha256, manifest.groups, strict=True)),
        seed=params.seed,
    )
    files.write_json(project.comparison, registration.comparison)
    files.write_json(project.registration, registration.as_json())
    return summary(registration)


def summary(registration: Registration) -> str:
    """Say which version the model is, under which alias and why."""
    return (
        f"version {registration.version} of {registration.model_name} is {registration.alias}: "
        f"{registration.why}"
    )


if __name__ == "__main__":
    run_stage("register", Sections, run)
