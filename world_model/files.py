"""Read untrusted files safely, and write files and folders atomically: after a crash the old or the new one is there.

All reads go through `open_file`, which refuses pipes and devices (reading them could block or never end) and files over
a size limit, before it allocates memory. Writing replaces links and never follows them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rewards.errors import UserError

JSON_BYTES = 16_000_000
"""Largest JSON file that is read, in bytes. Parsed, it takes at most 25 times as much memory."""

TENSOR_BYTES = 2_000_000_000
"""Largest file of tensors that is read, in bytes: weights, or one shard of episodes."""

NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK
"""Flags of `os.open`: fail on a link, and do not block on a pipe."""

KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
"""Test of a file mode -> word for that kind of file in messages."""


def open_file(path: Path, limit: int, within: Path | None = None) -> BinaryIO:
    """Open a regular file of at most `limit` bytes for reading. Links are followed.

    Args:
        path: the file.
        limit: largest accepted size in bytes.
        within: folder that must contain the file after all links are resolved; None: any folder.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is not a regular file, too large, outside `within`, or unreadable.
    """
    try:
        if within is not None and not path.resolve().is_relative_to(within.resolve()):
            raise UserError(f"{path}: it is a link to a file outside {within}; put a copy of the file in its place")
        _check_is_file(path, os.stat(path), limit)  # before opening, because opening some devices has side effects
        # Check again after opening: another program may have replaced the file in between.
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
    """Return the bytes of a file; arguments and errors are those of `open_file`."""
    with open_file(path, limit, within) as file:
        return read_all(file)


def read_all(file: BinaryIO) -> bytes:
    """Return the content of a file from `open_file`, at most as many bytes as its size: some system files never end."""
    return file.read(os.fstat(file.fileno()).st_size)


def parse_json(data: bytes) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: it is not JSON, holds NaN or Infinity, or is nested too deeply.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def to_json(data: Any) -> bytes:
    """Return JSON text for a file; `ValueError` for NaN and infinity, which `parse_json` would refuse."""
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a hidden temporary file in the same folder, sync it, and rename it to `path`.

    Only one process may write to a path at a time. A link at `path` is replaced; its target is not changed.

    Raises:
        UserError: it cannot be written.
    """
    temporary = _beside(path, "tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # left by an earlier crash
        write_synced(temporary, data)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file `path` and wait until it is on disk (fsync)."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_log(path: Path) -> TextIO:
    """Open a text file for appending. A link is refused, because it could point to any other file.

    Raises:
        UserError: it is a link, or cannot be written.
    """
    try:
        return open(path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | NO_LINK, 0o666))
    except OSError as error:
        raise cannot_write(path, error) from error


def write_folder(final: Path, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> None:
    """Write `files` (relative path, bytes) as the folder `final`, atomically, replacing an existing one.

    An iterator of pairs may make each file when the one before it is written, so that not all are in memory at once. If
    it raises an error, nothing is left.

    Raises:
        UserError: it cannot be written.
    """
    temporary = _beside(final, "tmp")
    try:
        remove(temporary)  # left by an earlier crash
        for name, data in files.items() if isinstance(files, Mapping) else files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_synced(temporary / name, data)
        replace_folder(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(final, error) from error
    except BaseException:  # of the iterator, or Ctrl-C
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename the finished folder `temporary` to `final`, replacing an existing one.

    A folder cannot be renamed over a folder that is not empty. So the old one is first renamed to a hidden name, where
    `existing_folder` finds it after a crash.
    """
    previous = _beside(final, "previous")
    # The new folder must be on disk before it gets its final name.
    for folder in (temporary, *(path for path in temporary.rglob("*") if path.is_dir())):
        sync_folder(folder)
    if final.exists() or final.is_symlink():
        remove(previous)  # left by an earlier crash
        final.rename(previous)
    temporary.rename(final)
    sync_folder(final.parent)
    remove(previous)


def existing_folder(final: Path) -> Path:
    """Return `final`, or the previous folder if a crash happened between the two renames of `replace_folder`."""
    if final.exists():  # return early: a path such as "." has no name from which `_beside` could build another
        return final
    previous = _beside(final, "previous")
    return previous if previous.is_dir() else final


def lock(folder: Path, wait_s: float = 0.0, called: str = "it") -> TextIO:
    """Create `folder` if needed and lock it for this process.

    The lock ends when the returned file is closed or the process ends, even by a crash.

    Args:
        folder: only one process at a time may write to it.
        wait_s: seconds to wait for another process to release the lock.
        called: name of the folder in the message about another process.

    Raises:
        UserError: another process holds the lock, the lock file is a link, or it cannot be written.
    """
    import fcntl  # imported here: it needs POSIX, and reading checkpoints must also work elsewhere

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
    """Delete a file, a link (not its target) or a folder with its content; a missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the file names in `folder` are on disk: a rename is only then safe from a power cut."""
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
    """Return the sha256 of a file from `open_file` in hexadecimal, and rewind the file. It is read piece by piece."""
    digest = hashlib.sha256()
    update(digest, file, os.fstat(file.fileno()).st_size)
    file.seek(0)
    return digest.hexdigest()


def update(digest: Any, file: BinaryIO, size: int) -> None:
    """Add the next `size` bytes of `file` to a hashlib `digest`, at most 1 MiB in memory at a time."""
    while size > 0 and (part := file.read(min(size, 1 << 20))):
        digest.update(part)
        size -= len(part)


def cannot_write(path: Path, error: OSError) -> UserError:
    """Build the one-line error for a full disk, a missing permission and similar problems."""
    return UserError(f"{path}: cannot write it ({error.strerror or error}); free the disk or choose another folder")


def _check_is_file(path: Path, status: os.stat_result, limit: int) -> None:
    """Raise `UserError` unless `status` is that of a regular file of at most `limit` bytes."""
    if not stat.S_ISREG(status.st_mode):
        found = next((word for is_kind, word in KINDS.items() if is_kind(status.st_mode)), "something else")
        raise UserError(f"{path}: it is {found}, expected a file; put the file in its place")
    if status.st_size > limit:
        raise UserError(f"{path}: it has {status.st_size:,} bytes, at most {limit:,} are read; is it the right file?")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _beside(path: Path, ending: str) -> Path:
    """Return a hidden path in the same folder: `.NAME.ENDING`."""
    # The dot hides it from listings and from glob patterns such as `*.safetensors`.
    return path.with_name(f".{path.name}.{ending}")
