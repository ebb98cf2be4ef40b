"""What has to be loaded before the first OpenGL context of a process."""

from __future__ import annotations

import importlib
from contextlib import suppress
from functools import cache


@cache
def prepare_opengl() -> None:
    """Load triton, where it is installed; call this before anything may make an OpenGL context.

    Triton (which the default torch of Linux brings) and the software OpenGL of Mesa each carry an LLVM of their own. In
    this order both work; triton loaded after a context was made ends the process with a segmentation fault, and torch
    loads it with the first optimizer.
    """
    with suppress(ImportError):
        importlib.import_module("triton")
