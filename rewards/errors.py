"""The one exception a user meets. It sits here because `rewards` is the bottom of the import order."""

from __future__ import annotations

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
