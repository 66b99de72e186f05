"""Keeping freed memory for the next image.

glibc gives large freed blocks back to the kernel, which has to clear the same pages again for the
next image: in a virtual machine that takes nearly as long as decoding a photograph.
"""

import contextlib
import ctypes
import sys

# mallopt(3): what is larger is mapped by itself; this is the most that glibc takes.
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 32 << 20
# Of free memory at the end of the heap, so much is kept.
_M_TRIM_THRESHOLD, _KEPT_BYTES = -1, 128 << 20


def keep_freed_memory() -> None:
    """Let this process keep up to 128 MB of freed memory; does nothing without glibc."""
    if not sys.platform.startswith("linux"):
        return
    # Other C libraries on Linux have no mallopt.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
