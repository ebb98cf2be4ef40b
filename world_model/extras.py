"""How to get an optional dependency: the one line that every message about a missing package ends with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def pip_line(extra: str) -> str:
    """Return the command that installs wamtune again with `extra`; there is no index that has it under its name.

    From a checkout that is the folder, otherwise the wheel that it came from.
    """
    root = Path(__file__).resolve().parent.parent
    tool = "pip" if find_spec("pip") is not None else "uv pip"  # an environment made by uv has no pip
    if (root / "pyproject.toml").is_file():
        place = "." if root == Path.cwd() else str(root)
        return f"{tool} install -e '{place}[{extra}]'"
    try:
        release = version("wamtune")
    except PackageNotFoundError:  # copied by hand
        release = "VERSION"
    return f"{tool} install 'wamtune-{release}-py3-none-any.whl[{extra}]'"
