"""Several encoders at once: each has its own rows in the cache, one model holds them all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headstart.common.cost import Cost
from headstart.common.errors import ParamsError
from headstart.features.extractor import extract_features
from headstart.features.feature_store import FeatureStore
from headstart.heads.config import HeadConfig, describe_layers, list_layers
from headstart.images.decode import decode_input
from headstart.models.assemble import assemble
from headstart.params.extract import ExtractParams
from headstart.params.image import ImageParams
from headstart.params.load import load_sections
from headstart.params.search import SearchParams
from headstart.params.search_space import SearchSpace
from headstart.search.plan import model_cost, with_blocks
from headstart.stages.extract import Sections
from tests.features.samples import SIZE_PX, extractor, manifest_of, write_images
from tests.models.conftest import make_head_for

PAIR = ("efficientnet-lite0", "mobilenetv2")
RANDOM = ExtractParams(encoders=PAIR, weights="random", runtime="keras")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 6)
    return folder


@pytest.fixture(scope="module")
def cache_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def extracted(images: Path, cache_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features.h5 and backbone.h5 of each encoder, and of both."""
    folder = tmp_path_factory.mktemp("extracted")
    manifest = manifest_of(images)
    for name, extract in (*zip(PAIR, RANDOM.each(), strict=True), ("both", RANDOM)):
        done = extract_features(
            extractor(cache_root, extract),
            manifest,
            images,
            folder / f"{name}.features.h5",
            folder / f"{name}.h5",
        )
        # What each alone has cached is not extracted again.
        assert done.n_extracted == (0 if name == "both" else 6)
    return folder


def test_features_are_those_of_each_beside_each_other(extracted: Path) -> None:
    with FeatureStore(extracted / "both.features.h5") as both:
        rows = np.arange(len(both))
        found, columns = both.rows(rows).features, both.columns()
        assert [name.partition(".")[0] for name in columns] == [PAIR[0]] * 4 + [PAIR[1]] * 4
        costs, fingerprint = both.costs, both.fingerprint
    for name in PAIR:
        with FeatureStore(extracted / f"{name}.features.h5") as one:
            assert one.fingerprint != fingerprint
            expected = one.rows(rows).features
            for layer, own in one.columns().items():
                there = found[..., columns[f"{name}.{layer}"]]
                np.testing.assert_array_equal(there, expected[..., own])
                assert costs[f"{name}.{layer}"] == one.costs[layer]


FRESH = """
import sys, keras, numpy as np
model = keras.models.load_model(sys.argv[1], compile=False)
np.save(sys.argv[3], np.asarray(model(np.load(sys.argv[2]))))
assert "headstart" not in sys.modules
"""


def test_one_flat_model_computes_them_in_plain_keras(
    extracted: Path, images: Path, tmp_path: Path
) -> None:
    manifest, image = manifest_of(images), ImageParams(size=SIZE_PX)
    pixels = [decode_input((images / path).read_bytes(), image) for path in manifest.paths]
    np.save(tmp_path / "pixels.npy", np.stack(pixels))
    arguments = [str(extracted / "both.h5"), *(str(tmp_path / f"{n}.npy") for n in ("pixels", "f"))]
    subprocess.run([sys.executable, "-c", FRESH, *arguments], check=True)
    with FeatureStore(extracted / "both.features.h5") as store:
        expected = store.rows(np.arange(6)).features[:, 0]
    found = np.load(tmp_path / "f.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())
    # Made anew it has the same bytes.
    again = extractor(tmp_path / "cache", RANDOM).frozen().require_h5()
    assert again.read_bytes() == (extracted / "both.h5").read_bytes()


def test_a_model_holds_only_the_encoders_that_its_head_uses(extracted: Path) -> None:
    import keras

    encoder = keras.models.load_model(extracted / "both.h5", compile=False)
    layers = [f"{PAIR[1]}.out_relu", f"{PAIR[1]}.block_12_add"]
    model = assemble(encoder, [make_head_for(1280 + 96)], 1.0, layers)
    names = [layer.name for layer in model.layers]
    assert not [name for name in names if PAIR[0] in name]
    assert f"{PAIR[1]}.block_12_add" in names


def test_the_cost_is_that_of_the_encoders_that_are_used() -> None:
    costs = {"a.top": Cost(10, 4), "a.early": Cost(6, 2), "b.top": Cost(100, 40)}
    blocks = {name: slice(i, i + 1) for i, name in enumerate(costs)}

    def of(layers: str) -> Cost:
        head = HeadConfig(kind="logistic_regression", layers=layers, normalisation="none")
        found = model_cost([head], blocks, costs, 2)
        assert found is not None
        return found

    n_layers = {"a.early": 1, "a.top+a.early": 2, "a.top+b.top": 2, "all": 3}
    alone = {layers: (of(layers).mflops - 2 * n * 2 / 1e6) for layers, n in n_layers.items()}
    assert alone == pytest.approx(
        {"a.early": 6, "a.top+a.early": 10, "a.top+b.top": 110, "all": 110}
    )


def test_the_search_chooses_one_of_them_or_as_much_of_each() -> None:
    layers = [f"{e}.{block}" for e in ("a", "b") for block in ("top", "middle", "early")]
    space = SearchSpace.model_validate({"layers": "any"})
    found = with_blocks(SearchParams(space=space), layers)
    sets = found.space.model_dump()["layers"]["choices"]
    assert len(sets) == len(set(sets)) == 6
    assert {*sets} == {
        "last",
        "all",
        "a.top+a.middle+a.early",
        "b.top+b.middle+b.early",
        "a.top+b.top",
        "a.top+a.middle+b.top+b.middle",
    }


def test_they_are_described_by_encoder() -> None:
    assert describe_layers("all") == list_layers("all") == "all"
    assert describe_layers("x+y") == "x+y"
    assert list_layers("x+y") == "x + y"
    assert describe_layers("a.x+a.y+b.x") == "2 blocks of a and 1 block of b"
    assert list_layers("a.x+a.y+b.x") == "a: x + y; b: x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoders: [vgg16, vgg16]", "names must differ, but got vgg16, vgg16"),
        ("encoders: [vgg16, vgg19]\n  weights: x.h5", "a weights file holds one encoder's weights"),
        (
            "encoders: [vgg16, vgg19]\n  layers: [vgg16.block5_pool]",
            "must name at least one of each as <encoder>.<layer>, but got vgg16.block5_pool",
        ),
        ("encoders: []", "extract.encoders"),
    ],
)
def test_what_cannot_be_asked_of_several(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"extract:\n  {text}\n", encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load_sections(path, Sections)
    assert message in str(caught.value)
