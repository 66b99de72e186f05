"""Stage extract: the manifest's images become data/features.h5, through models/backbone.h5."""

from headstart.common.paths import Project, cache_folder
from headstart.common.progress import begin_step
from headstart.dataset.manifest import read_manifest
from headstart.encoders.runtimes import resolve
from headstart.features.extractor import Extractor, extract_features
from headstart.params.base import Section, Seed
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.stages.common import run_stage


class Sections(Section):
    """What of params.yaml this stage depends on; the seed draws augmented views."""

    seed: Seed = 0
    image: ImageParams
    extract: ExtractParams


def run(files: Project, params: Sections) -> str:
    """Extract what the cache lacks, and assemble features.h5."""
    begin_step("preparing the backbone")
    extractor = Extractor(
        resolve(params.extract), params.image, params.seed, files.root, cache_folder()
    )
    manifest = read_manifest(files.manifest)
    return extract_features(
        extractor, manifest, files.fetched, files.features, files.backbone
    ).line()


if __name__ == "__main__":
    run_stage("extract", Sections, run)
