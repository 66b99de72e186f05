"""The model in Python, as `mlflow.pyfunc.load_model` gives it; what a request may be."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from PIL import Image

from headstart.common.errors import ServingError
from headstart.models.answers import answers_table
from headstart.models.inference import Answer
from headstart.models.model_file import LoadedModel, load_model
from headstart.params.image import ImageParams
from headstart.serving.package import MAX_IMAGES
from headstart.serving.pyfunc_model import answer_request, read_image
from headstart.serving.request_body import read_csv_body, read_json_body
from tests.serving.conftest import base64_of, png

FILES = [png(1), png(2)]
IMAGE = ImageParams(size=32)
TEXTS = [base64_of(data) for data in FILES]


@pytest.mark.parametrize(
    "images",
    [
        pd.DataFrame({"image": FILES}),
        pd.DataFrame({"image": TEXTS}),
        pd.DataFrame({"id": [1, 2], "image": [FILES[0], TEXTS[1]]}),
        pd.DataFrame({"image": np.array(FILES, dtype=object)}, index=[7, 3]),
        pd.DataFrame({"image": [bytearray(FILES[0]), memoryview(FILES[1])]}),
        pd.Series(FILES, name="image"),
        {"image": FILES},
        {"image": TEXTS},
        {"image": np.array(FILES, dtype=object)},
        [{"image": FILES[0]}, {"image": TEXTS[1]}],
    ],
    ids=lambda images: type(images).__name__,
)
def test_bytes_and_base64_give_the_same(model: Any, images: object) -> None:
    expected = model.predict(pd.DataFrame({"image": TEXTS}))
    assert len(expected) == 2
    pd.testing.assert_frame_equal(model.predict(images), expected)


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (FILES, r"send .* in Python, pandas.DataFrame\(\{'image': \[<bytes or base64>\]\}\)"),
        (FILES[0], "in Python, pandas.DataFrame"),
        (np.array(FILES), "in Python, pandas.DataFrame"),
        (pd.Series(FILES), "in Python, pandas.DataFrame"),
        (pd.DataFrame({"picture": FILES}), "in Python, pandas.DataFrame"),
        (tuple(FILES), "check your input data"),
        ({"image": FILES, "id": [1]}, "check your input data"),
        (pd.DataFrame({"image": [1, 2]}), "check your input data"),
        (pd.DataFrame({"image": [FILES[0], None]}), "row 1: `image` must be"),
        (pd.DataFrame({"image": [FILES[0], b"PNG: no image"]}), "row 1: "),
        (pd.DataFrame({"image": [FILES[0][:60]]}), "row 0: "),
    ],
)
def test_an_error_says_what_to_pass_and_not_what_was(model: Any, images: object, says: str) -> None:
    with pytest.raises(MlflowException, match=says) as caught:
        model.predict(images)
    assert "PNG" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "form",
    [
        {"dataframe_records": [{"image": t, "id": 1} for t in TEXTS]},
        {"dataframe_split": {"columns": ["id", "image"], "data": [[1, t] for t in TEXTS]}},
        {"dataframe_split": {"index": [5, 6], "columns": ["image"], "data": [[t] for t in TEXTS]}},
        {"inputs": {"image": TEXTS}},
        {"inputs": {"image": TEXTS[0]}},
        {"instances": [{"image": t} for t in TEXTS]},
    ],
    ids=lambda form: next(iter(form)),
)
def test_json_is_read_as_mlflows_own_server_reads_it(model: Any, form: dict[str, Any]) -> None:
    import json

    schema = model.metadata.get_input_schema()
    theirs = model.predict(scoring_server.infer_and_parse_data(form, schema))
    ours, _ = read_json_body(json.dumps({**form, "params": None}).encode())
    pd.testing.assert_frame_equal(model.predict(pd.DataFrame({"image": ours})), theirs)


def test_csv_is_read_as_mlflows_own_server_reads_it(model: Any) -> None:
    import io

    text = pd.DataFrame({"id": [1, 2], "image": TEXTS}).to_csv(index=False)
    schema = model.metadata.get_input_schema()
    theirs = scoring_server.parse_csv_input(io.StringIO(text), schema)
    assert read_csv_body(text.encode())[0] == theirs["image"].tolist() == TEXTS


@pytest.fixture
def served(serving: Path) -> LoadedModel:
    """The model in the folder."""
    return load_model(serving / "artifacts" / "model.h5")


def _png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 8), colour).save(buffer, format="PNG")
    return buffer.getvalue()


def test_base64_becomes_pixels() -> None:
    for colour in ((255, 0, 0), (0, 0, 255)):
        pixels = read_image(base64_of(_png(colour)), IMAGE)
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8
        assert tuple(pixels[5, 5]) == colour


def test_every_way_to_write_base64_is_tolerated() -> None:
    data = next(d for i in range(400) if "+" in (t := base64_of(d := png(i))) and "/" in t)
    plain = base64_of(data)
    expected = read_image(data, IMAGE)
    for text in (
        plain,
        "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)),
        f"data:image/png;base64,{plain}",
        base64.urlsafe_b64encode(data).decode(),
        plain.rstrip("="),
        base64.urlsafe_b64encode(data).decode().rstrip("="),
    ):
        np.testing.assert_array_equal(read_image(text, IMAGE), expected)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "row 1: `image` must be a string of base64, but got a NoneType"),
        (7, "row 1: `image` must be a string of base64, but got a int"),
        ("", "row 1: `image` must not be empty"),
        ("not base64 !!", "row 1: `image` must be base64 of an image file's bytes"),
        ("data:image/png,abc", "row 1: a data: URI must be of the form"),
        (base64_of(b"<html>no image</html>"), "row 1: .*"),
        (base64_of(_png((1, 2, 3))[:40]), "row 1: .*"),
    ],
)
def test_a_bad_row_is_named_and_not_repeated(served: LoadedModel, value: object, says: str) -> None:
    with pytest.raises(ServingError, match=says) as caught:
        answer_request(served, [base64_of(_png((0, 0, 0))), value], refuse=True)
    if isinstance(value, str) and value:
        assert value not in str(caught.value)


def test_too_many_and_none(served: LoadedModel) -> None:
    with pytest.raises(ServingError, match=f"1 to {MAX_IMAGES} images, but got 0"):
        answer_request(served, [], refuse=True)
    with pytest.raises(ServingError, match=f"but got {MAX_IMAGES + 1}: split it"):
        answer_request(served, ["x"] * (MAX_IMAGES + 1), refuse=True)


def test_the_answer_has_a_column_a_class() -> None:
    rows = np.array([[0.2, 0.8], [0.9, 0.1]], np.float32)
    table = answers_table([Answer(row) for row in rows], ["ant", "bee"], has_novelty=False)
    assert list(table.columns) == [
        "predicted_label", "predicted_label_id", "probability", "p(ant)", "p(bee)"
    ]  # fmt: skip
    assert table["predicted_label"].tolist() == ["bee", "ant"]
    assert table["predicted_label_id"].tolist() == [1, 0]
    assert table["probability"].tolist() == pytest.approx([0.8, 0.9])
    assert table["p(ant)"].tolist() == pytest.approx([0.2, 0.9])


def test_the_best_k(model: Any) -> None:
    every = model.predict(pd.DataFrame({"image": FILES}))
    best = model.predict(pd.DataFrame({"image": FILES}), params={"top_k": 2})
    assert [name for name in best if name.startswith("p(")] == []
    for row in range(2):
        own = every.loc[row, [name for name in every if name.startswith("p(")]].astype(float)
        order = own.sort_values(ascending=False)
        assert [f"p({name})" for name in best["top_labels"][row]] == list(order.index[:2])
        assert best["top_probabilities"][row] == pytest.approx(list(order[:2]))
    assert (
        len(model.predict(pd.DataFrame({"image": FILES}), params={"top_k": 99})["top_labels"][0])
        == 3
    )


def test_below_the_threshold_there_is_no_label(model: Any) -> None:
    every = model.predict(pd.DataFrame({"image": FILES}))
    low, high = sorted(every["probability"])
    assert low < high
    found = model.predict(pd.DataFrame({"image": FILES}), params={"threshold": (low + high) / 2})
    sure = every["probability"] == high
    assert found["predicted_label"].tolist() == every["predicted_label"].where(sure, "").tolist()
    assert (
        found["predicted_label_id"].tolist() == every["predicted_label_id"].where(sure, -1).tolist()
    )
    assert found["probability"].tolist() == every["probability"].tolist()


def test_above_the_novelty_there_is_no_label(model: Any) -> None:
    files = [png(seed) for seed in range(40)]
    every = model.predict(pd.DataFrame({"image": files}))
    assert every["novelty"].between(0, 1).all()
    limit = float(every["novelty"].median())
    found = model.predict(pd.DataFrame({"image": files}), params={"max_novelty": limit})
    typical = every["novelty"] <= limit
    assert 0 < typical.sum() < len(files)
    assert found["predicted_label"].tolist() == every["predicted_label"].where(typical, "").tolist()
    assert found["novelty"].tolist() == every["novelty"].tolist()


def test_a_bad_row_may_be_answered_with_its_reason(model: Any) -> None:
    images = pd.DataFrame({"image": [b"no image", FILES[0], None, FILES[1]]})
    found = model.predict(images, params={"on_error": "row"})
    assert found["error"].astype(bool).tolist() == [True, False, True, False]
    assert found["predicted_label_id"].tolist()[::2] == [-1, -1]
    good = found.drop(columns="error").loc[[1, 3]].reset_index(drop=True)
    expected = model.predict(pd.DataFrame({"image": FILES}))
    assert good.astype(object).to_dict("records") == expected.astype(object).to_dict("records")
    assert found.loc[0, "probability"] is None
    none = model.predict(pd.DataFrame({"image": [b"no image"]}), params={"on_error": "row"})
    assert none["predicted_label"].tolist() == [""]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"top_k": -1}, "top_k must be a whole number from 0"),
        ({"threshold": 1.5}, "threshold must be a number from 0 to 1"),
        ({"max_novelty": -0.1}, "max_novelty must be a number from 0 to 1"),
        ({"on_error": "ignore"}, "on_error must be `refuse` or `row`"),
    ],
)
def test_a_mistaken_parameter_is_told(model: Any, params: dict[str, Any], says: str) -> None:
    with pytest.raises(MlflowException, match=says):
        model.predict(pd.DataFrame({"image": FILES}), params=params)


def test_a_row_does_not_depend_on_what_shares_its_request(model: Any) -> None:
    files = [png(number) for number in range(9)]
    together = model.predict(pd.DataFrame({"image": files}))
    for row, data in enumerate(files):
        alone = model.predict(pd.DataFrame({"image": [data]}))
        expected = together.iloc[[row]].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, expected, check_exact=True)
