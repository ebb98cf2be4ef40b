"""Find a foreign package that hides one of ours: `rl`, `rewards` and `world_model` are names that others use too.

Only the standard library is imported: with a foreign `rewards` on the path nothing of ours can be trusted to load.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("rl", "world_model", "rewards")


def foreign_package(path: Sequence[str] | None = None) -> str | None:
    """Return one line that names the first package on `path` (default `sys.path`) that hides ours; None if none does.

    Call it first in the command line, before anything of `rewards` is imported.
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
