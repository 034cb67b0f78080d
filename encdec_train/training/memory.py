"""Memory of the process: what a step frees is kept for the next one."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Tell the C library not to give large blocks back to the system.

    A step on a CPU allocates and frees blocks of tens of megabytes (logits, gradients of the embeddings). glibc maps
    each anew, and the system clears every page of it again (docs/log.md has what that costs). What is kept is what the
    largest step needed.

    Returns:
        Whether the C library took it; others than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
