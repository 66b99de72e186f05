"""The short summary after `make demo`: what came out, where it is, and what to try next."""

from headstart import files
from headstart.paths import Project
from headstart.pipeline import read_report, seconds_per_stage


def summarise(project: Project) -> str:
    """A text of about twenty lines; every figure is read from the reports."""
    metrics = read_report(project, "metrics.json")
    registration = read_report(project, "registration.json")
    seconds = seconds_per_stage(project)
    stages = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    accuracy = (
        f"{100 * metrics['accuracy']:.1f} % (95 % interval {100 * metrics['accuracy_ci95_low']:.1f}"
        f" to {100 * metrics['accuracy_ci95_high']:.1f}) on {metrics['n_test']} images"
    )
    name = registration["model_name"]
    study = files.read_json(project.best_head)["study"]
    return "\n".join(
        [
            "",
            f"Test accuracy   {accuracy}",
            f"Registered as   {name} version {registration['version']}, {registration['alias']}",
            "Report          reports/evaluation/index.html, reports/data/index.html,",
            "                reports/search/index.html",
            "Model           models/model.h5 (loads in plain Keras)",
            f"Seconds         {stages}",
            "",
            "With the environment active (`. .venv/bin/activate`), try:",
            "  mlflow ui -w 1                        # the runs, side by side",
            f"  mlflow models serve -m models:/{name}@champion --env-manager local -p 5001",
            "  headstart serve                       # the same app, behind limits",
            "  headstart predict data/fetched        # classes of images",
            "  dvc exp run -S seed=1                 # another experiment",
            f"  optuna-dashboard .headstart/studies/{study}.journal",
        ]
    )
