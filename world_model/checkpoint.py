"""Checkpoint folders: `config.json`, `model.safetensors`, `README.md`, `manifest.json` with a sha256 of each file.

This module handles only the file format and is independent of the model. It never uses pickle. It imports torch where
tensors are read or written, so that what only lists checkpoints needs no torch.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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
    to_json,
    write_folder,
)
from world_model.hub import PREFIX, download, is_hub_name, is_repository_name, storage_of
from world_model.runs import find_run, named_runs, newest_runs, verb_of

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
CONFIG, MODEL, README, MANIFEST = "config.json", "model.safetensors", "README.md", "manifest.json"
STATE_TREE, STATE_TENSORS = "training_state.json", "training_state.safetensors"
BUILTIN = Path(__file__).parent / "builtin"

LIMITS = {
    CONFIG: JSON_BYTES,
    README: JSON_BYTES,
    MANIFEST: JSON_BYTES,
    STATE_TREE: 4 * JSON_BYTES,  # larger, because it holds all measurements of a run
    STATE_TENSORS: 8 * TENSOR_BYTES,
}
"""Largest accepted size of each file in bytes; files not listed here (weights, episodes) may have TENSOR_BYTES."""

MOST_FILES = 10_000
"""Largest accepted number of files in a manifest."""


def save_checkpoint(
    folder: str | Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    readme: str = "",
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint atomically, replacing the one in `folder`: after a crash the old or the new one is there.

    Args:
        folder: destination; its parents are created.
        config: JSON-compatible values; `schema_version` is added.
        tensors: the model's `state_dict`.
        readme: the model card.
        extra: further files by name, such as those of `pack_training_state`.

    Raises:
        UserError: `folder` exists and is not a checkpoint, or cannot be written.
    """
    final = Path(folder)
    check_replaceable(final)
    files = {
        CONFIG: to_json({"schema_version": SCHEMA_VERSION} | config),
        MODEL: _tensor_file({name: _plain(tensor) for name, tensor in tensors.items()}),
        README: (readme or f"# {final.name}\n").encode(),
        **(extra or {}),
    }
    # The manifest comes last, because it lists the sha256 of all other files.
    files[MANIFEST] = to_json({"files": {name: _fingerprint(data) for name, data in files.items()}})
    write_folder(final, files)


def load_checkpoint(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return `config` and `tensors` (on the CPU) as given to `save_checkpoint`, after checking every file's sha256.

    Raises:
        UserError: there is no checkpoint, or a file is missing, truncated, altered, unreadable or from a newer version.
    """
    folder = find_checkpoint(name_or_path)
    files = _read_verified(folder, (CONFIG, MODEL))
    return _config_in(folder, files[CONFIG]), _load_tensors(folder / MODEL, files[MODEL])


def load_config(name_or_path: str | Path) -> dict[str, Any]:
    """Return the `config` that `load_checkpoint` returns, after the same checks of the files, without the tensors.

    Raises:
        UserError: as for `load_checkpoint`.
    """
    folder = find_checkpoint(name_or_path)
    return _config_in(folder, _read_verified(folder, (CONFIG, MODEL))[CONFIG])


def _config_in(folder: Path, data: bytes) -> dict[str, Any]:
    config = _from_json(folder / CONFIG, data)
    version = config.pop("schema_version", None)
    if type(version) is not int or version < 1:
        raise UserError(f"{folder / CONFIG}: schema_version is missing or not a number; copy the checkpoint again")
    if version > SCHEMA_VERSION:
        raise UserError(f"{folder / CONFIG}: schema_version {version}, known up to {SCHEMA_VERSION}; upgrade wamtune")
    return config


def pack_training_state(state: dict[Any, Any]) -> dict[str, bytes]:
    """Convert the state of a training (optimizer, generators, counters) to files for `extra`.

    `state` may nest dicts, lists, tuples and dataclasses of tensors, numbers, strings and None. All values are restored
    exactly, also dict keys of type int. A tensor object that occurs twice is stored once.

    Raises:
        TypeError: a value has another type.
    """
    tensors: dict[int, tuple[int, Tensor]] = {}
    tree = _pack(state, tensors, "state")
    named = {str(number): _plain(tensor) for number, tensor in tensors.values()}
    return {STATE_TREE: to_json(tree), STATE_TENSORS: _tensor_file(named)}


def load_training_state(
    name_or_path: str | Path, types: Mapping[str, Callable[..., Any]] | None = None
) -> dict[Any, Any]:
    """Return the state that was given to `pack_training_state`, with tensors on the CPU.

    `types` are the dataclasses that may occur in it, by name: only these are built, from their attributes.

    Raises:
        UserError: as for `load_checkpoint`, or the checkpoint has no training state, or one of another version.
    """
    folder = find_checkpoint(name_or_path)
    if STATE_TREE not in _manifest(folder):
        raise UserError(f"{folder}: no training state in it; to continue, name the folder of a run that saved one")
    files = _read_verified(folder, (STATE_TREE, STATE_TENSORS))
    tensors = _load_tensors(folder / STATE_TENSORS, files[STATE_TENSORS])
    tree = _from_json(folder / STATE_TREE, files[STATE_TREE])
    try:
        state: dict[Any, Any] = _unpack(tree, tensors, types or {})
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder}: its training state is not one of this version ({error!r}); begin anew") from error
    return state


def checkpoint_files(name_or_path: str | Path) -> dict[str, bytes]:
    """Return all files that the manifest lists, and the manifest, by name; other files in the folder are ignored.

    Raises:
        UserError: as for `load_checkpoint`, or a file is a link to a place outside the folder: a copy of it could
            publish a private file.
    """
    folder = find_checkpoint(name_or_path)
    # The files of a download are links from its folder to another one in the cache, of the same repository.
    within = storage_of(folder) if is_hub_name(name_or_path) else folder
    files = _read_verified(folder, _manifest(folder), within)
    return files | {MANIFEST: read_file(folder / MANIFEST, LIMITS[MANIFEST], within)}


def with_file(files: Mapping[str, bytes], name: str, data: bytes) -> dict[str, bytes]:
    """Return the `files` of a checkpoint, from `checkpoint_files`, with another content of one of them.

    The manifest changes with it.
    """
    manifest = parse_json(files[MANIFEST])
    manifest["files"][name] = _fingerprint(data)
    return {**files, name: data, MANIFEST: to_json(manifest)}


def checked_weights(where: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to float32 (integers and booleans stay as they are) and check that they are finite.

    Raises:
        UserError: a value is complex, or not finite in float32; the message names `where` and the tensor.
    """
    import torch

    cast = {}
    for name, tensor in tensors.items():
        if tensor.is_complex():
            raise UserError(f"{where}: tensor {name!r} is complex, expected real numbers; nothing was loaded")
        cast[name] = tensor.float() if tensor.is_floating_point() else tensor
        if not torch.isfinite(cast[name]).all():  # after the conversion, because 1e300 in float64 becomes infinite
            raise UserError(f"{where}: tensor {name!r} holds a value that is not finite; nothing was loaded")
    return cast


def find_checkpoint(name_or_path: str | Path) -> Path:
    """Return the folder of a checkpoint, from its path, a run folder (its `checkpoints/last`) or a built-in name.

    A built-in name may leave out "-tuned": `metaworld` means `metaworld-tuned`.

    A folder of runs, such as `runs/demo`, means the newest run in it that has a checkpoint; `latest` means the newest
    of all runs that has one. A name on the Hugging Face Hub is downloaded first, see `world_model.hub`.

    Raises:
        UserError: there is no such checkpoint, the path is a file, or the download failed.
    """
    if is_hub_name(name_or_path):
        return _downloaded(str(name_or_path))
    path = Path(name_or_path)
    if path.is_file():
        raise UserError(
            f"{path} is a file; a checkpoint is a folder with {MANIFEST} (pickled .pt or .zip are not loaded)"
        )
    # Order: the path itself, the last checkpoint of a run, the last checkpoints of newer to older runs, a built-in.
    candidates = [folder / "checkpoints" / "last" for folder in (path, *newest_runs(path))]
    candidates.insert(0, path)
    if len(path.parts) == 1:
        candidates += BUILTIN / path, BUILTIN / f"{path}-tuned"
    for folder in map(existing_folder, candidates):
        # One of the three files is enough: loading a damaged checkpoint reports what is wrong with it.
        if any((folder / name).exists() for name in (MANIFEST, CONFIG, MODEL)):
            return folder
    if (run := find_run(path)) is not None:
        raise UserError(f"{run} has no checkpoint yet; let the run go on: wamtune {verb_of(run)} {run}")
    on_hub = f", or {PREFIX}{path} on the Hub" if is_repository_name(str(path)) else ""
    # Typing errors alone: runs/own-tuned and runs/own-pretrained are different things.
    near = get_close_matches(str(path), named_runs(), n=1, cutoff=0.85)
    known = f"did you mean {near[0]!r}?" if near else closest_or_known(str(path), builtin_checkpoints())
    raise UserError(f"no checkpoint at {path}; {known}; try `wamtune ls checkpoints`{on_hub}")


def builtin_checkpoints() -> list[str]:
    """Return the names of the checkpoints that come with wamtune, sorted."""
    return sorted(manifest.parent.name for manifest in BUILTIN.glob(f"[!.]*/{MANIFEST}"))


def _downloaded(name: str) -> Path:
    folder = download(name)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{name}: it has no {MANIFEST}; expected a checkpoint that wamtune wrote, take another one")
    return folder


def check_replaceable(final: Path) -> None:
    """Raise `UserError` if `final` is a file, or a folder with something else than a checkpoint in it."""
    if final.is_file() or (final.is_dir() and any(final.iterdir()) and not (final / MANIFEST).exists()):
        raise UserError(f"{final}: it exists and is not a checkpoint; nothing was replaced, choose another folder")


def _plain(tensor: Tensor) -> Tensor:
    # Clone, because safetensors refuses tensors that share memory.
    import torch

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _tensor_file(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    data: bytes = save(tensors)
    return data


def _from_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = parse_json(data)
    except ValueError as error:  # includes UnicodeDecodeError
        raise UserError(f"{path}: it is not valid JSON; copy the checkpoint again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: it does not hold a JSON object; copy the checkpoint again")
    return content


def _load_tensors(path: Path, data: bytes) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        return load(data)
    except Exception as error:  # a damaged header can raise any exception
        raise UserError(f"{path}: it is not a safetensors file; copy the checkpoint again") from error


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the files that the manifest lists: name -> {size, sha256}; names inside the folder only."""
    path = folder / MANIFEST
    files = _from_json(path, _read(path, LIMITS[MANIFEST])).get("files")
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise UserError(f"{path}: it does not list files with size and sha256; copy the checkpoint again")
    if len(files) > MOST_FILES:
        raise UserError(f"{path}: it lists {len(files):,} files, at most {MOST_FILES:,} are read; copy it again")
    # A hostile manifest could list files outside the checkpoint.
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise UserError(f"{path}: it lists {name!r}, which is outside the checkpoint; nothing was read")
    return files


def _is_entry(entry: Any) -> bool:
    fits = isinstance(entry, dict) and entry.keys() == {"size", "sha256"}
    return fits and type(entry["size"]) is int and isinstance(entry["sha256"], str)


def _read_verified(folder: Path, wanted: Collection[str], within: Path | None = None) -> dict[str, bytes]:
    """Check size and sha256 of every file in the manifest, and return the bytes of the `wanted` ones.

    A file is read into memory only after its check. `within`: see `open_file`.
    """
    manifest = _manifest(folder)
    for name in wanted:
        if name not in manifest:
            raise UserError(
                f"{folder / MANIFEST}: it does not list {name}; copy it again, or name one of our model's checkpoints"
            )
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
    """Convert `value` to JSON-compatible values; types that JSON lacks become a dict with one key, the type's tag.

    Tensors are numbered and collected in `tensors` by their `id`; `where` is the path to `value`, for the error.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):  # JSON has no nan and inf; json.dumps keeps every bit of the others
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if _is_tensor(value):
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


def _is_tensor(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor)


def _unpack(value: Any, tensors: dict[str, Tensor], types: Mapping[str, Callable[..., Any]]) -> Any:
    """Undo `_pack`."""
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
