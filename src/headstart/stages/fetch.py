"""Stage fetch: data.source → data/fetched."""

from headstart.images.sources import fetch
from headstart.params.base import Section
from headstart.params.images import DataParams
from headstart.paths import Project
from headstart.stages.common import run_stage


class Sections(Section):
    data: DataParams


def run(files: Project, params: Sections) -> str:
    count = fetch(files.root, files.fetched, params.data)
    return f"{count:,} files from {params.data.source}"


if __name__ == "__main__":
    run_stage("fetch", Sections, run)
