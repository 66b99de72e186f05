"""Stage ingest: data/fetched, data/splits.csv → data/manifest.csv, reports/rejected.csv and data/.

splits.csv is extended by the thresholds of the classes that are new.
"""

from headstart.common.paths import Project, cache_folder, state_folder
from headstart.common.progress import begin_step
from headstart.common.terminal import say
from headstart.dataset.ingest import check_ingested, ingest, write_rejected
from headstart.dataset.manifest import write_manifest
from headstart.dataset.splits import (
    find_moves,
    former_splits_file,
    read_thresholds,
    remember_splits,
    write_thresholds,
)
from headstart.images.input_pixels import InputPixels
from headstart.params.base import Section, Seed
from headstart.params.image import ImageParams
from headstart.params.ingest import IngestParams
from headstart.reports.data_card import DataCard, metrics, write_data_card
from headstart.stages.run_stage import run_stage


class Sections(Section):
    seed: Seed = 0
    image: ImageParams
    ingest: IngestParams


def run(project: Project, params: Sections) -> str:
    """Read and decode every image once, split the images, and write what was found."""
    known = read_thresholds(project.splits)
    pixels = None
    if params.ingest.keep_pixels:
        limit = params.ingest.max_pixels
        pixels = InputPixels(cache_folder(), project.fetched, params.image, max_pixels=limit)
    ingested = ingest(
        project.fetched,
        params.ingest,
        seed=params.seed,
        thresholds=known,
        cache=cache_folder() / "ingest" / "images.sqlite3",
        pixels=pixels,
    )
    begin_step("writing the data card")
    write_rejected(project.rejected, ingested.rejected)
    listed_in = project.rejected.relative_to(project.root).as_posix()
    if warning := check_ingested(ingested, params.ingest, listed_in):
        say(f"ingest    {warning}", error=True)
    if pixels is not None:
        # Of images that were known, but not at this size, or whose pixels were removed.
        pixels.complete(ingested.manifest.paths, ingested.manifest.sha256)
    former = former_splits_file(
        state_folder(project.root), seed=params.seed, fractions=params.ingest.split
    )
    card = DataCard(ingested, find_moves(ingested.manifest, former), project.fetched)
    write_data_card(project.data_report, card)
    if ingested.thresholds != known:
        write_thresholds(project.splits, ingested.thresholds)
    write_manifest(project.manifest, ingested.manifest)
    remember_splits(ingested.manifest, former)
    return summary(card)


def summary(card: DataCard) -> str:
    """Say how many images there are, and what a user should look at."""
    found = metrics(card)
    parts = [
        f"{found['images']:,} images of {found['classes']} classes",
        f"{found['rejected']:,} rejected",
        f"{found['exact_duplicates'] + found['near_duplicates']:,} copies or near copies",
    ]
    if found["label_conflict"]:
        parts.append(f"{found['label_conflict']:,} with conflicting labels")
    if card.moves:
        parts.append(f"{len(card.moves):,} moved to another split")
    if found["leaks"]:
        parts.append(f"{found['leaks']:,} groups in two of the given splits")
    return ", ".join(parts)


if __name__ == "__main__":
    run_stage("ingest", Sections, run)
