"""docs/performance.md, and what README.md says of accuracy and speed, from bench/results/*.json.

python -m bench.performance
"""

import json
import re
from typing import Any

from bench.common import RESULTS

ROOT = RESULTS.parent.parent
DOCUMENT, README = ROOT / "docs" / "performance.md", ROOT / "README.md"
_ACCURACY = "<!-- accuracy: made by bench/performance.py -->"
_SPEED = "<!-- speed: made by bench/performance.py -->"
_DATA = {
    "animal silhouettes": "1,500 animal silhouettes, 10 classes (the default)",
    "600 photos": "600 photos, 3 classes",
}
_ENCODERS = {"efficientnet-lite0": "EfficientNet-Lite0", "vgg16": "VGG16"}
_HEAD = """# Performance

Made from `bench/results/*.json` by `python -m bench.performance`; the figures are those files'.
Each bench prints its table, with peers measured side by side in the same run. Machines are shared
and noisy: read ratios rather than seconds.
"""


def main() -> None:
    """Write the document."""
    results = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(RESULTS.glob("*.json"))]
    DOCUMENT.write_text("\n".join([_HEAD, *map(_section, results)]), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    for mark, block in ((_ACCURACY, accuracy_text()), (_SPEED, speed_text())):
        old = re.compile(rf"{re.escape(mark)}.*?(?=\n## |\n<!-- )", re.DOTALL)
        text = old.sub(f"{mark}\n\n{block}", text)
    README.write_text(text, encoding="utf-8")


def accuracy_text() -> str:
    """The table of README.md about accuracy."""
    result = json.loads((RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    rows = [
        [
            _DATA[data],
            _ENCODERS[encoder],
            f"{100 * ours:.1f} ± {100 * ours_sd:.1f} %",
            f"{100 * theirs:.1f} ± {100 * theirs_sd:.1f} %",
            f"{seconds:.0f} s",
        ]
        for data, encoder, ours, ours_sd, theirs, theirs_sd, seconds in result["rows"]
    ]
    headers = [
        "data", "encoder", "test accuracy, 5 split seeds", "logistic regression on the same",
        "`dvc repro`",
    ]  # fmt: skip
    return "\n".join(
        [
            *_table(headers, rows),
            "",
            "Mean and standard deviation on two CPU cores, by `bench/accuracy.py`; `dvc repro` is",
            "the median, with all features but the first seed's from the cache.",
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
