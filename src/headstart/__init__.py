"""Transfer learning on image folders, as an experiment one can trust.

From Python: `headstart.fit(folder)` and `headstart.load_model(path)`; see projects/python_api.py.
For scikit-learn: `headstart.HeadstartClassifier()`; see projects/sklearn_estimator.py.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["HeadstartClassifier", "__version__", "fit", "load_model"]

if TYPE_CHECKING:
    from headstart.projects.python_api import fit
    from headstart.projects.python_api import load_classifier as load_model
    from headstart.projects.sklearn_estimator import HeadstartClassifier


def __getattr__(name: str) -> Any:
    # The version alone must load nothing.
    if name == "fit":
        from headstart.projects.python_api import fit

        return fit
    if name == "load_model":
        from headstart.projects.python_api import load_classifier

        return load_classifier
    if name == "HeadstartClassifier":
        from headstart.projects.sklearn_estimator import HeadstartClassifier

        return HeadstartClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
