"""Writing files and folders so that a crash leaves the old one or the new one, never half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from rewards.errors import UserError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a hidden temporary name beside `path`, sync it, rename it. One writer a path at a time."""
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, data)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_synced(path: Path, data: bytes) -> None:
    """Write `data` and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_folder(final: Path, files: Mapping[str, bytes]) -> None:
    """Write `files`, by relative path, as the folder `final`, whole or not at all; what was there is replaced."""
    temporary = _beside(final, "tmp")
    try:
        remove(temporary)  # what a crash left
        for name, data in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_synced(temporary / name, data)
        replace_folder(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(final, error) from error


def replace_folder(temporary: Path, final: Path) -> None:
    """Give the finished folder `temporary` the name `final`, replacing what is there.

    A folder cannot be renamed over a full one, so the old one steps aside first, to where `existing_folder` finds it.
    """
    previous = _beside(final, "previous")
    for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
        sync_folder(folder)
    if final.exists() or final.is_symlink():
        remove(previous)
        final.rename(previous)
    temporary.rename(final)
    sync_folder(final.parent)
    remove(previous)


def existing_folder(final: Path) -> Path:
    """Return `final`, or the previous one if a crash fell between the two renames of `replace_folder`."""
    if final.exists():  # such as ".", which nothing can be named after
        return final
    previous = _beside(final, "previous")
    return previous if previous.is_dir() else final


def lock(folder: Path, wait_s: float = 0.0) -> TextIO:
    """Hold the lock of a folder, which is made, until the returned file is closed or the process ends, however it ends.

    Args:
        folder: that one process at a time writes to.
        wait_s: seconds to wait for another one.

    Raises:
        UserError: another process holds it, or it cannot be written to.
    """
    import fcntl  # not where there is no POSIX, which reads checkpoints all the same

    last = time.monotonic() + wait_s
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() < last:
                time.sleep(0.01)
                continue
            file.close()
            raise UserError(f"{folder}: another process is writing to it; wait for it, or end it first") from None
        except OSError as error:
            file.close()
            raise cannot_write(folder, error) from error


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all it holds; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in `folder`."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write(path: Path, error: OSError) -> UserError:
    """Build the one line for a full disk, a missing permission and their like."""
    return UserError(f"{path}: cannot write it ({error.strerror or error}); free the disk or choose another folder")


def _beside(path: Path, ending: str) -> Path:
    # The dot hides it from listings, and from patterns such as `*.safetensors`.
    return path.with_name(f".{path.name}.{ending}")
