"""The one exception a user meets, and how an exception of a plug-in becomes one.

It sits here because `rewards` is the bottom of the import order.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """Report bad input in one line: what, where, what was expected, what to do.

    The command line prints the message alone and exits with code 2; everything else is a bug and keeps its traceback.
    """


class BadNumbers(UserError):
    """A number that nothing must be learned from. `tensors` are what led to it, by name, for a file to look into."""

    def __init__(self, message: str, **tensors: Any) -> None:
        super().__init__(message)
        self.tensors = tensors


def defined_at(target: Callable[..., Any]) -> str:
    """Return `FILE:LINE` of a function, of a class or of what an instance does when called; empty if unknown."""
    function: Any = target
    if inspect.isclass(target):
        function = target.__init__
    elif not inspect.isroutine(target):
        function = type(target).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


@contextmanager
def blamed(what: str, file: str) -> Iterator[None]:
    """Turn what code of the user raises into a `UserError` with its file and line.

    Args:
        what: who raised it, such as "reward term 'smooth'".
        file: where that code is; of the frames of a traceback, the innermost in this file is named.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and str(error).startswith(what):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((f for f in reversed(frames) if f.filename == file), None)
        told = f": {error}"
        if not isinstance(error, UserError):
            told, frame = f" raised {type(error).__name__}: {error}", frame or frames[-1]
        at = f"; see {frame.filename}:{frame.lineno}" if frame else ""
        raise UserError(what + told.replace("\n", " ") + at) from error
