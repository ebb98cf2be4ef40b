"""Write a brought policy or world model as a checkpoint: in its own format, with a card and a manifest of ours."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.config import PolicyConfig
from rl.policies.api import Denoiser
from world_model.checkpoint import MANIFEST, README, check_replaceable
from world_model.files import (
    JSON_BYTES,
    cannot_write,
    parse_json,
    read_file,
    remove,
    replace_folder,
    to_json,
    write_synced,
)

ABOUT = "wamtune.json"
"""File with the config of the run and the policy's func and params, beside what the policy itself writes."""


def save_denoiser(folder: Path, denoiser: Denoiser, actor: PolicyConfig, about: dict[str, Any], readme: str) -> None:
    """Write a policy by `Denoiser.save`, with func and params of the policy in `ABOUT`; see `save_brought`."""
    save_brought(folder, denoiser.save, {"policy": asdict(actor)} | about, readme)


def save_brought(folder: Path, write: Callable[[Path], None], about: dict[str, Any], readme: str) -> None:
    """Write a checkpoint atomically, replacing the one in `folder`.

    Args:
        folder: destination.
        write: called with an empty folder; it writes the files in the format of their owner.
        about: JSON-compatible values for `ABOUT`.
        readme: the model card.

    Raises:
        UserError: `folder` exists and is not a checkpoint, or cannot be written.
    """
    check_replaceable(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        remove(temporary)  # left by an earlier crash
        temporary.mkdir(parents=True)
        write(temporary)
        (temporary / README).unlink(missing_ok=True)
        write_synced(temporary / README, readme.encode())
        write_synced(temporary / ABOUT, to_json(about))
        files = {}
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            _sync(path)
            name = path.relative_to(temporary).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": sha256_of_any(path)}
        write_synced(temporary / MANIFEST, to_json({"files": files}))
        replace_folder(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(folder, error) from error


def is_brought(folder: Path) -> bool:
    """Whether `save_denoiser` wrote a checkpoint folder."""
    return (folder / ABOUT).is_file()


def about_brought(folder: Path) -> dict[str, Any]:
    """Return the values in `ABOUT`: `policy`, `config` of the run, and `metrics` if it was measured.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return {"stage": "rl", **parse_json(read_file(folder / ABOUT, JSON_BYTES))}
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / ABOUT}: it is not valid JSON; copy the checkpoint again") from error


def sha256_of_any(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, however large it is: policies that are brought may have gigabytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file that somebody else wrote is on disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
