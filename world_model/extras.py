"""Optional dependencies: import one, or say in one line which pip command installs it."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewards.errors import UserError


def import_extra(module: str, extra: str, needs: str) -> Any:
    """Return a module of an optional dependency.

    Args:
        module: such as "websockets.sync.client".
        extra: of wamtune, which installs it.
        needs: what needs it, such as "rosbridge needs websockets"; begins the message.

    Raises:
        UserError: it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{needs}; install it with {pip_line(extra)}") from error


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
