"""Loops over single numbers as machine code, by numba."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function, compiled when it is first called, to run beside other threads; kept on disk where that can be.

    Arithmetic stays as it is written: nothing is reordered or fused, a division by zero is what numpy makes of it.
    """
    try:
        return cast(Function, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # there is no folder to keep it in
        return cast(Function, numba.njit(nogil=True, error_model="numpy")(function))
