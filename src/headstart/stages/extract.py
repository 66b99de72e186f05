"""Stage extract: data/fetched, data/manifest.csv → data/features.h5, models/backbone.h5."""

from headstart.common.paths import Project, cache_folder
from headstart.common.progress import begin_step
from headstart.dataset.manifest import read_manifest
from headstart.encoders.runtimes import resolve
from headstart.features.cache_commands import keep_within, size_limit
from headstart.features.extractor import Extraction, Extractor, extract_features
from headstart.params.base import Section, Seed
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.stages.run_stage import run_stage


class Sections(Section):
    """The seed draws augmented views."""

    seed: Seed = 0
    image: ImageParams
    extract: ExtractParams


def run(project: Project, params: Sections) -> str:
    """Extract the rows that the cache lacks, and assemble features.h5."""
    max_bytes = size_limit()  # a mistake in it is told before the work
    begin_step("preparing the encoder")
    extractor = Extractor(
        resolve(params.extract), params.image, params.seed, project.root, cache_folder()
    )
    manifest = read_manifest(project.manifest)
    extraction = extract_features(
        extractor, manifest, project.fetched, project.features, project.encoder
    )
    keep_within(cache_folder(), max_bytes)
    return summary(extraction)


def summary(extraction: Extraction) -> str:
    """Say how many rows were extracted, by what and how fast, and how many were cached."""
    n, seconds = extraction.n_extracted, extraction.seconds
    rate = f" at {n / seconds:.0f} rows/s" if n else ""
    return (
        f"{extraction.n_images:,} images by {extraction.how}: {n:,} rows extracted{rate}, "
        f"{extraction.n_cached:,} from the cache"
    )


if __name__ == "__main__":
    run_stage("extract", Sections, run)
