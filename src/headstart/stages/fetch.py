"""Stage fetch: data.source → data/fetched, a folder per class."""

from headstart.common.paths import Project
from headstart.common.terminal import say
from headstart.params.base import Section
from headstart.params.data import DataParams
from headstart.sources.data_source import Fetched, fetch
from headstart.stages.run_stage import run_stage


class Sections(Section):
    data: DataParams


def run(project: Project, params: Sections) -> str:
    """Fetch the images, and say how the source was understood."""
    fetched = fetch(project.root, project.fetched, params.data)
    for note in fetched.notes:
        say(f"{'fetch':<9} {note}")
    return summary(fetched, params.data.source)


def summary(fetched: Fetched, source: str) -> str:
    """Say how many files came from where."""
    return f"{fetched.n_files:,} files from {source}"


if __name__ == "__main__":
    run_stage("fetch", Sections, run)
