"""What a feature row depends on, and its fingerprint: exactly what changes the stored numbers.

Not paths, batch size, worker count or the time. What may differ between machines (processor,
library versions) is recorded in the cache's shards instead and compared by tolerance.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart.common.files import sha256_of_json
from headstart.encoders.catalogue import check_size, chosen_encoder, row_layers, shown_layers
from headstart.encoders.weights import weights_identity
from headstart.features.views import AUGMENTATION_VERSION
from headstart.images.decode import DECODE_VERSION
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

# Raised when the network or the preprocessing that this code builds gives other numbers.
NETWORK_VERSION = 2

_NOT_OF_THE_MODEL = ("resampling", "fit", "decode_version", "decoder", "runtime", "precision")


def feature_recipe(
    extract: ExtractParams, image: ImageParams, *, seed: int, backend: str, root: Path
) -> dict[str, Any]:
    """All that the numbers depend on, as JSON values.

    `runtime` and `precision` must be resolved: auto is no recipe. The backend counts only where
    Keras itself runs the network, the seed only where there are augmented views.

    Raises:
        ParamsError, WeightsError: the encoder, size or weights cannot be had as asked.
    """
    if len(extract.encoders) > 1:
        each = [
            feature_recipe(one, image, seed=seed, backend=backend, root=root)
            for one in extract.each()
        ]
        # What they have in common, beside what is of each.
        common = {k: v for k, v in each[0].items() if all(v == other.get(k) for other in each)}
        own = [{k: v for k, v in one.items() if k not in common} for one in each]
        return {**common, "backbone": extract.encoder, "encoders": own}
    encoder = chosen_encoder(extract, root)
    check_size(encoder, image)
    runtime = f"keras-{backend}" if extract.runtime == "keras" else extract.runtime
    shown, held = shown_layers(encoder, extract), row_layers(encoder, extract)
    result: dict[str, Any] = {
        "backbone": encoder.name,
        "weights": weights_identity(extract, encoder.imagenet, root, encoder.published),
        **({"layers": list(held)} if len(held) > 1 else {"layer": held[0]}),
        "pooling": extract.pooling,
        "preprocessing": encoder.preprocessing,
        "network_version": NETWORK_VERSION,
        "image_size": image.size,
        "resampling": image.resampling,
        "fit": image.fit,
        "decode_version": DECODE_VERSION,
        "runtime": runtime,
        "precision": extract.precision,
    }
    if shown != held:
        result["shown"] = list(shown)
    if extract.views > 1:
        result["views"] = {
            "n_views": extract.views,
            "seed": seed,
            "augmentation_version": AUGMENTATION_VERSION,
        }
    return result


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """Hexadecimal sha256 that stands for a recipe; the order of its keys does not matter."""
    return sha256_of_json(dict(recipe))


def row_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of single rows, which hold all blocks of one view, whatever is shown of them.

    So no row is extracted again where other blocks, or more augmented views, are asked for.
    """
    return {key: value for key, value in recipe.items() if key not in ("views", "shown")}


def model_key(recipe: Mapping[str, Any]) -> str:
    """Names the frozen model that a recipe needs: runtimes and resamplings share it."""
    rows = row_recipe(recipe)
    chosen = {key: value for key, value in rows.items() if key not in _NOT_OF_THE_MODEL}
    return sha256_of_json(chosen)
