"""Finds processes in which gRPC cannot work, before gRPC hangs."""

import os
import sys

_FORKED = (
    "this process was forked from one that had opened a client, and gRPC does not survive that: start workers by spawn "
    "or forkserver (multiprocessing.get_context('spawn')), or open the first client in the worker, after the fork"
)
_PATCHED = (
    "gevent has replaced this process's threads or select, and a client's event loop would block for ever: leave both "
    "out of its patch (monkey.patch_all(thread=False, select=False)), or open the client in a process without gevent"
)

# gRPC's own fork handlers start threads in the child process. These crash there, whether the child uses gRPC or not.
# The handlers are on by default; gRPC reads this variable when it is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_first_used_by: int | None = None


def check_usable() -> None:
    """Call this before a channel is made. Raises RuntimeError, with the remedy, if gRPC cannot work in this process."""
    global _first_used_by
    check_not_forked()
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and any(map(monkey.is_module_patched, ("threading", "select"))):
        raise RuntimeError(_PATCHED)
    _first_used_by = os.getpid()


def check_not_forked() -> None:
    """Raises RuntimeError, with the remedy, where gRPC was used before this process was forked."""
    if is_forked():
        raise RuntimeError(_FORKED)


def is_forked() -> bool:
    """Whether this process was forked from a process that had used gRPC."""
    return _first_used_by not in (None, os.getpid())
