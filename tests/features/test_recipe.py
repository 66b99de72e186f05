"""The fingerprint covers exactly what changes the stored numbers."""

import random
from pathlib import Path
from typing import Any

import pytest

from headstart.common.errors import ParamsError
from headstart.encoders.catalogue import ENCODERS, REFUSED
from headstart.features.recipe import (
    feature_recipe,
    fingerprint,
    model_key,
    row_recipe,
)
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams

ROOT = Path("/nowhere")

# Another value of each field that is allowed where the others have their defaults.
OTHER_EXTRACT: dict[str, Any] = {
    "encoders": "resnet50",
    "weights": "random",
    "weights_sha256": "a" * 64,
    "layers": ("block3_add",),
    "pooling": "max",
    "views": 3,
    "runtime": "keras",
    "precision": "bfloat16",
    "batch_size": 7,
}
OTHER_IMAGE: dict[str, Any] = {"size": 96, "resampling": "nearest", "fit": "crop"}


def of(
    extract: ExtractParams | None = None,
    image: ImageParams | None = None,
    *,
    seed: int = 0,
    backend: str = "tensorflow",
) -> dict[str, Any]:
    return feature_recipe(
        extract or ExtractParams(), image or ImageParams(), seed=seed, backend=backend, root=ROOT
    )


def test_the_default_recipe_has_a_pinned_fingerprint() -> None:
    # If this changes, every cache of every user is extracted again: raise a version knowingly.
    assert fingerprint(of()) == "2bc4d8e91dac570d5e89e588a1eb3a0873a2aaaade5d94860e47294aa1a82a24"
    # Of one layer, or of one that is flattened, the recipe has no list.
    flat = of(ExtractParams(layers=("block3_add",)))
    assert fingerprint(flat) == "b5da3debf0a68438f3cbb50b62b79d9e6f1b66a7772f1ad3bc78491d9743ade0"


def test_the_order_of_keys_does_not_matter() -> None:
    keys = list(of())
    random.Random(0).shuffle(keys)
    assert fingerprint({key: of()[key] for key in keys}) == fingerprint(of())


@pytest.mark.parametrize("name", ExtractParams.model_fields)
def test_each_extract_field_changes_it_or_is_listed(name: str) -> None:
    other = ExtractParams(**{name: OTHER_EXTRACT[name]})
    changed = fingerprint(of(other)) != fingerprint(of())
    assert changed == (name not in ("batch_size", "weights_sha256"))


@pytest.mark.parametrize("name", ImageParams.model_fields)
def test_each_image_field_changes_it(name: str) -> None:
    other = ImageParams(**{name: OTHER_IMAGE[name]})
    assert fingerprint(of(image=other)) != fingerprint(of())


def test_what_is_shown_of_the_blocks_changes_the_fingerprint_but_not_the_rows() -> None:
    every = tuple(ENCODERS["efficientnet-lite0"].blocks)
    assert of(ExtractParams(layers=every)) == of(ExtractParams(layers=every[::-1])) == of()
    some = of(ExtractParams(layers=every[:2]))
    assert fingerprint(some) != fingerprint(of())
    assert row_recipe(some) == row_recipe(of())
    assert model_key(some) == model_key(of())
    other = of(ExtractParams(layers=("block3_add",)))
    assert row_recipe(other) != row_recipe(of())


def test_blocks_are_not_mixed_with_other_layers_or_flattened() -> None:
    with pytest.raises(ParamsError, match=r"must be any of head_relu, .* or one layer of"):
        of(ExtractParams(layers=("head_relu", "block3_add")))
    with pytest.raises(ParamsError, match="with pooling flatten: name one layer"):
        of(ExtractParams(layers=("head_relu", "block14_add"), pooling="flatten"))
    assert of(ExtractParams(pooling="flatten"))["layer"] == "head_relu"


def test_the_seed_counts_only_where_views_are_drawn() -> None:
    assert of(seed=1) == of(seed=2)
    views = ExtractParams(views=2)
    assert fingerprint(of(views, seed=1)) != fingerprint(of(views, seed=2))


def test_the_backend_counts_only_where_keras_computes() -> None:
    assert of(backend="jax") == of(backend="tensorflow")
    keras = ExtractParams(runtime="keras")
    assert fingerprint(of(keras, backend="jax")) != fingerprint(of(keras))


def test_rows_are_shared_between_numbers_of_views() -> None:
    assert row_recipe(of(ExtractParams(views=5), seed=3)) == row_recipe(of())


def test_the_frozen_model_is_shared_between_runtimes_and_resamplings() -> None:
    other = of(ExtractParams(runtime="openvino"), ImageParams(resampling="nearest"))
    assert model_key(other) == model_key(of())
    assert model_key(of(image=ImageParams(size=96))) != model_key(of())


def test_an_unknown_encoder_is_refused_with_the_nearest() -> None:
    with pytest.raises(ParamsError, match=r"got resnet5: did you mean resnet50 or "):
        of(ExtractParams(encoders="resnet5"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ConvNeXtXLarge", "cannot be loaded"),
        ("InceptionResNetV2", "layers of its own"),
    ],
)
def test_encoders_that_do_not_survive_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ParamsError, match=f"{name} is refused: .*{reason}.*efficientnet-lite0"):
        of(ExtractParams(encoders=name))


def test_no_encoder_is_both_offered_and_refused() -> None:
    assert set(REFUSED).isdisjoint(name.replace("-", "") for name in ENCODERS)


def test_a_size_that_the_encoder_cannot_take_is_refused() -> None:
    message = r"image\.size_px must be at least 75 for inceptionv3, but got 64: raise it, 299"
    with pytest.raises(ParamsError, match=message):
        of(ExtractParams(encoders="inceptionv3"), ImageParams(size=64))
