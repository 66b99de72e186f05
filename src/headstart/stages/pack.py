"""Stage pack: data/fetched, data/manifest.csv → data/images.h5."""

from headstart.common.paths import Project
from headstart.dataset.manifest import read_manifest
from headstart.dataset.pixel_store import pack
from headstart.params.base import Section
from headstart.params.image import ImageParams
from headstart.params.pack import PackParams
from headstart.stages.common import run_stage


class Sections(Section):
    image: ImageParams
    pack: PackParams


def run(files: Project, params: Sections) -> str:
    manifest = read_manifest(files.manifest)
    count = pack(files.images, manifest, files.fetched, params.image, params.pack)
    return f"{count:,} images of {params.image.size} px"


if __name__ == "__main__":
    run_stage("pack", Sections, run)
