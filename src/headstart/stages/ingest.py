"""Stage ingest: data/fetched → data/manifest.csv, reports/rejected.csv."""

from headstart.images.ingest import check_rejected, check_splits, ingest, write_rejected
from headstart.images.manifest import write_manifest
from headstart.params.base import Section
from headstart.params.images import IngestParams
from headstart.paths import Project
from headstart.stages.common import run_stage


class Sections(Section):
    seed: int
    ingest: IngestParams


def run(files: Project, params: Sections) -> str:
    ingested = ingest(files.fetched, params.ingest, seed=params.seed)
    write_rejected(files.rejected, ingested.rejected)
    check_rejected(ingested, params.ingest, files.rejected.relative_to(files.root).as_posix())
    check_splits(ingested.manifest, params.ingest)
    write_manifest(files.manifest, ingested.manifest)
    return (
        f"{len(ingested.manifest):,} images of {len(ingested.manifest.classes)} classes, "
        f"{len(ingested.rejected):,} rejected"
    )


if __name__ == "__main__":
    run_stage("ingest", Sections, run)
