"""The pip command for an optional dependency, with which every message about a missing package ends."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def pip_line(extra: str) -> str:
    """Return the command that reinstalls wamtune with `extra`.

    wamtune is not on PyPI, so the command names the folder of the checkout, or else the wheel.
    """
    root = Path(__file__).resolve().parent.parent
    tool = "pip" if find_spec("pip") is not None else "uv pip"  # an environment made by uv has no pip
    if (root / "pyproject.toml").is_file():
        place = "." if root == Path.cwd() else str(root)
        return f"{tool} install -e '{place}[{extra}]'"
    try:
        release = version("wamtune")
    except PackageNotFoundError:  # the files were copied without installing the package
        release = "VERSION"
    return f"{tool} install 'wamtune-{release}-py3-none-any.whl[{extra}]'"
