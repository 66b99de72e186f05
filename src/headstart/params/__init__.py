"""params.yaml as typed values: one section a stage, plus the shared `seed` and `image`.

Knows what is allowed, not what it is used for.
"""

from headstart.params.evaluate import EvaluateParams, RegisterParams
from headstart.params.extract import ExtractParams
from headstart.params.images import DataParams, ImageParams, IngestParams, PackParams, SplitParams
from headstart.params.load import Params, load_params, load_sections
from headstart.params.search import SearchParams
from headstart.params.train import FineTuneParams, TrainParams

__all__ = [
    "DataParams",
    "EvaluateParams",
    "ExtractParams",
    "FineTuneParams",
    "ImageParams",
    "IngestParams",
    "PackParams",
    "Params",
    "RegisterParams",
    "SearchParams",
    "SplitParams",
    "TrainParams",
    "load_params",
    "load_sections",
]
