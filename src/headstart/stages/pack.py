"""Stage pack: data/fetched, data/manifest.csv → data/images.h5, decoded pixels."""

from headstart.common.paths import Project, cache_folder
from headstart.dataset.manifest import read_manifest
from headstart.dataset.pixel_store import pack
from headstart.images.input_pixels import InputPixels
from headstart.params.base import Section
from headstart.params.image import ImageParams
from headstart.params.pack import PackParams
from headstart.stages.run_stage import run_stage


class Sections(Section):
    image: ImageParams
    pack: PackParams


def run(project: Project, params: Sections) -> str:
    """Collect the pixels of the images of the splits that are kept."""
    manifest = read_manifest(project.manifest)
    limit = manifest.max_pixels
    kept = InputPixels(cache_folder(), project.fetched, params.image, max_pixels=limit)
    with kept.in_use(manifest.sha256):
        n_images = pack(project.images, manifest, kept.read, params.image, params.pack)
    return summary(n_images, params.image.size)


def summary(n_images: int, size_px: int) -> str:
    """Say how many images there are, of which size."""
    return f"{n_images:,} images of {size_px} px"


if __name__ == "__main__":
    run_stage("pack", Sections, run)
