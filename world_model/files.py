"""Reading files that others wrote, and writing files and folders so that a crash leaves the old or the new one.

Every file is opened by `open_file`: it refuses pipes and devices, which would block or never end, and files beyond a
limit, before any memory is taken. Nothing that is written follows a link.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rewards.errors import UserError

JSON_BYTES = 16_000_000
"""Largest file of JSON that is read; parsed it takes at most 25 times as much memory."""

TENSOR_BYTES = 2_000_000_000
"""Largest file of tensors that is read: weights, or one shard of episodes."""

NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK

KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def open_file(path: Path, limit: int, within: Path | None = None) -> BinaryIO:
    """Open a file for reading: a regular one of at most `limit` bytes. Links are followed.

    Args:
        path: the file.
        limit: in bytes.
        within: the folder in which the file must really be, links followed; None: anywhere.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is something else than a file, too large, outside `within`, or cannot be read.
    """
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise UserError(f"{path}: it is a link to a file outside {within}; put a copy of the file in its place")
        _check_is_file(path, os.stat(path), limit)  # before opening, which is an event for some devices
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        try:
            _check_is_file(path, os.fstat(file.fileno()), limit)
        except UserError:
            file.close()
            raise
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot read it ({why}); check its permissions") from error
    return file


def read_file(path: Path, limit: int, within: Path | None = None) -> bytes:
    """Return the bytes of a file, see `open_file`."""
    with open_file(path, limit, within) as file:
        return read_all(file)


def read_all(file: BinaryIO) -> bytes:
    """Return a file from `open_file`, up to the size that was checked: some files of the system never end."""
    return file.read(os.fstat(file.fileno()).st_size)


def parse_json(data: bytes) -> Any:
    """Return what JSON text holds; a number that is not finite, or too deep a nesting, is a ValueError."""
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a hidden temporary name beside `path`, sync it, rename it. One writer a path at a time.

    A link at `path` is replaced; what it points to stays as it is.
    """
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # what a crash left
        write_synced(temporary, data)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_synced(path: Path, data: bytes) -> None:
    """Write the new file `path` and wait until the disk has it."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_log(path: Path) -> TextIO:
    """Open a file of text to append to; a link is refused, since it could lead to any other file.

    Raises:
        UserError: it is a link, or cannot be written.
    """
    try:
        return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | NO_LINK, 0o666))
    except OSError as error:
        raise cannot_write(path, error) from error


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


def lock(folder: Path, wait_s: float = 0.0, called: str = "it") -> TextIO:
    """Hold the lock of a folder, which is made, until the returned file is closed or the process ends, however it ends.

    Args:
        folder: that one process at a time writes to.
        wait_s: seconds to wait for another one.
        called: the folder in the message that another process holds it.

    Raises:
        UserError: another process holds it, the lock is a link, or it cannot be written to.
    """
    import fcntl  # not where there is no POSIX, which reads checkpoints all the same

    last = time.monotonic() + wait_s
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    file = open_log(folder / ".lock")
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() < last:
                time.sleep(0.01)
                continue
            file.close()
            raise UserError(f"{folder}: another process is writing to {called}; wait for it, or end it first") from None
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
    with open_file(path, TENSOR_BYTES) as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the sha256 of a file from `open_file`, and go back to its beginning. It takes no memory."""
    digest = hashlib.sha256()
    update(digest, file, os.fstat(file.fileno()).st_size)
    file.seek(0)
    return digest.hexdigest()


def update(digest: Any, file: BinaryIO, size: int) -> None:
    """Add the next `size` bytes of `file` to a digest, piece by piece."""
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)


def cannot_write(path: Path, error: OSError) -> UserError:
    """Build the one line for a full disk, a missing permission and their like."""
    return UserError(f"{path}: cannot write it ({error.strerror or error}); free the disk or choose another folder")


def _check_is_file(path: Path, status: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        found = next((word for is_kind, word in KINDS.items() if is_kind(status.st_mode)), "something else")
        raise UserError(f"{path}: it is {found}, expected a file; put the file in its place")
    if status.st_size > limit:
        raise UserError(f"{path}: it has {status.st_size:,} bytes, at most {limit:,} are read; is it the right file?")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _beside(path: Path, ending: str) -> Path:
    # The dot hides it from listings, and from patterns such as `*.safetensors`.
    return path.with_name(f".{path.name}.{ending}")
