"""docs/performance.md and docs/measurements.md, and README.md's figures, from bench/results/*.json.

performance.md is one screen: what was measured, against what, met or missed. measurements.md has
every table and target.

python -m bench.performance
"""

import json
import re
from typing import Any

from bench.common import RESULTS

ROOT = RESULTS.parent.parent
PERFORMANCE, MEASUREMENTS = ROOT / "docs" / "performance.md", ROOT / "docs" / "measurements.md"
README = ROOT / "README.md"
_ACCURACY = "<!-- accuracy: made by bench/performance.py -->"
_SPEED = "<!-- speed: made by bench/performance.py -->"
_PERFORMANCE_HEAD = """# Performance

What was measured, against what, and whether the target was met. A range is over data sets or
encoders. Machines are shared and noisy: read ratios rather than seconds. Every table and target is
in [measurements.md](measurements.md). Both are made from `bench/results/` by `make performance`.
"""
_MEASUREMENTS_HEAD = """# Measurements

Made from `bench/results/*.json` by `make performance`. Each bench prints its table, with peers
measured side by side in the same run.
"""
# What is measured, against what, by which bench, and the targets that say so.
_SUBJECTS = (
    ("log loss after temperature scaling", "before it", "calibration", "log loss after"),
    ("telling images of unknown classes", "chance: 0.5", "novelty", "AUROC of novelty"),
    ("trials per second", "an Optuna loop around Keras `fit`", "search", "trials a second"),
    ("the default search", "a bound", "search", "the default search"),
    ("wrong champions among equals", "2.5 % nominal", "gate", "wrong champions"),
    ("power at two points", "less that of a 15 % split", "gate", "power at 2 points"),
    ("two workers", "one", "search", "two workers over one"),
    ("MLflow's logging", "the search's own time", "search", "MLflow logging"),
    ("extraction, float32", "the better of two Keras loops", "extract", "float32 beside"),
    ("extraction, bfloat16", "the better of two Keras loops", "extract", "bfloat16 beside"),
    ("extraction", "the bound by decoding and the network", "extract", "share of the bound"),
    ("extraction of 1 % new images", "of all", "extract", "1 % new"),
    ("memory at 5,000 images", "at 500", "extract", "memory at 5000"),
    ("files to features", "before images were decoded once", "pipeline", "over before"),
    ("files to features", "the bound by both", "pipeline", "share of the bound"),
    ("files to features, 12 MP", "the better of two Keras loops", "pipeline", "the better peer"),
    ("the server, batches of 32", "the model in process", "serve", "batches of 32 over in"),
    ("the server, 32 clients", "the model in process", "serve", "32 clients over"),
    ("the server, batches of 32", "MLflow's TensorFlow flavor", "serve", "the tensorflow flavor"),
    ("reading in ingest", "the bound by decoding", "ingest", "ingest: reading"),
    ("decoding 12 megapixels", "in full", "decode", "at a fraction over"),
    ("images.h5 in sequence", "decoding the files", "ingest", "store: sequential, against dec"),
    ("photos taken for another's copy", "none", "near_duplicates", "different photos"),
    ("fine-tuning's loop", "the bare training step", "fine_tune", "loop beside"),
    ("fine-tuning, the whole stage", "", "fine_tune", "minutes of"),
    ("`dvc repro` with nothing to do", "a plain DVC project", "tracking", "to do, beside"),
)


def main() -> None:
    """Write both documents, and README.md's figures."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]
    PERFORMANCE.write_text(performance_text(), encoding="utf-8")
    sections = "\n".join([_MEASUREMENTS_HEAD, *map(_section, results)])
    MEASUREMENTS.write_text(sections, encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    for mark, block in ((_ACCURACY, accuracy_text()), (_SPEED, speed_text())):
        old = re.compile(rf"{re.escape(mark)}.*?(?=\n## |\n<!-- )", re.DOTALL)
        text = old.sub(f"{mark}\n\n{block}", text)
    README.write_text(text, encoding="utf-8")


def performance_text() -> str:
    """docs/performance.md."""
    rows = []
    accuracy = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    gains = [float(row[7]) for row in accuracy["rows"]]
    of_two = [target for target in accuracy["targets"] if "two encoders" in target["name"]]
    met = _met([target for target in accuracy["targets"] if target not in of_two])
    rows += [
        ["points of accuracy gained", "logistic regression, last map", _range(gains, ""), met],
        [
            "the same, of two encoders",
            "the default",
            _range([of_two[0]["value"]], ""),
            _met(of_two),
        ],
    ]
    for what, peer, bench, name in _SUBJECTS:
        targets = [target for target in _targets(bench) if name in target["name"]]
        unit = str(targets[0]["unit"])
        rows.append([what, peer, _range([t["value"] for t in targets], unit), _met(targets)])
    missed = []
    for path in sorted(RESULTS.glob("*.json")):
        found = [
            f"{target['name']}: {_cell(target['value'])} {target['unit']}".strip()
            + f" ({target['sense']} {target['target']:g})"
            for target in json.loads(path.read_text(encoding="utf-8"))["targets"]
            if not target["met"]
        ]
        if found:
            missed.append(f"- `bench/{path.stem}.py`: {'; '.join(found)}")
    table = _table(["measured", "against", "value", "target"], rows)
    return "\n".join(
        [_PERFORMANCE_HEAD, *table, "", "Missed, with what was wanted:", "", *missed, ""]
    )


def _range(values: list[float], unit: str) -> str:
    low, high = min(values), max(values)
    text = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
    return f"{text} {unit}".strip()


def _met(targets: list[dict[str, Any]]) -> str:
    if all(target["met"] for target in targets):
        return "met"
    n_met = sum(target["met"] for target in targets)
    return "**missed**" if n_met == 0 else f"{n_met} of {len(targets)} met"


def accuracy_text() -> str:
    """The table of README.md about accuracy."""
    result = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    rows = []
    for values in result["rows"]:
        data, ours, ours_sd, ours_loss, theirs, theirs_sd, theirs_loss, gain, error, seconds, _ = (
            values
        )
        rows.append(
            [
                data,
                f"{100 * ours:.1f} ± {100 * ours_sd:.1f} %",
                f"{100 * theirs:.1f} ± {100 * theirs_sd:.1f} %",
                f"{gain:+.2f} ± {error:.2f}" if error else f"{gain:+.2f}",
                f"{ours_loss:.3f} / {theirs_loss:.3f}",
                f"{seconds:.0f} s",
            ]
        )
    headers = [
        "data", "accuracy ± sd", "logistic regression ± sd", "points gained ± error",
        "log loss, both", "search and training",
    ]  # fmt: skip
    return "\n".join(
        [
            *_table(headers, rows),
            "",
            "EfficientNet-Lite0, unless said, on two CPU cores, by `bench/accuracy.py`: five split",
            "seeds, or ten draws of few images. Silhouettes are judged on pictures that had no",
            "part in any choice.",
            "Logistic regression is scikit-learn's, on the pooled last map of the same images.",
            "",
        ]
    )


def speed_text() -> str:
    """The sentence of README.md about speed."""
    search = [t["value"] for t in _targets("search") if t["name"].startswith("trials a second")]
    extract = {t["name"]: t["value"] for t in _targets("extract")}
    lite0 = "efficientnet-lite0: {} beside the better peer"
    tuned = {t["name"]: t["value"] for t in _targets("fine_tune")}
    return (
        f"On the same two cores the search trains {min(search):.0f} to {max(search):.0f} times as "
        "many heads a second as an Optuna\nloop around Keras `fit`; extraction is "
        f"{extract[lite0.format('float32')]:.1f} times as fast as "
        "`image_dataset_from_directory` with\n`predict` in float32 and "
        f"{extract[lite0.format('bfloat16')]:.1f} times in bfloat16; fine-tuning the default takes "
        f"{tuned['minutes of the train stage']:.0f} minutes.\n"
        "Everything measured, with what was missed: [docs/performance.md](docs/performance.md).\n"
    )


def _targets(name: str) -> list[dict[str, Any]]:
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    targets: list[dict[str, Any]] = result["targets"]
    return targets


def _section(result: dict[str, Any]) -> str:
    lines = [f"## bench/{result['name']}.py", "", f"Measured on {result['machine']}.", ""]
    lines += _table(result["headers"], result["rows"])
    if result["targets"]:
        lines += ["", "Targets:", ""]
        rows = [
            [
                t["name"],
                t["value"],
                f"{t['sense']} {t['target']:g} {t['unit']}",
                "met" if t["met"] else "**missed**",
            ]
            for t in result["targets"]
        ]
        lines += _table(["what", "measured", "target", ""], rows)
    return "\n".join([*lines, ""])


def _table(headers: list[str], rows: list[list[Any]]) -> list[str]:
    return [
        "| " + " | ".join(headers) + " |",
        "|" + "---|" * len(headers),
        *("| " + " | ".join(map(_cell, row)) + " |" for row in rows),
    ]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
