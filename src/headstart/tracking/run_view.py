"""The view of MLflow's run table that comes with an experiment: models, the best first.

MLflow 3 keeps a saved view of the table as a tag of the experiment, `mlflow.sharedViewState.<id>`:
JSON with a name, times, and the state of the page, itself as JSON. A link names the id.
"""

import json

VIEW_ID = "headstart-models"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"
_NAME = "attributes.`Run Name`"
_COLUMNS = (
    "metrics.`val_accuracy`",
    "metrics.`val_log_loss`",
    "metrics.`test_accuracy`",
    "params.`extract.encoders`",
    "params.`head.layers`",
    "params.`head.kind`",
    "metrics.`mflops`",
    "metrics.`model_mb`",
)
# MLflow shows when a view was made; ours comes with the experiment.
_MADE_MS = 1_767_225_600_000


# Runs of models by out-of-fold accuracy, the best first, with what matters of each.
_STATE = {
    "searchFilter": "tags.`headstart.kind` = 'model'",
    "orderByKey": "metrics.`val_accuracy`",
    "orderByAsc": False,
    "selectedColumns": list(_COLUMNS),
    # MLflow's own columns by the ids that it gives them; time and duration come last.
    "columnOrder": [_NAME, *_COLUMNS, "runDateAndNestInfo", "duration"],
    "columnWidths": {_NAME: 260} | dict.fromkeys(_COLUMNS, 110),
    # The charts beside the table would leave room for the names of runs alone.
    "viewMaximized": True,
}
MODEL_VIEW = json.dumps(
    {
        "name": "Models, the best first",
        "createdAt": _MADE_MS,
        "updatedAt": _MADE_MS,
        "state": json.dumps(_STATE),
    }
)


def view_path(experiment_id: str) -> str:
    """Return what comes after a server's address to open the view."""
    page = f"/#/experiments/{experiment_id}/runs"
    return f"{page}?workflowType=machine_learning&viewStateShareKey={VIEW_ID}"
