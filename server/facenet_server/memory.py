"""The process's own memory: that it stays flat, and that looking through it stops nobody."""

import ctypes
import gc
import sys

_M_ARENA_MAX = -8  # glibc, malloc.h


def limit_heaps(count: int) -> None:
    """Have the C library share so many heaps among all threads. Unasked, glibc gives threads heaps of their own, up to
    eight a core, and none is ever given back whole: a server's memory goes on rising for hours. Elsewhere nothing
    happens."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_ARENA_MAX, count)


def settle() -> None:
    """Whatever is there by now stays: Python's collector need not look through it, which stops all calls for some 60
    milliseconds each time."""
    gc.collect()
    gc.freeze()
