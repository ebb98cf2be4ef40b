"""The one exception a user meets, and its hints. They sit here because `rewards` is the bottom of the import order."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def closest_or_known(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the closest known word, or all of them: `known: x, y`."""
    words = list(known)
    return did_you_mean(word, words).removeprefix("; ") or f"known: {', '.join(words) or 'none'}"
