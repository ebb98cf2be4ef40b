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
    return _load(f"reward term {name!r}", func, BUILTIN, ENTRY_POINTS)[0]


def load_plugin(
    what: str, func: str, builtins: Mapping[str, Callable[..., Any]], group: str = ""
) -> Callable[..., Any]:
    """Return the function or class that `func` points to.

    Args:
        what: who names it, for messages: "callback 'stop'".
        func: a name of `builtins`, `module:attribute`, `path.py:attribute`, or an entry point of `group`.
        builtins: name -> what it stands for.
        group: of entry points; empty: there are none.

    Raises:
        UserError: there is no such thing, it cannot be loaded, or it cannot be called.
    """
    return _load(what, func, builtins, group)[0]


def plugin_file(what: str, func: str, builtins: Mapping[str, Callable[..., Any]], group: str = "") -> Path | None:
    """Return the file of the module in which `load_plugin` finds `func`; None for a built-in."""
    return _file(_load(what, func, builtins, group)[1])


def source_of(name: str, term: Mapping[str, Any] | None) -> Path | None:
    """Return the file of the module that an active reward term comes from; None for a built-in or no term."""
    if term is None or term.get("weight") == 0:
        return None
    return _file(_load(f"reward term {name!r}", term.get("func") or name, BUILTIN, ENTRY_POINTS)[1])


def _file(module: ModuleType | None) -> Path | None:
    return Path(module.__file__) if module is not None and module.__file__ else None


def _load(
    what: str, func: str, builtins: Mapping[str, Callable[..., Any]], group: str
) -> tuple[Callable[..., Any], ModuleType | None]:
    """Return what `func` points to, and the module that it was found in; None for a built-in."""
    source, colon, attribute = func.rpartition(":")
    module: ModuleType | None = None
    if colon:
        module = _load_file(what, source) if source.endswith(".py") else _import(what, source, attribute)
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if not hasattr(module, attribute):  # and not `in vars`: Isaac Lab's modules import what they hold when asked
            raise UserError(f"{what}: {source} has no {attribute!r}{did_you_mean(attribute, public)}")
        found: object = getattr(module, attribute)
    elif func in builtins:
        found = builtins[func]
    else:
        found, module = _load_entry_point(what, func, builtins, group)
    if not callable(found):
        raise UserError(f"{what}: {func} is of type {type(found).__name__}, expected a function or a class")
    return found, module


def _load_file(what: str, source: str) -> ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{what}: there is no file {source} (looked for {path}, and beside the preset that names it)")
    # The name must not collide with an installed module or with a file of the same name in another folder.
    module_name = f"_wamtune_reward_{path.stem}_{crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    with blamed(what, str(path)):
        try:
            spec.loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise UserError(f"{what}: cannot load {source}: {error}") from error
    return module


def _import(what: str, source: str, attribute: str) -> ModuleType:
    with blamed(what, ""):
        try:
            return importlib.import_module(source)
        except (ImportError, SyntaxError, ValueError, TypeError) as error:
            hint = ""
            if Path(f"{source}.py").is_file():  # an installed command does not have the current folder on its path
                hint = f"; for the file in this folder write func: {source}.py:{attribute}"
            raise UserError(f"{what}: cannot import {source!r}: {error}{hint}") from error


def _load_entry_point(
    what: str, func: str, builtins: Mapping[str, Callable[..., Any]], group: str
) -> tuple[object, ModuleType]:
    points = {point.name: point for point in importlib.metadata.entry_points(group=group)} if group else {}
    if func not in points:
        known = [*builtins, *points]
        raise UserError(
            f"{what}: unknown func {func!r}{did_you_mean(func, known)}; known: {', '.join(known)}; "
            f"for your own write func: path.py:function or module:function"
        )
    with blamed(what, ""):
        try:
            return points[func].load(), importlib.import_module(points[func].module)
        except (ImportError, SyntaxError, AttributeError) as error:
            raise UserError(f"{what}: cannot load entry point {func!r}: {error}") from error
