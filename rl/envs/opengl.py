"""Load what must come before the first OpenGL context of a process."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import cache


@cache
def prepare_opengl() -> None:
    """Load triton if it is installed; call this before any code that may make an OpenGL context.

    Triton (installed with the default torch on Linux) and Mesa's software OpenGL each contain their own LLVM. Triton
    first, then OpenGL works. In the other order the process ends with a segmentation fault, and torch would load
    triton late, with the first optimizer.
    """
    with suppress(ImportError):
        importlib.import_module("triton")
