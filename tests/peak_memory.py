"""The peak memory of one stage, which runs in a process of its own."""

_CODE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", f"headstart.stages.{sys.argv[1]}"])
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else peak * 1024)
raise SystemExit(done.returncode)
"""


def stage_command(python: str, stage: str) -> list[str]:
    """A command that runs a stage; the last line it prints is the stage's peak in bytes.

    The peak is of the stage alone: of all that the command has waited for, it is the only child.
    """
    return [python, "-c", _CODE, stage]
