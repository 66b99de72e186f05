"""Names that a person can read."""

import pytest

from headstart.tracking.training import data_in_words


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("data/sources/animal-silhouettes.yaml", "animal-silhouettes"),
        ("data/own/", "own"),
        ("https://me@host/pictures.tar.gz?token=x", "pictures"),
        ("/home/ann/.photos", ".photos"),
    ],
)
def test_a_source_by_its_last_part(source: str, name: str) -> None:
    assert data_in_words(source) == name
