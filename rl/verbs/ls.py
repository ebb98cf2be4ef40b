"""`wamtune ls`: list checkpoints, presets, reward terms and tasks. It imports no torch, so that it answers at once."""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.compose import list_presets
from rl.envs.names import BUILTIN, describe_tasks
from world_model.checkpoint import builtin_checkpoints, find_checkpoint, load_config

KINDS = ("checkpoints", "presets", "rewards", "tasks")


def run(words: list[str]) -> None:
    """Print the lists that `words` name, all by default."""
    for word in words:
        if word not in KINDS:
            raise UserError(f"ls {word!r}: expected one of {', '.join(KINDS)}")
    lists: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "checkpoints": _checkpoints,
        "presets": list_presets,
        "rewards": _rewards,
        "tasks": lambda: [(name, describe_tasks(name)) for name in BUILTIN],
    }
    for kind in words or KINDS:
        rows = lists[kind]()
        width = max((len(name) for name, _ in rows), default=0)
        print(kind)
        print("\n".join(f"  {name:<{width}}  {text}".rstrip() for name, text in rows) or "  none", end="\n\n")


def headline(metrics: dict[str, Any]) -> str:
    """Return the most telling figure of a checkpoint's `metrics` as text; empty if there is none."""
    try:
        if "success" in metrics:
            return f"success {100 * metrics['success']['mean']['rate']:.0f} %"
        if found := metrics.get("images", metrics.get("pictures")):  # older checkpoints call them pictures
            seen = found["mean"]
            return f"{seen['psnr']:.1f} dB where something moves, {seen['repeat']:.1f} by repeating"
        return f"prediction error {metrics['prediction']['mean']['error_ratio']:.2f} of standing still"
    except (KeyError, TypeError):
        return ""


def _checkpoints() -> list[tuple[str, str]]:
    rows = []
    for name in builtin_checkpoints():
        folder = find_checkpoint(name)
        try:
            config = load_config(folder)
        except UserError as error:  # a damaged one must not hide the others
            rows.append((name, str(error)))
            continue
        parts = (config["stage"], _count(config["spec"]["tasks"]), _size(folder), headline(config.get("metrics", {})))
        rows.append((name, ", ".join(part for part in parts if part)))
    return rows


def _rewards() -> list[tuple[str, str]]:
    """Return name and docstring of the built-in reward terms, from their source: importing them imports torch."""
    spec = find_spec("rewards.builtin")
    assert spec is not None and spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text("utf-8")).body
    docs = {
        node.name: ast.get_docstring(node) or "" for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    (table,) = (
        node.value for node in body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "BUILTIN"
    )
    assert isinstance(table, ast.Dict)
    terms = {
        ast.literal_eval(key): ast.unparse(term) for key, term in zip(table.keys, table.values, strict=True) if key
    }
    return [(name, docs[term].partition("\n")[0].partition(" Shape:")[0]) for name, term in terms.items()]


def _count(tasks: list[str]) -> str:
    return tasks[0] if len(tasks) == 1 else f"{len(tasks)} tasks"


def _size(folder: Path) -> str:
    return f"{sum(f.stat().st_size for f in folder.iterdir() if f.is_file()) / 1e6:.1f} MB"
