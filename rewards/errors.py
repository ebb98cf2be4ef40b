"""`UserError`, the exception for bad input, and helpers for its messages: hints, and errors raised by plug-ins.

It is in `rewards` because all other packages may import `rewards`.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """Bad input, reported in one line: what, where, what was expected, what to do.

    The command line prints only the message and exits with code 2. Any other exception is a bug and shows a traceback.
    """


class BadNumbers(UserError):
    """A number that is NaN, infinite or too large, from which nothing must be learned.

    `tensors` are the values that led to it, by name; they can be saved to a file for debugging.
    """

    def __init__(self, message: str, **tensors: Any) -> None:
        super().__init__(message)
        self.tensors = tensors


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known word; empty if none is close."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def closest_or_known(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the closest known word; if none is close, all of them: `known: x, y`."""
    words = list(known)
    return did_you_mean(word, words).removeprefix("; ") or f"known: {', '.join(words) or 'none'}"


def defined_at(target: Callable[..., Any]) -> str:
    """Return `FILE:LINE` of a function, of a class's `__init__` or an instance's `__call__`; empty if unknown."""
    function: Any = target
    if inspect.isclass(target):
        function = target.__init__
    elif not inspect.isroutine(target):
        function = type(target).__call__
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""


def file_of(target: Any) -> str:
    """Return the file of a function, of a class, or of the class of an instance, for `blamed`; empty if unknown.

    A class may inherit its `__init__` from another file, so `defined_at` does not tell.
    """
    if inspect.isroutine(target):
        return defined_at(target).rpartition(":")[0]
    try:
        return inspect.getfile(target if inspect.isclass(target) else type(target))
    except (OSError, TypeError):  # built in, or defined on a console
        return ""


@contextmanager
def blamed(what: str, file: str) -> Iterator[None]:
    """Convert exceptions of user code in this context to a `UserError` with file and line.

    Args:
        what: name of the user code, which begins the message, such as "reward term 'smooth'".
        file: file of the user code; the message names the innermost line of the traceback in this file.

    Raises:
        UserError: the code in the context raised an exception.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and str(error).startswith(what):  # already converted
            raise
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((f for f in reversed(frames) if f.filename == file), None)
        problem = f": {error}"
        if not isinstance(error, UserError):
            problem, frame = f" raised {type(error).__name__}: {error}", frame or frames[-1]
        at = f"; see {frame.filename}:{frame.lineno}" if frame else ""
        raise UserError(what + problem.replace("\n", " ") + at) from error
