"""The model in Python, as `mlflow.pyfunc.load_model` gives it."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from headstart.serving.requests import read_csv, read_json
from tests.serving.conftest import base64_of, png

FILES = [png(1), png(2)]
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
    ours = read_json(json.dumps({**form, "params": None}).encode())
    pd.testing.assert_frame_equal(model.predict(pd.DataFrame({"image": ours})), theirs)


def test_csv_is_read_as_mlflows_own_server_reads_it(model: Any) -> None:
    import io

    text = pd.DataFrame({"id": [1, 2], "image": TEXTS}).to_csv(index=False)
    schema = model.metadata.get_input_schema()
    theirs = scoring_server.parse_csv_input(io.StringIO(text), schema)
    assert read_csv(text.encode()) == theirs["image"].tolist() == TEXTS
