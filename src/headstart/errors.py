"""Every error a user can mend. Each message states the rule, what was got, and the remedy.

The command line prints these without a traceback; anything else is a defect of ours.
"""


class HeadstartError(Exception):
    """Base class: something the user can mend."""


class ParamsError(HeadstartError):
    """params.yaml holds something that is not allowed."""


class DataError(HeadstartError):
    """The images, archives or labels given cannot be used as they are."""


class FormatError(HeadstartError):
    """A file is not of the format and version that this code reads."""


class WeightsError(HeadstartError):
    """Backbone weights are missing, or not the ones they claim to be."""


class BackboneError(HeadstartError):
    """An unknown backbone, layer or runtime, or one that cannot take the image size."""


class SearchError(HeadstartError):
    """The search for a head cannot start or go on."""


class TrainingError(HeadstartError):
    """A model cannot be trained, assembled or exported as asked."""


class TrackingError(HeadstartError):
    """The tracking database or server lacks something, or cannot be reached."""


class ServingError(HeadstartError):
    """A prediction request cannot be answered."""


# Libraries whose own errors are told to the user as ours are: what they hold is beyond our checks.
_TRACKING_LIBRARIES = {"mlflow", "sqlalchemy", "sqlite3", "alembic"}


def of_tracking_library(error: Exception) -> TrackingError | None:
    """The error of MLflow or its database as one of ours; None if it is of something else."""
    if type(error).__module__.partition(".")[0] not in _TRACKING_LIBRARIES:
        return None
    return TrackingError(
        f"MLflow must be able to use its database, but it said: {one_line(error)}: look with "
        "`headstart doctor`; `headstart --debug` before a command shows the traceback"
    )


def one_line(error: BaseException, limit: int = 300) -> str:
    """First line of an error's text, for tables and tags."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
