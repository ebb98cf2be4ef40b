"""Detect a foreign package that hides one of ours: others use the names `rl`, `rewards` and `world_model` too.

This file imports only the standard library: with a foreign `rewards` on the path, none of our packages may load.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("rl", "world_model", "rewards")


def foreign_package(path: Sequence[str] | None = None) -> str | None:
    """Return an error line for the first package on `path` (default `sys.path`) that hides ours; None if none does.

    The command line calls it before it imports anything from `rewards`.
    """
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = PathFinder.find_spec(name, list(sys.path if path is None else path))
        if spec is None:
            continue
        places = list(spec.submodule_search_locations or [spec.origin or ""])
        if all(Path(place).resolve() != home / name for place in places):
            return (
                f"the package {name!r} in {places[0]} hides wamtune's own in {home / name}; "
                f"rename it, uninstall it or take its folder off PYTHONPATH"
            )
    return None
