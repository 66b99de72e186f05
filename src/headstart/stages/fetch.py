"""Stage fetch: data.source → data/fetched."""

from headstart.common.paths import Project
from headstart.common.terminal import say
from headstart.params.base import Section
from headstart.params.data import DataParams
from headstart.sources.data_source import fetch
from headstart.stages.common import run_stage


class Sections(Section):
    data: DataParams


def run(files: Project, params: Sections) -> str:
    fetched = fetch(files.root, files.fetched, params.data)
    for note in fetched.notes:
        say(f"{'fetch':<9} {note}")
    return f"{fetched.n_files:,} files from {params.data.source}"


if __name__ == "__main__":
    run_stage("fetch", Sections, run)
