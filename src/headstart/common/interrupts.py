"""Ctrl-C: one line, exit status 130, and no process left behind."""

import _thread
import atexit
import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any

from headstart.common.terminal import say

STATUS = 128 + signal.SIGINT
_OWN_END_S, _LAST_END_S = 10, 20


def end_plainly_when_interrupted() -> None:
    """From now on an interrupt that nobody catches is told in one line, without a traceback.

    One that comes when the work is done and Python shuts down changes nothing: by then Python has
    given the signal back to the system, which would end the process as if it had failed.
    """
    sys.excepthook = _tell
    sys.unraisablehook = _interrupt_again
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """An interrupt that fell into a destructor, where Python drops exceptions, comes once more.

    TensorFlow's weak references make that one in a few. From a thread, a little later: here it
    would be dropped again.
    """
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    again = threading.Timer(0.05, _interrupt_main)
    again.daemon = True
    again.start()


def _interrupt_main() -> None:
    if hasattr(signal, "pthread_kill"):
        # Unlike the other, it ends a wait of that thread too.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:  # Windows
        _thread.interrupt_main()


def _tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
        return
    tell_interrupted()
    raise SystemExit(STATUS)


def tell_interrupted() -> None:
    """Say that this process was interrupted; another Ctrl-C then ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name = Path(sys.argv[0]).stem
    # From a new line: the terminal has echoed ^C, or a progress bar stands in this one.
    start = "\n" if sys.stderr.isatty() else ""
    say(f"{start}{name}: interrupted; the same command resumes it", error=True)


@contextlib.contextmanager
def children_ignoring_interrupts() -> Iterator[None]:
    """Begin processes that leave Ctrl-C to this one, from their first instruction.

    A terminal sends it to all of them, and each would print a traceback of its own. This process is
    interrupted when they have begun, so that it knows of all of them.
    """
    # Begun first, because it unblocks the signal.
    resource_tracker.ensure_running()
    # Children inherit what is blocked (on Windows nothing is); but here another thread may take the
    # signal, for which Python then interrupts the main one.
    can_block = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else set()
    taken: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if is_main:
        handler = signal.signal(signal.SIGINT, lambda number, _: taken.append(number))
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if taken:
            signal.raise_signal(signal.SIGINT)


def run_command(
    command: Sequence[str], *, shown: bool = False, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end; when this process is interrupted, the command has ended too.

    Args:
        shown: copy its output, line by line, to standard error while it runs.
        options: of `subprocess.Popen`.
    """
    if shown:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            if not shown:
                output, errors = process.communicate()
                return subprocess.CompletedProcess(command, process.returncode, output, errors)
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                say(line.removesuffix("\n"), error=True)
            return subprocess.CompletedProcess(command, process.wait(), "".join(lines), "")
        except KeyboardInterrupt:
            _end(process)
            raise


def _end(process: "subprocess.Popen[str]") -> None:
    """Wait for a command that the terminal has interrupted too; else interrupt all of it."""
    import psutil

    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_OWN_END_S)
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        for child in reversed(family):
            # On Windows no process can be sent this signal, which is a ValueError.
            with contextlib.suppress(psutil.NoSuchProcess, ValueError):
                child.send_signal(signal.SIGINT)
    try:
        process.wait(_LAST_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
