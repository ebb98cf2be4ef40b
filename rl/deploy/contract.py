"""The contract of an exported policy: inputs, outputs and rate of `policy.onnx`, and the checkpoint that it is from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError
from rl.policies.exportable import Exportable
from world_model.checkpoint import MODEL, find_checkpoint
from world_model.files import JSON_BYTES, existing_folder, read_file, sha256
from world_model.spec import Spec

SCHEMA_VERSION = 2
ONNX, CONTRACT = "policy.onnx", "contract.json"

STATE = "one frame per control step; at the start of an episode, its first frame fills the missing earlier ones"
NOISE = (
    "the start of the sampler; the same noise gives the same actions. Evaluation draws new standard normal noise for "
    "each chunk, and success is measured that way. Zeros are valid too: actions then depend only on state and task"
)

IMAGE = (
    "RGB, the upper row first: the newest image last, before it the one of `every` control steps earlier. Of a larger "
    "image, take the largest middle part with the shape of height x width, and scale it down by averaging over areas"
)

HELD = (
    "a chunk whose first n_held actions will be executed while the new chunk is computed; they are returned unchanged, "
    "and the other actions continue from them. With n_held = 0 nothing is held"
)

LARGEST, MOST_NUMBERS, MOST_PORTS = 10_000, 10_000_000, 100
"""Upper limits: of a size of the policy, of the numbers in an input or output, of the count of inputs or outputs."""

Check = tuple[str, Callable[[Any], bool]]
"""The expectation of a value: in words, and as a test."""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int and value >= 0  # `type`, since isinstance would accept a bool


def _is_shape(value: Any) -> bool:
    """Return whether it is a list of "batch" and sizes, with at most `MOST_NUMBERS` numbers in all."""
    if not isinstance(value, list) or value[:1] != ["batch"] or len(value) > 5:
        return False
    return all(_is_whole(n) and 1 <= n <= MOST_NUMBERS for n in value[1:]) and math.prod(value[1:]) <= MOST_NUMBERS


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


TEXT: Check = ("text", lambda v: isinstance(v, str))
SHA256: Check = ("64 hexadecimal digits", lambda v: isinstance(v, str) and len(v) == 64)
COUNT: Check = ("a whole number of at least 1", lambda v: _is_whole(v) and v >= 1)
SIZE: Check = (f"a whole number from 1 to {LARGEST:,}", lambda v: _is_whole(v) and 1 <= v <= LARGEST)
WHOLE: Check = ("a whole number of at least 0", _is_whole)
POSITIVE: Check = ("a number above 0", lambda v: _is_number(v) and v > 0)
PORTS: Check = ("a list of objects", lambda v: _is_list_of(v, dict) and 0 < len(v) <= MOST_PORTS)
INDICES: Check = (
    "an object of names and indices",
    lambda v: isinstance(v, dict) and len(v) > 0 and all(map(_is_whole, v.values())),
)
BOUNDS: Check = (
    "null, a number or a list of numbers",
    lambda v: v is None or _is_number(v) or (isinstance(v, list) and all(map(_is_number, v))),
)

FIELDS: dict[str, Check] = {
    "schema_version": COUNT,
    "checkpoint": TEXT,  # its name or folder, as the user gave it
    "stage": TEXT,
    "policy": ("'flow' or 'gaussian'", lambda v: v in ("flow", "gaussian")),
    "inputs": PORTS,  # in the order of the graph
    "outputs": PORTS,
    "spec": ("an object", lambda v: isinstance(v, dict)),  # features, bounds, tasks and rate, as in a checkpoint
    "tasks": INDICES,
    "unknown_task": ("null or a whole number", lambda v: v is None or _is_whole(v)),  # index for a task not listed
    "control_hz": POSITIVE,  # actions per second
    "chunk_size": SIZE,  # actions that one call predicts
    "n_action_steps": SIZE,  # how many of them to execute before the next call
    "latency_budget_s": POSITIVE,  # n_action_steps / control_hz: time until the next chunk is needed
    "n_context_frames": SIZE,
    "n_denoising_steps": WHOLE,  # 0: a Gaussian policy, which has no sampler
    "largest_difference": ("a number", _is_number),  # between actions of onnxruntime and torch, at the export
    "compared_on": TEXT,
    "onnx_sha256": SHA256,
    "checkpoint_sha256": SHA256,  # of its model.safetensors
    "command": TEXT,
    "wamtune_version": TEXT,
    "torch_version": TEXT,
}
"""All fields of a contract, in the order of the file."""

PORT_FIELDS: dict[str, Check] = {
    "name": TEXT,
    "dtype": TEXT,
    "shape": ("a list of 'batch' and numbers", _is_shape),
    "axes": ("a list of texts", lambda v: _is_list_of(v, str)),  # meaning of each axis of the shape
    "unit": TEXT,
    "low": BOUNDS,  # one number for all entries, or a list for the entries of the last axis; null: no bound
    "high": BOUNDS,
}
"""All fields of an input or output; the state also has `slices`, an image `every` and `images_per_s`, and some have an
explanation, `about`."""


def make_contract(policy: Exportable, onnx: bytes, difference: float, compared_on: str, command: str) -> dict[str, Any]:
    """Return the contract of an exported policy.

    Args:
        policy: the exported policy.
        onnx: bytes of its `policy.onnx`.
        difference: the largest difference of an action between onnxruntime and torch.
        compared_on: the inputs on which that difference was measured.
        command: the command that exported it.
    """
    spec, flow = policy.spec, policy.is_flow
    return {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": policy.checkpoint,
        "stage": policy.stage,
        "policy": "flow" if flow else "gaussian",
        "inputs": _inputs(policy),
        "outputs": [_actions("actions", policy)],
        "spec": spec.to_dict(),
        "tasks": {task: i for i, task in enumerate(spec.tasks)},
        "unknown_task": len(spec.tasks) if flow else None,
        "control_hz": spec.control_hz,
        "chunk_size": policy.chunk_size,
        "n_action_steps": policy.n_action_steps,
        "latency_budget_s": policy.n_action_steps / spec.control_hz,
        "n_context_frames": policy.n_context_frames,
        "n_denoising_steps": policy.n_denoising_steps,
        "largest_difference": difference,
        "compared_on": compared_on,
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
        "checkpoint_sha256": sha256(find_checkpoint(policy.checkpoint) / MODEL),
        "command": command,
        "wamtune_version": _version(),
        "torch_version": str(torch.__version__),
    }


def load_contract(folder: str | Path) -> dict[str, Any]:
    """Return the contents of `contract.json` after checking every field and the hash of `policy.onnx`.

    Raises:
        UserError: a file is missing or damaged, or a field is missing or invalid; the message names file and field.
    """
    folder = existing_folder(Path(folder))
    path = folder / CONTRACT
    contract = _read(path)
    found = contract.get("schema_version")
    if type(found) is int and found != SCHEMA_VERSION:
        remedy = "upgrade wamtune" if found > SCHEMA_VERSION else "export the policy again"
        raise UserError(f"{path}: schema_version={found}, expected {SCHEMA_VERSION}; {remedy}")
    _check(path, "", contract, FIELDS)
    for side in ("inputs", "outputs"):
        for i, port in enumerate(contract[side]):
            _check(path, f"{side}[{i}].", port, PORT_FIELDS)
    try:
        Spec.from_dict(contract["spec"])
    except UserError as error:
        raise UserError(f"{path}: {error}; export the policy again") from error
    _check_onnx(folder / ONNX, contract["onnx_sha256"])
    return contract


def _inputs(policy: Exportable) -> list[dict[str, Any]]:
    spec, n_tasks = policy.spec, len(policy.spec.tasks)
    shape = policy.n_context_frames, spec.state_dim
    state = _port("state", "float32", shape, ("frame, oldest first", "feature"), spec.features["state"].unit)
    state["slices"] = [{"name": name, "start": s.start, "stop": s.stop} for name, s in spec.slices.items()]
    state["about"] = STATE
    # A flow policy accepts one more index, for a task that it does not know.
    ports = [state, _port("task", "int64", (), (), "index of tasks", 0, n_tasks - (not policy.is_flow))]
    if policy.noise_shape is not None:
        noise = _port("noise", "float32", policy.noise_shape, ("token", "code"), "standard deviations")
        n_held = _port("n_held", "int64", (), (), "actions", 0, policy.chunk_size)
        ports += [noise | {"about": NOISE}, _actions("held", policy) | {"about": HELD}, n_held]
    return ports + [_image(name, policy) for name in spec.images]


def _image(name: str, policy: Exportable) -> dict[str, Any]:
    feature = policy.spec.features[name]
    axes = ("frame, oldest first", "row", "column", "colour")
    port = _port(name, "uint8", (policy.n_context_frames, *feature.shape), axes, "levels of RGB", 0, 255)
    hz = policy.spec.control_hz / feature.every
    return port | {"every": feature.every, "images_per_s": hz, "about": IMAGE}


def _actions(name: str, policy: Exportable) -> dict[str, Any]:
    spec = policy.spec
    shape, axes = (policy.chunk_size, spec.action_dim), ("step, first to execute first", "dimension of the action")
    low, high = list(spec.action_low), list(spec.action_high)
    return _port(name, "float32", shape, axes, "of the environment's actions", low, high)


def _port(
    name: str, dtype: str, shape: tuple[int, ...], axes: tuple[str, ...], unit: str, low: Any = None, high: Any = None
) -> dict[str, Any]:
    shapes = {"shape": ["batch", *shape], "axes": ["batch", *axes]}
    return {"name": name, "dtype": dtype, **shapes, "unit": unit, "low": low, "high": high}


def _version() -> str:
    try:
        return version("wamtune")
    except PackageNotFoundError:  # run from a source folder that is not installed
        return "unknown"


def _read(path: Path) -> dict[str, Any]:
    try:
        contract = json.loads(read_file(path, JSON_BYTES))
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file is missing; name the folder that `wamtune deploy` wrote") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(f"{path}: it is not valid JSON; export the policy again") from error
    if not isinstance(contract, dict):
        raise UserError(f"{path}: it does not hold a JSON object; export the policy again")
    return contract


def _check(path: Path, prefix: str, values: Mapping[str, Any], fields: Mapping[str, Check]) -> None:
    for name, (expected, holds) in fields.items():
        if name not in values:
            raise UserError(f"{path}: {prefix}{name} is missing, expected {expected}; export the policy again")
        if not holds(values[name]):
            found = f"{prefix}{name}={values[name]!r:.100}"
            raise UserError(f"{path}: {found}, expected {expected}; export the policy again")


def _check_onnx(path: Path, expected: str) -> None:
    try:
        found = sha256(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); export the policy again") from error
    if found != expected:
        raise UserError(
            f"{path}: its sha256 is not the onnx_sha256 of {CONTRACT}; the file is altered, export the policy again"
        )
