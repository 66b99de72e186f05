"""No credential leaves."""

import pytest

from headstart.common.secrets import without_secrets


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("postgresql://ann:s3cret@127.0.0.1/runs", "postgresql://127.0.0.1/runs"),
        ("at https://ann:p%40ss@host:5000/x, then", "at https://host:5000/x, then"),
        ("s3://bucket/key?X-Amz-Signature=abc&a=1", "s3://bucket/key?X-Amz-Signature=***&a=1"),
        ("postgresql://u:s3/x@h/db", "postgresql://h/db"),
        ("http://a:b@c@host/x", "http://host/x"),
        ("http://127.0.0.1:5000/x/me@example", "http://127.0.0.1:5000/x/me@example"),
        ("mail me@example.org", "mail me@example.org"),
        ("data/own/cats", "data/own/cats"),
    ],
)
def test_addresses_lose_their_credentials(given: str, wanted: str) -> None:
    assert without_secrets(given) == wanted


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    assert without_secrets("login failed for hunter22") == "login failed for ***"
