"""The loader of all plug-ins: a built-in, `module:name`, `path.py:name`, or an entry point of an installed package.

It imports only what the user's own config names.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from zlib import crc32

from rewards.errors import UserError, blamed, did_you_mean, file_of

Kind = Literal[
    "reward",
    "robot",
    "teleoperator",
    "trust_signal",
    "simulator",
    "codec",
    "policy",
    "world_model",
    "callback",
    "schedule",
    "text_encoder",
]

GROUPS: dict[Kind, str] = {
    "reward": "wamtune.rewards",
    "robot": "wamtune.robots",
    "trust_signal": "wamtune.trust_signals",
    "simulator": "wamtune.simulators",
    "codec": "wamtune.codecs",
    "policy": "wamtune.policies",
    "world_model": "wamtune.world_models",
    "callback": "wamtune.callbacks",
    "schedule": "wamtune.schedules",
    "teleoperator": "wamtune.teleoperators",
    "text_encoder": "wamtune.text_encoders",
}
"""Kind of plug-in -> entry point group with which installed packages register theirs."""

MAX_MAGNITUDE = 1e6
"""Largest accepted absolute value of a weight or a reward. A larger, finite one would ruin a critic as well as NaN."""

_loaded_files: set[str] = set()
"""Files of the plug-ins that were loaded in this process."""

Builtins = Mapping[str, Callable[..., Any] | str]
"""Name -> the built-in itself, or `module:name`, which is imported on first use."""


def load(kind: Kind, func: str, builtins: Builtins, who: str = "", key: str = "func") -> Callable[..., Any]:
    """Return the function, class or callable instance that `func` names.

    Args:
        kind: kind of plug-in; it determines the entry point group.
        func: a name in `builtins`, `module:name`, `path.py:name`, or the name of an entry point.
        builtins: the built-in plug-ins of this kind.
        who: beginning of error messages, such as "reward term 'smooth'"; empty: `key=func`.
        key: the config key that holds `func`.

    Raises:
        UserError: it does not exist, is not callable, or its module raised an exception on import.
    """
    return _find(kind, func, builtins, who, key)[0]


def source_file(kind: Kind, func: str, builtins: Builtins, who: str = "", key: str = "func") -> Path | None:
    """Return the file of the module in which `func` is found, see `load`; None for a built-in."""
    module = _find(kind, func, builtins, who, key)[1]
    return Path(module.__file__) if module is not None and module.__file__ else None


def plugin_line(error: Exception) -> str:
    """Return `FILE:LINE` of the innermost line of a plug-in in the traceback of `error`; empty if there is none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in _loaded_files]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def names_file(func: str) -> bool:
    """Return whether `func` is written as `path.py:name`."""
    return func.rpartition(":")[0].endswith(".py")


def known(kind: Kind, builtins: Builtins) -> list[str]:
    """Return the names that can be used without a `:`: the built-ins, then the installed entry points."""
    return list(dict.fromkeys([*builtins, *_entry_points(kind)]))


@dataclass(frozen=True)
class Entry:
    """One plug-in as a config writes it: `{func, weight, params}`."""

    func: str
    weight: float
    params: dict[str, Any]


def read_entry(who: str, name: str, written: Mapping[str, Any], default_weight: float | None = None) -> Entry:
    """Check a config entry `{func, weight, params}`. Without `func` it is the built-in called `name`.

    Args:
        who: beginning of error messages.
        name: name of the entry.
        written: the entry in the config.
        default_weight: weight of an entry without one; None: the weight is mandatory.

    Raises:
        UserError: a key is unknown, or a value does not fit.
    """
    weight = read_weight(who, written, default_weight)
    func, params = written.get("func") or name, written.get("params") or {}
    if not isinstance(func, str):
        raise UserError(f"{who}: func is {func!r}, expected a name, module:function or path.py:function")
    if not isinstance(params, Mapping):
        raise UserError(f"{who}: params are {params!r}, expected names and values; write {{name: value}}")
    return Entry(func, weight, copy.deepcopy(dict(params)))  # a copy, so that a plug-in cannot change the config


def read_weight(who: str, written: Mapping[str, Any], default: float | None = None) -> float:
    """Check the keys of an entry and return its weight.

    Raises:
        UserError: a key is unknown, or the weight is not a finite number within `MAX_MAGNITUDE`.
    """
    if not isinstance(written, Mapping):
        func = f"func: {written}, " if isinstance(written, str) else ""
        raise UserError(f"{who}: expected func, weight and params, got {written!r}; write {{{func}weight: 1.0}}")
    for key in written:
        if key not in ("func", "weight", "params"):
            hint = did_you_mean(str(key), ("func", "weight", "params"))
            raise UserError(f"{who}: unknown key {key!r}, expected func, weight or params{hint}")
    if "weight" not in written and default is None:
        raise UserError(f"{who}: weight is missing; add one, such as weight: 1.0")
    weight = written.get("weight", default)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise UserError(f"{who}: weight is {weight!r}, expected a number; 0 switches it off")
    if not math.isfinite(weight) or abs(weight) > MAX_MAGNITUDE:
        raise UserError(f"{who}: weight is {weight}, expected a finite number within ±{MAX_MAGNITUDE:g}")
    return float(weight)


def check_params(who: str, func: str, found: Callable[..., Any], params: Mapping[str, Any], n_given: int) -> None:
    """Check that `found` can be called with `n_given` positional arguments and then `params`.

    Raises:
        UserError: a param is missing or unknown; the message lists those that exist.
    """
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # compiled functions may have no signature; errors then come from the call
        return
    try:
        signature.bind(*(None,) * n_given, **params)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[n_given:]) or "none"
        raise UserError(f"{who}: params of {func}: {error}; it takes {takes}") from error


def instance_of(
    who: str, func: str, found: Callable[..., Any], params: Mapping[str, Any], call: str, ours: bool = False
) -> Any:
    """Return the object to call later: an instance of a class, built with `params`, or a copy of anything else.

    The copy keeps an instance with state from sharing it between simulator and dream.

    Args:
        who: beginning of error messages.
        func: name of the plug-in in the config.
        found: the result of `load`.
        params: arguments for a class; ignored otherwise.
        call: the method that an instance must have, for the message, such as `__call__(t)`.
        ours: whether it is a built-in; errors of built-ins name no line.

    Raises:
        UserError: the class does not accept `params`, raises an exception, or its instances are not callable.
    """
    with blamed(who, "" if ours else file_of(found)):
        if not inspect.isclass(found):
            return copy.deepcopy(found)
        try:
            target = found(**params)
        except (TypeError, ValueError) as error:
            raise UserError(f"{who}: params {dict(params)} do not fit {func}: {error}") from error
        if not callable(target):
            raise UserError(f"{who}: the class {func} has no {call}; write one")
        return target


def load_term(name: str, func: str) -> Callable[..., Any]:
    """Return the function, class or instance that `func` of the reward term `name` refers to; see `load`."""
    from rewards.builtin import BUILTIN  # imported here: it needs torch, and the loader must not

    return load("reward", func, BUILTIN, who=f"reward term {name!r}")


def source_of(name: str, term: Mapping[str, Any] | None) -> Path | None:
    """Return the source file of an active reward term; None for a built-in or a term that is off."""
    from rewards.builtin import BUILTIN

    if term is None or term.get("weight") == 0:
        return None
    return source_file("reward", term.get("func") or name, BUILTIN, who=f"reward term {name!r}")


def _find(
    kind: Kind, func: str, builtins: Builtins, who: str, key: str
) -> tuple[Callable[..., Any], ModuleType | None]:
    """Return the object that `func` refers to, and its module (None for a built-in)."""
    who = who or f"{key}={func}"
    source, colon, attribute = func.rpartition(":")
    module: ModuleType | None = None
    if func in builtins:
        found: object = _builtin(builtins[func])
    elif colon:
        module = _load_file(who, source) if names_file(func) else _import(who, key, source, attribute)
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        # hasattr, not vars: modules of Isaac Lab import their attributes on first access.
        if not hasattr(module, attribute):
            own = [name for name in public if getattr(vars(module)[name], "__module__", "") == module.__name__]
            hint = did_you_mean(attribute, public) or f"; it has {', '.join(own)[:200] or 'nothing that can be called'}"
            raise UserError(f"{who}: {source} has no {attribute!r}{hint}")
        found = getattr(module, attribute)
    else:
        found, module = _load_entry_point(kind, func, builtins, who, key)
    if module is not None and module.__file__:
        _loaded_files.add(module.__file__)
    if not callable(found):
        raise UserError(f"{who}: {func} is of type {type(found).__name__}, expected a function or a class")
    return found, module


def _builtin(target: Callable[..., Any] | str) -> object:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _load_file(who: str, source: str) -> ModuleType:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{who}: there is no file {source} (looked for {path}, and beside the preset that names it)")
    # The name must not collide with an installed module or with a file of the same name in another folder.
    module_name = f"_wamtune_plugin_{path.stem}_{crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up their module there
    with blamed(who, str(path)):
        try:
            spec.loader.exec_module(module)
        except (ImportError, SyntaxError) as error:
            raise UserError(f"{who}: cannot load {source}: {error}{_raised_at(error)}") from error
    return module


def _import(who: str, key: str, source: str, attribute: str) -> ModuleType:
    with blamed(who, ""):
        try:
            return importlib.import_module(source)
        except (ImportError, SyntaxError, ValueError, TypeError) as error:
            hint = _raised_at(error)
            # The installed command does not have the current folder on its import path.
            if not hint and Path(f"{source}.py").is_file():
                hint = f"; for the file in this folder write {key}: {source}.py:{attribute}"
            raise UserError(f"{who}: cannot import {source!r}: {error}{hint}") from error


def _load_entry_point(kind: Kind, func: str, builtins: Builtins, who: str, key: str) -> tuple[object, ModuleType]:
    points = _entry_points(kind)
    if func not in points:
        names = known(kind, builtins)
        raise UserError(
            f"{who}: unknown {key} {func!r}{did_you_mean(func, names)}; known: {', '.join(names) or 'none'}; "
            f"for your own write {key}: path.py:name or module:name"
        )
    with blamed(who, ""):
        try:
            return points[func].load(), importlib.import_module(points[func].module)
        except (ImportError, SyntaxError, AttributeError) as error:
            raise UserError(f"{who}: cannot load entry point {func!r}: {error}{_raised_at(error)}") from error


def _entry_points(kind: Kind) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUPS[kind])}


def _raised_at(error: Exception) -> str:
    """Return `; see FILE:LINE` for the line of a plug-in that raised; empty if none of its lines was executed."""
    ours = __file__, importlib.__file__, importlib.metadata.__file__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in ours]
    lines = [f for f in frames if not f.filename.startswith("<")]  # <frozen importlib._bootstrap>
    return f"; see {lines[-1].filename}:{lines[-1].lineno}" if lines else ""
