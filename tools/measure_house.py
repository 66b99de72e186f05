"""How large the package is and how far one must read: `python -m tools.measure_house`.

The table has a line per room (first folder below src/headstart; "." holds the loose modules).
*Functions* are all `def`s by name: functions, methods, properties and nested ones, but no dunder,
no override of a method of a class of this package, and nothing that a decorator hands to a library
(commands, routes, validators, serialisers), since their callers cannot be seen. *Once* are those
whose name is read exactly once in the package, as a name or as an attribute; imports and tests
are no uses, and functions of one name share theirs. The longest function is one of all `def`s.

The three ways are traced over real runs of the stages in a scratch workspace, spawned processes
and threads included:

- image: JPEGs go from a source folder to feature rows (fetch, ingest, pack, extract);
- source: the fetch stage alone;
- rate: in a search of three networks over these features, the functions in whose arguments or
  locals the sampled learning rate stands (itself, or up to three levels deep in containers,
  objects and small arrays; of a function that is called often, 300 calls are looked at).

A function is on a way if it runs in the stage's own function, which begins when params are read
and ends before its one-line summary; functions of common/ and params/, bodies of modules and
classes, and what runs while a module is imported are not counted.
"""

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "headstart"
RATE = 0.0012345
LIMITED_NOT = ("heads", "search", "cache")  # rooms whose engines are replaced
HANDED_OVER = (
    "command",
    "callback",
    "route",
    "get",
    "post",
    "errorhandler",
    "field_validator",
    "model_validator",
    "field_serializer",
    "model_serializer",
)

# Becomes sitecustomize.py of every process of a stage. Each first sight is one appended line, so
# that processes which end without clean-up lose nothing.
TRACER = """
import os, sys, threading
package, log = os.environ["MEASURE_PACKAGE"] + os.sep, os.environ["MEASURE_LOG"]
rate = float(os.environ.get("MEASURE_RATE") or 0)
is_stage = os.environ["MEASURE_STAGE"] in " ".join(sys.orig_argv)
state = {"on": not is_stage, "root": None}
seen, looks = set(), {}

def stands(value, depth):
    if isinstance(value, float):
        return abs(value - rate) < 1e-10
    if depth == 0 or value is None or isinstance(value, (str, bytes, int, type)):
        return False
    if type(value).__module__ == "numpy":
        if getattr(value, "dtype", None) is None or value.dtype.kind != "f" or value.size > 2000:
            return False
        return bool((abs(value - rate) < 1e-10).any())
    if isinstance(value, dict):
        return any(stands(part, depth - 1) for part in list(value.values())[:200])
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(stands(part, depth - 1) for part in list(value)[:200])
    fields = getattr(value, "__dict__", None)
    return isinstance(fields, dict) and stands(fields, depth)

def importing(frame):
    while frame := frame.f_back:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            return True
    return False

def profile(frame, event, arg):
    if event not in ("call", "return"):
        return
    code = frame.f_code
    name = code.co_filename
    if not name.startswith(package) or not name.endswith(".py") or not code.co_flags & 1:
        return
    if is_stage and state["root"] is None and frame.f_globals.get("__name__") == "__main__":
        state.update(on=True, root=frame)
    if state["on"] and code not in seen and not code.co_name.startswith("<"):
        if rate:
            looks[code] = looks.get(code, 0) + 1
        is_on = not rate or looks[code] <= 600 and any(
            stands(value, 3) for value in list(frame.f_locals.values()))
        if is_on and not importing(frame):
            seen.add(code)
            with open(log, "a") as stream:
                stream.write(f"{name[len(package):]}\\t{code.co_qualname}\\n")
    if event == "return" and frame is state["root"]:
        state["on"] = False

threading.setprofile(profile)
sys.setprofile(profile)
"""


@dataclass
class Room:
    """What is counted of a room, or of the package."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    private: int = 0
    private_once: int = 0
    public_once: int = 0
    longest: int = 0
    longest_name: str = ""

    @property
    def once_percent(self) -> float:
        return 100 * (self.private_once + self.public_once) / max(self.functions, 1)


def count(package: Path) -> dict[str, Room]:
    """Count each room of a package, and "total"."""
    texts = {path: path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    uses = Counter[str]()
    methods: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            uses[node.id] += 1
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            uses[node.attr] += 1
        elif isinstance(node, ast.ClassDef):
            methods[node.name] = {part.name for part in node.body if isinstance(part, _DEF)}
    rooms: dict[str, Room] = {}
    total = Room()
    for path, tree in trees.items():
        inside = path.relative_to(package)
        own = rooms.setdefault(inside.parts[0] if len(inside.parts) > 1 else ".", Room())
        overrides = {
            part
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for part in node.body
            if isinstance(part, _DEF)
            and any(part.name in methods.get(_last_name(base), ()) for base in node.bases)
        }
        for room in (own, total):
            room.files += 1
            room.lines += len(texts[path].splitlines())
            for node in ast.walk(tree):
                if not isinstance(node, _DEF):
                    continue
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > room.longest:
                    room.longest, room.longest_name = length, f"{inside}:{node.name}"
                handed = any(_last_name(each) in HANDED_OVER for each in node.decorator_list)
                if node.name.startswith("__") or handed or node in overrides:
                    continue
                is_private = node.name.startswith("_")
                room.functions += 1
                room.private += is_private
                if uses[node.name] == 1:
                    room.private_once += is_private
                    room.public_once += not is_private
    return {**rooms, "total": total}


_DEF = (ast.FunctionDef, ast.AsyncFunctionDef)


def _last_name(node: ast.expr) -> str:
    """`command` of `app.command("x")`, `Base` of `rooms.Base[int]`."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def trace_ways() -> dict[str, list[list[str]]]:
    """The (file, function) pairs of each way, by running the stages in a scratch workspace."""
    import numpy as np
    import yaml
    from PIL import Image

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "workspace"
        chance = np.random.default_rng(0)
        for label, level in (("dark", 60), ("light", 190)):
            (root / "images" / label).mkdir(parents=True)
            for number in range(24):
                noise = chance.integers(-60, 60, (6, 6, 3)) + level
                image = Image.fromarray(noise.astype(np.uint8)).resize((64, 64))
                image.save(root / "images" / label / f"{number}.jpg", quality=90)
        params = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))
        params["data"]["source"] = "images"
        params["image"]["size_px"] = 64
        params["extract"]["weights"] = "random"
        search = params["search"]
        fixed = {"kind": "network", "schedule": "constant", "epochs": 3}
        search.update(n_trials=3, sampler="random")
        search["default_head"].update(fixed, layers="all", learning_rate=RATE)
        search["space"].update(fixed, learning_rate={"choices": [RATE]})
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), "utf-8")
        (root / "data").mkdir()
        header = (REPOSITORY / "data" / "splits.csv").read_text("utf-8").splitlines()[0]
        (root / "data" / "splits.csv").write_text(header + "\n", "utf-8")
        for command in (["git"], [sys.executable, "-m", "dvc"]):
            subprocess.run([*command, "init", "-q"], cwd=root, check=True)
        (Path(scratch) / "sitecustomize.py").write_text(TRACER, "utf-8")
        found = {stage: _trace_stage(stage, root) for stage in ("fetch", "ingest", "pack")}
        found["extract"] = _trace_stage("extract", root)
        rate = _trace_stage("search", root, RATE)
    image_way = set().union(*found.values())
    ways = {"image": image_way, "rate": rate, "source": found["fetch"]}
    return {name: [list(pair) for pair in sorted(way)] for name, way in ways.items()}


def _trace_stage(stage: str, root: Path, rate: float | None = None) -> set[tuple[str, str]]:
    log = root.parent / f"{stage}.log"
    log.touch()
    environment = os.environ | {
        "PYTHONPATH": f"{root.parent}{os.pathsep}{PACKAGE.parent}",
        "HEADSTART_CACHE": str(root.parent / "cache"),
        "MEASURE_PACKAGE": str(PACKAGE),
        "MEASURE_LOG": str(log),
        "MEASURE_STAGE": f"headstart.stages.{stage}",
        "MEASURE_RATE": "" if rate is None else str(rate),
    }
    command = [sys.executable, "-m", f"headstart.stages.{stage}"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"measure_house: {stage} failed:\n{done.stdout}{done.stderr}")
    pairs = {tuple(line.split("\t")) for line in log.read_text("utf-8").splitlines()}
    return {(file, name) for file, name in pairs if file.split("/")[0] not in ("common", "params")}


def over_limits(rooms: dict[str, Room], ways: dict[str, list[list[str]]]) -> list[str]:
    """What `--check` complains of."""
    over = []
    for name, room in rooms.items():
        if name in (*LIMITED_NOT, "total"):
            continue
        if room.once_percent > 15:
            over.append(f"{name}: {room.once_percent:.1f} % of functions used once, limit 15 %")
        if room.longest > 90:
            over.append(f"{name}: {room.longest_name} has {room.longest} lines, limit 90")
    n_files = len({file for file, _ in ways["source"]})
    if n_files > 8:
        over.append(f"way of data.source: {n_files} files, limit 8")
    return over


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.measure_house")
    parser.add_argument("--check", action="store_true", help="exit 1 with what is over the limits")
    parser.add_argument("--json", type=Path, help="write all figures and ways to this file")
    given = parser.parse_args()
    rooms, ways = count(PACKAGE), trace_ways()
    print("room         files  lines  functions  private  once: private  public      %  longest")
    for name, room in rooms.items():
        print(
            f"{name:<12} {room.files:5} {room.lines:6} {room.functions:10} {room.private:8} "
            f"{room.private_once:14} {room.public_once:7} {room.once_percent:6.1f}  "
            f"{room.longest} {room.longest_name}"
        )
    for name, way in ways.items():
        files = Counter(file for file, _ in way)
        inside = Counter(file.split("/")[0] for file in files)
        told = ", ".join(f"{room} {n}" for room, n in sorted(inside.items()))
        print(f"way of {name:<7} {len(files):3} files {len(way):4} functions  ({told})")
    if given.json:
        figures = {name: asdict(room) for name, room in rooms.items()}
        given.json.write_text(json.dumps({"rooms": figures, "ways": ways}, indent=1) + "\n")
    over = over_limits(rooms, ways) if given.check else []
    if over:
        raise SystemExit("over the limits:\n  " + "\n  ".join(over))


if __name__ == "__main__":
    main()
