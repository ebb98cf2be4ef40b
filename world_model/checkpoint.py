"""Checkpoint folders: `config.json`, `model.safetensors`, `README.md`, `manifest.json` with a sha256 of each file.

This is the format alone; it knows nothing of the model. Nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, save
from torch import Tensor

from rewards.errors import UserError, closest_or_known
from world_model.files import (
    JSON_BYTES,
    TENSOR_BYTES,
    existing_folder,
    open_file,
    parse_json,
    read_all,
    read_file,
    sha256_of,
    write_folder,
)
from world_model.runs import newest_runs

SCHEMA_VERSION = 1
CONFIG, MODEL, README, MANIFEST = "config.json", "model.safetensors", "README.md", "manifest.json"
STATE_TREE, STATE_TENSORS = "training_state.json", "training_state.safetensors"
BUILTIN = Path(__file__).parent / "builtin"

LIMITS = {
    CONFIG: JSON_BYTES,
    README: JSON_BYTES,
    MANIFEST: JSON_BYTES,
    STATE_TREE: 4 * JSON_BYTES,  # what a run has collected and measured
    STATE_TENSORS: 8 * TENSOR_BYTES,
}
"""Largest size of the files of a checkpoint; of any other, such as weights and episodes, TENSOR_BYTES."""

MOST_FILES = 10_000
"""How many files a manifest may list."""


def save_checkpoint(
    folder: str | Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    readme: str = "",
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint, replacing the one in `folder`; a crash at any moment leaves the old one or the new one.

    Args:
        folder: where; its parents are created.
        config: what JSON can hold; `schema_version` is added.
        tensors: the model's `state_dict`.
        readme: the model card.
        extra: further files by name, such as `pack_training_state` gives.
    """
    final = Path(folder)
    _check_replaceable(final)
    files = {
        CONFIG: _to_json({"schema_version": SCHEMA_VERSION} | config),
        MODEL: save({name: _plain(tensor) for name, tensor in tensors.items()}),
        README: (readme or f"# {final.name}\n").encode(),
        **(extra or {}),
    }
    files[MANIFEST] = _to_json({"files": {name: _fingerprint(data) for name, data in files.items()}})
    write_folder(final, files)


def load_checkpoint(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return `config` and `tensors` (on the CPU) as given to `save_checkpoint`, after every file passed its sha256.

    Raises:
        UserError: nothing there, or a file is missing, truncated, altered, unreadable or from a newer version.
    """
    folder = find_checkpoint(name_or_path)
    files = _read_verified(folder, (CONFIG, MODEL))
    config = _from_json(folder / CONFIG, files[CONFIG])
    version = config.pop("schema_version", None)
    if type(version) is not int or version < 1:
        raise UserError(f"{folder / CONFIG}: schema_version is missing or not a number; copy the checkpoint again")
    if version > SCHEMA_VERSION:
        raise UserError(f"{folder / CONFIG}: schema_version {version}, known up to {SCHEMA_VERSION}; upgrade wamtune")
    return config, _load_tensors(folder / MODEL, files[MODEL])


def pack_training_state(state: dict[Any, Any]) -> dict[str, bytes]:
    """Turn nested dicts, lists, tuples and dataclasses of tensors, numbers, strings and None into files for `extra`.

    Optimizer and generator states, counters: every value comes back exactly, dict keys that are ints included. A tensor
    that occurs twice is stored once.
    """
    tensors: dict[int, tuple[int, Tensor]] = {}
    tree = _pack(state, tensors, "state")
    named = {str(number): _plain(tensor) for number, tensor in tensors.values()}
    return {STATE_TREE: _to_json(tree), STATE_TENSORS: save(named)}


def load_training_state(name_or_path: str | Path, types: Collection[type] = ()) -> dict[Any, Any]:
    """Return what `pack_training_state` was given, tensors on the CPU; its dataclasses are any of `types`.

    Raises:
        UserError: as for `load_checkpoint`, or the checkpoint holds no training state, or that of another version.
    """
    folder = find_checkpoint(name_or_path)
    if STATE_TREE not in _manifest(folder):
        raise UserError(f"{folder}: no training state in it; to continue, name the folder of a run that saved one")
    files = _read_verified(folder, (STATE_TREE, STATE_TENSORS))
    tensors = _load_tensors(folder / STATE_TENSORS, files[STATE_TENSORS])
    tree = _from_json(folder / STATE_TREE, files[STATE_TREE])
    try:
        state: dict[Any, Any] = _unpack(tree, tensors, {of.__name__: of for of in types})
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder}: its training state is not one of this version ({error!r}); begin anew") from error
    return state


def checkpoint_files(name_or_path: str | Path) -> dict[str, bytes]:
    """Return every file that a checkpoint lists, by its name in the folder; whatever else is there stays.

    Raises:
        UserError: as for `load_checkpoint`, or a file is a link to somewhere outside the folder: a copy of it could
            carry away what was never meant to be given.
    """
    folder = find_checkpoint(name_or_path)
    files = _read_verified(folder, _manifest(folder), within=folder)
    return files | {MANIFEST: read_file(folder / MANIFEST, LIMITS[MANIFEST], within=folder)}


def checked_weights(where: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as they will be used, floats in single precision, once they are finite there.

    Raises:
        UserError: one is not finite in single precision, or no real number; `where` and its name are said.
    """
    cast = {}
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise UserError(f"{where}: tensor {name!r} is complex, expected real numbers; nothing was loaded")
        cast[name] = tensor.float() if tensor.is_floating_point() else tensor
        if not torch.isfinite(cast[name]).all():  # also what only became infinite now, such as 1e300 in float64
            raise UserError(f"{where}: tensor {name!r} holds a value that is not finite; nothing was loaded")
    return cast


def find_checkpoint(name_or_path: str | Path) -> Path:
    """Return the folder of a checkpoint: a path to it, a run folder (its `checkpoints/last`) or a built-in name.

    A folder of runs, such as `runs/demo`, stands for the newest of them that has a checkpoint, `latest` for the newest
    of all runs that has one.
    """
    path = Path(name_or_path)
    if path.is_file():
        raise UserError(
            f"{path} is a file; a checkpoint is a folder with {MANIFEST} (pickled .pt or .zip are not loaded)"
        )
    candidates = [folder / "checkpoints" / "last" for folder in (path, *newest_runs(path))]
    candidates.insert(0, path)
    if len(path.parts) == 1:
        candidates.append(BUILTIN / path)
    for folder in map(existing_folder, candidates):
        # A damaged checkpoint is found, too: loading it says what is wrong.
        if any((folder / name).exists() for name in (MANIFEST, CONFIG, MODEL)):
            return folder
    raise UserError(
        f"no checkpoint at {path}; {closest_or_known(str(path), builtin_checkpoints())}; try `wamtune ls checkpoints`"
    )


def builtin_checkpoints() -> list[str]:
    """Return the names of the checkpoints that come with wamtune."""
    return sorted(manifest.parent.name for manifest in BUILTIN.glob(f"[!.]*/{MANIFEST}"))


def _check_replaceable(final: Path) -> None:
    if final.is_file() or (final.is_dir() and any(final.iterdir()) and not (final / MANIFEST).exists()):
        raise UserError(f"{final}: it exists and is not a checkpoint; nothing was replaced, choose another folder")


def _plain(tensor: Tensor) -> Tensor:
    # A clone, since safetensors refuses tensors that share memory.
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _to_json(data: Any) -> bytes:
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode()


def _from_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = parse_json(data)
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path}: it is not valid JSON; copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: it does not hold a JSON object; copy the checkpoint again")
    return content


def _load_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except Exception as error:  # whatever a damaged header makes the reader say
        raise UserError(f"{path}: it is not a safetensors file; copy the checkpoint again") from error


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    files = _from_json(path, _read(path, LIMITS[MANIFEST])).get("files")
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise UserError(f"{path}: it does not list files with size and sha256; copy the checkpoint again")
    if len(files) > MOST_FILES:
        raise UserError(f"{path}: it lists {len(files):,} files, at most {MOST_FILES:,} are read; copy it again")
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise UserError(f"{path}: it lists {name!r}, which is outside the checkpoint; nothing was read")
    return files


def _is_entry(entry: Any) -> bool:
    fits = isinstance(entry, dict) and entry.keys() == {"size", "sha256"}
    return fits and type(entry["size"]) is int and isinstance(entry["sha256"], str)


def _read_verified(folder: Path, wanted: Collection[str], within: Path | None = None) -> dict[str, bytes]:
    """Check every file that the manifest lists; memory is taken for those that are wanted, once they passed."""
    manifest = _manifest(folder)
    for name in wanted:
        if name not in manifest:
            raise UserError(f"{folder / MANIFEST}: it does not list {name}; copy the checkpoint again")
    contents = {}
    for name, entry in manifest.items():
        path = folder / name
        with _open(path, LIMITS.get(name, TENSOR_BYTES), within) as file:
            if (size := os.fstat(file.fileno()).st_size) != entry["size"]:
                what = f"it has {size} bytes, manifest.json says {entry['size']}"
                raise UserError(f"{path}: {what}; the file is truncated or altered, copy the checkpoint again")
            if sha256_of(file) != entry["sha256"]:
                what = "its sha256 is not the one in manifest.json"
                raise UserError(f"{path}: {what}; the file is altered, copy the checkpoint again")
            if name in wanted:
                contents[name] = read_all(file)
    return contents


def _open(path: Path, limit: int, within: Path | None = None) -> BinaryIO:
    try:
        return open_file(path, limit, within)
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file is missing; copy the checkpoint again") from error


def _read(path: Path, limit: int) -> bytes:
    with _open(path, limit) as file:
        return read_all(file)


def _pack(value: Any, tensors: dict[int, tuple[int, Tensor]], where: str) -> Any:
    """Return `value` as JSON; what JSON lacks becomes a dict of one tag. Tensors are numbered, by their `id`."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):  # JSON has no nan and inf; repr keeps every bit of the rest
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, Tensor):
        number, _ = tensors.setdefault(id(value), (len(tensors), value))
        return {"tensor": str(number)}
    if is_dataclass(value):
        return {"object": [type(value).__name__, _pack(vars(value), tensors, where)]}
    if isinstance(value, list | tuple):
        items = [_pack(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = [[_pack(k, tensors, where), _pack(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()]
        return {"dict": pairs}
    raise TypeError(f"{where}: a {type(value).__name__} cannot be saved; use tensors, numbers, strings, lists, dicts")


def _unpack(value: Any, tensors: dict[str, Tensor], types: Mapping[str, type]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors, types) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "float":
        return float(content)
    if tag == "tensor":
        return tensors[content]
    if tag == "tuple":
        return tuple(_unpack(item, tensors, types) for item in content)
    if tag == "object":
        name, attributes = content
        return types[name](**_unpack(attributes, tensors, types))
    return {_unpack(k, tensors, types): _unpack(v, tensors, types) for k, v in content}
