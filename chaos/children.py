"""What the rig's own processes are started with."""

import os
import sys


def environment(*first: str) -> dict[str, str]:
    """That of a process that is to find the packages that this one finds, and before those what is in these folders."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*first, *sys.path])}
