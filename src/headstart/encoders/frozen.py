"""The frozen model of a recipe on disk: backbone.h5 as Keras saves it, as ONNX, its cost.

All are made once and kept in the cache, so that later runs need neither the weights nor
TensorFlow. Each has its sha256 beside it, as `sha256sum --check` reads it, and is checked whenever
it is opened: a changed one is made again. Knows nothing of images.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from headstart.common.cost import Cost
from headstart.common.files import read_json, replacing, sha256_of_file, write_json, write_text
from headstart.common.quiet import quiet_keras
from headstart.common.terminal import say
from headstart.encoders.costs import block_costs
from headstart.encoders.onnx_encoder import OnnxEncoder, load_onnx_encoder
from headstart.encoders.onnx_graph import write_onnx


@dataclass(frozen=True)
class FrozenModel:
    """The files of one frozen encoder, in `folder`; `build` makes it in Keras, or as ONNX."""

    folder: Path
    build: Callable[[], Any]

    @property
    def h5(self) -> Path:
        return self.folder / "backbone.h5"

    @property
    def costs(self) -> Path:
        return self.folder / "costs.json"

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    def load(self) -> Any:
        """Return the Keras model, built and saved when it is not there yet."""
        import keras

        path, built = self._built()
        return keras.models.load_model(path, compile=False) if built is None else built

    def copy_h5(self, path: Path) -> None:
        """Copy backbone.h5 to `path` atomically; it is made when missing."""
        with replacing(path) as temporary:
            shutil.copyfile(self.require_h5(), temporary)

    def require_h5(self) -> Path:
        """Return the path of backbone.h5, made when it is missing or changed."""
        return self._built()[0]

    def _built(self) -> tuple[Path, Any]:
        """The path of backbone.h5, and the model where it had to be built."""
        built: list[Any] = []

        def save() -> None:
            model = self.build()
            with replacing(self.h5) as temporary, quiet_keras():
                if isinstance(model, OnnxEncoder):
                    model.save(temporary)
                else:
                    model.save(temporary, include_optimizer=False)
            self._require(self.costs, lambda: self._write_costs(model))
            built.append(model)

        path = self._require(self.h5, save)
        return path, built[0] if built else None

    def block_costs(self) -> dict[str, Cost]:
        """Return what the encoder costs up to each of its feature blocks; counted once."""
        # Before the lock of the costs, which making it takes too.
        h5 = self.require_h5()
        path = self._require(
            self.costs, lambda: self._write_costs(load_onnx_encoder(h5) or self.load())
        )
        return {name: Cost(**values) for name, values in read_json(path).items()}

    def _write_costs(self, model: Any) -> None:
        costs = model.costs() if isinstance(model, OnnxEncoder) else block_costs(model)
        write_json(self.costs, {name: asdict(cost) for name, cost in costs.items()})

    def require_onnx(self) -> Path:
        """Return the path of model.onnx, written when it is missing or changed."""

        def write() -> None:
            path = self.require_h5()
            encoder = load_onnx_encoder(path)
            if encoder is None:
                write_onnx(path, self.onnx)
            else:
                with replacing(self.onnx) as temporary:
                    temporary.write_bytes(encoder.joined())

        return self._require(self.onnx, write)

    def _require(self, path: Path, make: Callable[[], None]) -> Path:
        if is_sound(path):
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        # One for each file: the making of one requires another.
        with FileLock(path.with_name(f"making-{path.name}.lock"), thread_local=False):
            if not is_sound(path):
                if _sum_of(path).exists() and path.exists():
                    say(
                        f"extract: {path} is not what was written there; it is made again",
                        error=True,
                    )
                # The sum goes first and comes last: a kill in between leaves a file without one.
                _sum_of(path).unlink(missing_ok=True)
                make()
                write_text(_sum_of(path), f"{sha256_of_file(path)}  {path.name}\n")
        return path


def is_sound(path: Path) -> bool:
    """Return whether a file of a frozen model is there and has the sha256 noted beside it."""
    try:
        noted, _, name = _sum_of(path).read_text(encoding="ascii").strip().partition("  ")
        return name == path.name and sha256_of_file(path) == noted
    except (OSError, UnicodeDecodeError):
        return False


def _sum_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
