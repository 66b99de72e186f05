"""The frozen model of a contract on disk: backbone.h5 as Keras saves it, and as exported to ONNX.

All are made once and kept in the cache, so that later runs need neither the weights nor
TensorFlow. Knows nothing of images.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from headstart.features.onnx_export import export_onnx, fold_onnx
from headstart.files import replacing


@dataclass(frozen=True)
class FrozenModel:
    """The files of one frozen backbone, in `folder`; `build` makes it as a Keras model."""

    folder: Path
    build: Callable[[], Any]

    @property
    def h5(self) -> Path:
        return self.folder / "backbone.h5"

    @property
    def onnx(self) -> Path:
        return self.folder / "model.onnx"

    def load(self) -> Any:
        """The Keras model, built and saved when it is not there yet."""
        with self._lock():
            return self._load()

    def require_h5(self) -> Path:
        """The path of backbone.h5, made when missing."""
        if not self.h5.exists():
            self.load()
        return self.h5

    def require_onnx(self) -> Path:
        """The path of model.onnx, exported when missing."""
        if not self.onnx.exists():
            with self._lock():
                if not self.onnx.exists():
                    export_onnx(self._load(), self.onnx)
        return self.onnx

    def require_folded_onnx(self) -> Path:
        """The path of folded.onnx, for runtimes that do not fold constants; made when missing."""
        path = self.require_onnx().with_name("folded.onnx")
        if not path.exists():
            with self._lock():
                if not path.exists():
                    fold_onnx(self.onnx, path)
        return path

    def copy_h5(self, path: Path) -> None:
        """Copy backbone.h5 to `path`, made when missing, whole or not at all."""
        with replacing(path) as temporary:
            shutil.copyfile(self.require_h5(), temporary)

    def _load(self) -> Any:
        if self.h5.exists():
            import keras

            return keras.models.load_model(self.h5, compile=False)
        model = self.build()
        with replacing(self.h5) as temporary, without_legacy_warning():
            model.save(temporary, include_optimizer=False)
        return model

    def _lock(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "making.lock", thread_local=False)


@contextlib.contextmanager
def without_legacy_warning() -> Iterator[None]:
    """Silence what Keras says on every save as `.h5`, which is the format this project keeps."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
