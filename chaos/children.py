"""What the rig's own processes are started with."""

import os
import sys


def environment() -> dict[str, str]:
    """That of a process that is to find the packages that this one finds."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
