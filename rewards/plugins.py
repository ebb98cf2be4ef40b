"""Find the callable behind `func`: a built-in, `module:function`, `path.py:function` or an entry point."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from rewards.builtin import BUILTIN
from rewards.errors import UserError, blamed, did_you_mean

ENTRY_POINTS = "wamtune.rewards"


def load_term(name: str, func: str) -> Callable[..., Any]:
    """Return the function, class or instance that `func` of reward term `name` points to."""
    return _load(name, func)[0]


def source_of(name: str, term: Mapping[str, Any] | None) -> Path | None:
    """Return the file of the module that an active reward term comes from; None for a built-in or no term."""
    if term is None or term.get("weight") == 0:
        return None
    module = _load(name, term.get("func") or name)[1]
    return Path(module.__file__) if module is not None and module.__file__ else None


def _load(name: str, func: str) -> tuple[Callable[..., Any], ModuleType | None]:
    """Return what `func` points to, and the module that it was found in; None for a built-in."""
    source, colon, attribute = func.rpartition(":")
    module: ModuleType | None = None
    if colon:
        module = _load_file(name, source) if source.endswith(".py") else _import(name, source, attribute)
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if not hasattr(module, attribute):  # and not `in vars`: Isaac Lab's modules import what they hold when asked
            raise UserError(f"reward term {name!r}: {source} has no {attribute!r}{did_you_mean(attribute, public)}")
        found: object = getattr(module, attribute)
    elif func in BUILTIN:
        found = BUILTIN[func]
    else:
        found, module = _load_entry_point(name, func)
    if not callable(found):
        raise UserError(
            f"reward term {name!r}: {func} is of type {type(found).__name__}, expected a function or a class"
        )
    return found, module


def _load_file(name: str, source: str) -> ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise UserError(
            f"reward term {name!r}: there is no file {source} (looked for {path}, and beside the preset that names it)"
        )
    # The name must not collide with an installed module or with a file of the same name in another folder.
    module_name = f"_wamtune_reward_{path.stem}_{crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    with blamed(f"reward term {name!r}", str(path)):
        try:
            spec.loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise UserError(f"reward term {name!r}: cannot load {source}: {error}") from error
    return module


def _import(name: str, source: str, attribute: str) -> ModuleType:
    with blamed(f"reward term {name!r}", ""):
        try:
            return importlib.import_module(source)
        except (ImportError, SyntaxError, ValueError, TypeError) as error:
            hint = ""
            if Path(f"{source}.py").is_file():  # an installed command does not have the current folder on its path
                hint = f"; for the file in this folder write func: {source}.py:{attribute}"
            raise UserError(f"reward term {name!r}: cannot import {source!r}: {error}{hint}") from error


def _load_entry_point(name: str, func: str) -> tuple[object, ModuleType]:
    points = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if func not in points:
        known = [*BUILTIN, *points]
        raise UserError(
            f"reward term {name!r}: unknown func {func!r}{did_you_mean(func, known)}; known: {', '.join(known)}; "
            f"for your own write func: path.py:function or module:function"
        )
    with blamed(f"reward term {name!r}", ""):
        try:
            return points[func].load(), importlib.import_module(points[func].module)
        except (ImportError, SyntaxError, AttributeError) as error:
            raise UserError(f"reward term {name!r}: cannot load entry point {func!r}: {error}") from error
