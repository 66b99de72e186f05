"""Keeping credentials out of everything that is logged or printed."""

import os
import re
from functools import cache

# A password may hold slashes and further @ signs; what looks like host:port/ is none.
_USERINFO = re.compile(
    r"(?P<scheme>[a-zA-Z][\w+.-]*://)(?:[^/:@\s'\"]*:(?!\d+/)[^\s'\"]*|[^/@\s'\"]+)@(?=[\w\[])"
)
_QUERY = re.compile(
    # MLflow's key of a view of its run table names that view, and opens nothing else.
    r"(?P<name>[?&](?!viewStateShareKey=)(?:[\w-]*(?:token|secret|password|signature|credential|key)[\w-]*)=)[^&\s'\"]+",
    re.IGNORECASE,
)
_SECRET_NAMES = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE
)
_MIN_LENGTH = 6


@cache  # a server's log asks for every name again with every line
def _is_secret(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None


def without_secrets(text: str) -> str:
    """`text` without user names and passwords of addresses, and without secrets of the environment.

    Values of environment variables whose names say that they are secret (MLFLOW_TRACKING_PASSWORD,
    AWS_SECRET_ACCESS_KEY, …) are replaced wherever they occur.
    """
    text = _USERINFO.sub(r"\g<scheme>", text)
    text = _QUERY.sub(r"\g<name>***", text)
    # Other threads may change the environment meanwhile, MLflow's among them.
    for name in list(os.environ):
        if _is_secret(name) and len(value := os.environ.get(name, "")) >= _MIN_LENGTH:
            text = text.replace(value, "***")
    return text
