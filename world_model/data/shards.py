"""A shard: one safetensors file with many episodes, their lengths in a JSON header, and checksums of both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, save
from torch import Tensor

from rewards.errors import UserError
from world_model.data.episode import Episode
from world_model.files import TENSOR_BYTES, open_file, parse_json, read_all, update
from world_model.spec import LATENTS, STATE, Spec

SCHEMA_VERSION = 2
"""2: a tensor for each feature. In version 1 the codes of images are the end of the state vector."""

SHARD_BYTES = TENSOR_BYTES // 4
"""Largest size of a shard of imported episodes, well below the limit for reading one."""

OBSERVATION = "observation."
"""Beginning of the name of a feature in files, as in LeRobot's datasets; the rest is its name in an observation."""

DTYPES = {"F32": torch.float32, "BOOL": torch.bool, "U8": torch.uint8}
"""Name of a type in a safetensors header -> torch type, for the types that occur in a shard."""

HEADER_BYTES = 64_000_000
"""Largest accepted size of a safetensors header, in bytes."""


def in_shards(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Yield episodes in groups of about `SHARD_BYTES` at most, since a shard is read as a whole."""
    size, group = 0, list[Episode]()
    for episode in episodes:
        # float32 actions, and two values per step.
        added = 4 * (episode.action.numel() + 2 * episode.length) + sum(x.nbytes for x in episode.obs.values())
        if group and size + added > SHARD_BYTES:
            yield group
            size, group = 0, []
        size += added
        group.append(episode)
    yield group


def pack_episodes(episodes: list[Episode], spec: Spec) -> bytes:
    """Return the bytes of one shard, for an `EpisodeStore` or to store it with other files, such as a checkpoint.

    The tensors of all episodes are concatenated. Their lengths and everything else are in a JSON header, which has its
    own sha256.
    """
    # An episode without rewards of the simulator gets zeros; `task_reward` in its row tells the two cases apart.
    rewards = [torch.zeros(e.length) if e.task_reward is None else e.task_reward for e in episodes]
    tensors = {
        **{OBSERVATION + name: _single(torch.cat([e.obs[name] for e in episodes])) for name in episodes[0].obs},
        "action": torch.cat([e.action for e in episodes]).float(),
        "next.success": torch.cat([e.success for e in episodes]).bool(),
        "next.reward": torch.cat(rewards).float(),
    }
    who = [torch.zeros(e.length) if e.control is None else e.control for e in episodes]
    tensors |= {"control": torch.cat(who).to(torch.uint8)} if any(e.control is not None for e in episodes) else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    rows = [
        {
            "task": e.task,
            "source": e.source,
            "seed": e.seed,
            "length": e.length,
            "is_success": e.is_success,
            "task_reward": e.task_reward is not None,
            "every": e.every,
            "control": e.control is not None,
        }
        for e in episodes
    ]
    header = json.dumps(
        {"schema_version": SCHEMA_VERSION, "sha256": digest_of(tensors), "spec": spec.to_dict(), "episodes": rows}
    )
    return save(tensors, metadata={"wamtune": header, "sha256": hashlib.sha256(header.encode()).hexdigest()})


def _single(values: Tensor) -> Tensor:
    """Return the values of a feature in a type of `DTYPES`: numpy's own float64 would not be read again."""
    return values if values.dtype == torch.uint8 else values.float()


def read_shard(
    shard: Path,
    tasks: Collection[str] | None = None,
    sources: Collection[str] | None = None,
    features: Collection[str] | None = None,
) -> list[Episode]:
    """Read the episodes of one shard; arguments and errors are those of `EpisodeStore.load`."""
    # The header is small: skip the tensors of a shard that has none of the wanted episodes.
    rows = read_header(shard)["episodes"]
    wanted = [(tasks is None or row["task"] in tasks) and (sources is None or row["source"] in sources) for row in rows]
    if not any(wanted):
        return []
    header, tensors = _read(shard)
    spec, lengths = _spec(shard, header["spec"]), [row["length"] for row in rows]
    if header["schema_version"] == 1:
        tensors = _with_latents(tensors, spec, rows)
    names = [name.removeprefix(OBSERVATION) for name in tensors if name.startswith(OBSERVATION)]
    if features is not None:
        names = [name for name in names if name in features]
        spec = replace(spec, features={name: of for name, of in spec.features.items() if name in features})
    tensors.setdefault("control", torch.zeros(sum(lengths), dtype=torch.uint8))
    try:
        parts = zip(
            *(tensors[name].split(lengths) for name in ("action", "next.success", "next.reward", "control")),
            *(
                tensors[OBSERVATION + name].split([-(-row["length"] // row["every"].get(name, 1)) + 1 for row in rows])
                for name in names
            ),
            strict=True,
        )
    except (KeyError, RuntimeError) as error:
        raise _damaged(shard) from error
    episodes = []
    for row, keep, (action, success, reward, control, *obs) in zip(rows, wanted, parts, strict=True):
        if not keep:
            continue
        # Clone, because a view would keep the whole shard in memory.
        episode = Episode(
            obs={name: values.clone() for name, values in zip(names, obs, strict=True)},
            action=action.clone(),
            success=success.clone(),
            task=row["task"],
            source=row["source"],
            seed=row["seed"],
            task_reward=reward.clone() if row["task_reward"] else None,
            every={name: every for name, every in row["every"].items() if name in names},
            control=control.clone() if row.get("control") else None,
        )
        episode.check_fits(spec, f"{shard}: episode of seed {episode.seed}")
        episodes.append(episode)
    return episodes


def read_header(shard: Path) -> dict[str, Any]:
    """Return the header of a shard, the part that `pack_episodes` writes as JSON, without its tensors.

    Raises:
        UserError: the shard is damaged, or of a newer version.
    """
    file, _, header = _open(shard)
    file.close()
    return header


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Return one sha256 of all tensors, with their names, types and shapes."""
    # safetensors has no checksum. Without this one, training would use damaged data.
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_line(name, tensor.dtype, tensor.shape))
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _open(shard: Path) -> tuple[BinaryIO, dict[str, Any], dict[str, Any]]:
    """Open and check a shard. Return the file, its safetensors entries, and our own JSON header.

    The file is positioned after the safetensors header, at the first byte of tensor data.
    """
    try:
        file = open_file(shard, TENSOR_BYTES)
    except FileNotFoundError as error:
        raise _damaged(shard) from error
    try:
        # Format of safetensors: 8 bytes with the size of the header, the header (JSON), the data of the tensors.
        size = int.from_bytes(file.read(8), "little")
        entries = parse_json(file.read(size)) if size <= HEADER_BYTES else {}
        metadata = entries.pop("__metadata__")
        if 8 + size + max(entry["data_offsets"][1] for entry in entries.values()) != os.fstat(file.fileno()).st_size:
            raise _damaged(shard)
        text = metadata["wamtune"]
        if hashlib.sha256(text.encode()).hexdigest() != metadata["sha256"]:
            raise _damaged(shard)
        header: dict[str, Any] = parse_json(text)
        version = header["schema_version"]
        if version > SCHEMA_VERSION:
            raise UserError(f"{shard}: schema_version {version}, known up to {SCHEMA_VERSION}; upgrade wamtune")
        for row in header["episodes"] if version == 1 else ():
            every = row.pop("picture_every", 1)  # the oldest shards have no images
            row["every"] = {} if every == 1 else {LATENTS: every}
        _check_rows(header["episodes"])
        _spec(shard, header["spec"])
    except UserError:
        file.close()
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        file.close()
        raise _damaged(shard) from error
    return file, entries, header


def _check_rows(rows: list[dict[str, Any]]) -> None:
    """Raise `ValueError` if a row of the header is not as `pack_episodes` writes it."""
    for row in rows:
        fits = type(row["length"]) is int and row["length"] >= 1 and type(row["seed"]) is int
        fits = fits and abs(row["seed"]) < 2**63 and all(isinstance(row[key], str) for key in ("task", "source"))
        fits = fits and type(row["is_success"]) is type(row["task_reward"]) is bool
        every = row["every"]
        fits = fits and all(isinstance(name, str) for name in every) and all(type(n) is int for n in every.values())
        if not fits or any(n < 1 for n in every.values()):
            raise ValueError("a row of episodes")


def _spec(shard: Path, spec: dict[str, Any]) -> Spec:
    try:
        return Spec.from_dict(spec)
    except UserError as error:
        raise UserError(f"{shard}: {error}; delete it and collect its episodes again") from error


def _read(shard: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and tensors of a shard. The checksum is verified piece by piece before the file is loaded."""
    file, entries, header = _open(shard)
    with file:
        digest, start = hashlib.sha256(), file.tell()
        try:
            for name, entry in sorted(entries.items()):
                digest.update(_line(name, DTYPES[entry["dtype"]], entry["shape"]))
                first, last = entry["data_offsets"]
                file.seek(start + first)
                update(digest, file, last - first)
            if digest.hexdigest() != header["sha256"]:
                raise _damaged(shard)
            file.seek(0)
            return header, load(read_all(file))
        except UserError:
            raise
        except Exception as error:  # a damaged header can raise any exception
            raise _damaged(shard) from error


def _line(name: str, dtype: torch.dtype, shape: Sequence[int]) -> bytes:
    """Return what the digest includes about a tensor besides its data."""
    return f"{name} {dtype} {tuple(shape)}".encode()


def _with_latents(tensors: dict[str, Tensor], spec: Spec, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Give the codes at the end of the state vectors of a shard of version 1 their own tensor, without repeats."""
    if LATENTS not in spec.features:
        return tensors
    try:
        state, latents = tensors[OBSERVATION + STATE].split([spec.state_dim, *spec.features[LATENTS].shape], dim=1)
    except (KeyError, RuntimeError, IndexError):  # reported where the tensors are split into episodes
        return tensors
    kept, offset = [], 0
    for row in rows:
        length, every = row["length"], row["every"].get(LATENTS, 1)
        kept += [offset + step for step in (*range(0, length, every), length)]
        offset += length + 1
    if offset != len(latents):
        return tensors
    return tensors | {OBSERVATION + STATE: state.contiguous(), OBSERVATION + LATENTS: latents[torch.tensor(kept)]}


def _damaged(shard: Path) -> UserError:
    return UserError(f"{shard}: the file is damaged; delete it and collect its episodes again")
