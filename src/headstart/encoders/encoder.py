"""What an encoder is, as data. Importing this imports no Keras."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.encoders.weights import Imagenet
from headstart.encoders.weights_files import Tensors

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Encoder:
    """One network that can be cut off at a layer and run frozen.

    Attributes:
        network: takes a Keras tensor (n, size, size, 3), returns the network without classifier.
        blocks: its feature blocks, layer name → channels: layers whose pooled outputs a forward
            pass yields together, the last map first, then the last stages.
        default_size_px, least_size_px: the input size it was trained on, and the least.
        multiple_px: what the input size must be a multiple of.
        from_pytorch: turns a PyTorch state into tensors by layer for an input size, where such
            weights exist.
        published: the file that holds its weights, where none is fetched, and its licence.
        licence: of the ImageNet weights, where those who publish them name one.
        repair: changes loaded ImageNet tensors into what Keras's own constructor would compute.
    """

    name: str
    network: Callable[[Any], Any] = field(repr=False)
    preprocessing: str
    blocks: Mapping[str, int]
    default_size_px: int
    least_size_px: int
    imagenet: Imagenet | None = None
    from_pytorch: Callable[[Mapping[str, NDArray[np.float32]], int], Tensors] | None = None
    repair: Callable[[Tensors], Tensors] | None = None
    multiple_px: int = 1
    published: str = ""
    licence: str = ""
