"""In the place of numba in servers that search no image: to import the real one is a third of their start."""

from collections.abc import Callable
from typing import Any


def njit(**_options: Any) -> Callable[[Any], Any]:
    """Leave a function as it is."""
    return lambda function: function
