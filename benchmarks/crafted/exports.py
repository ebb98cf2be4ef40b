"""Exported policies: graphs and their contracts."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch

from benchmarks.crafted.checkpoints import SPEC
from rl.deploy.contract import CONTRACT, ONNX, SCHEMA_VERSION
from rl.deploy.pilots import OnnxPilot


def make_export(folder: Path) -> None:
    """Write the export of a policy that returns its held actions."""
    write_export(folder, graph())


def graph(op: str = "Identity", **attributes: Any) -> bytes:
    """Return an ONNX graph with the inputs and outputs of an export; one node computes its actions."""
    from onnx import TensorProto, helper

    shapes = {"state": [2, 6], "task": [], "noise": [1, 16], "held": [8, 2], "n_held": []}
    ports = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT if shape else TensorProto.INT64, ["batch", *shape] if shape else ["batch"]
        )
        for name, shape in shapes.items()
    ]
    out = helper.make_tensor_value_info("actions", TensorProto.FLOAT, None)
    nodes, constants = [helper.make_node(op, ["held"], ["actions"], **attributes)], []
    if op == "ConstantOfShape":
        constants = [helper.make_tensor("size", TensorProto.INT64, [2], [100_000, 100_000])]
        nodes = [helper.make_node(op, ["size"], ["actions"])]
    if op == "Loop":
        value = helper.make_tensor_value_info
        body = helper.make_graph(
            [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["x"], ["y"])],
            "body",
            [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
            [value("go_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
        )
        constants = [
            helper.make_tensor("n", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        ]
        nodes = [helper.make_node(op, ["n", "true", "held"], ["actions"], body=body)]
    made = helper.make_graph(nodes, "g", ports, [out], initializer=constants)
    data: bytes = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    return data


def write_export(folder: Path, onnx: bytes) -> None:
    """Write a graph with a matching contract."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ONNX).write_bytes(onnx)
    shapes = {"state": [2, 6], "task": [], "noise": [1, 16], "held": [8, 2], "n_held": []}
    port: dict[str, Any] = {"unit": "", "low": None, "high": None}
    inputs = [
        port | {"name": name, "dtype": "float32" if s else "int64", "shape": ["batch", *s], "axes": ["batch"]}
        for name, s in shapes.items()
    ]
    out = port | {"name": "actions", "dtype": "float32", "shape": ["batch", 8, 2], "axes": ["batch"]}
    sizes = {"chunk_size": 8, "n_action_steps": 4, "n_context_frames": 2, "n_denoising_steps": 2, "control_hz": 20.0}
    texts = dict.fromkeys(("checkpoint", "stage", "compared_on", "command", "wamtune_version", "torch_version"), "x")
    contract = {
        **{"schema_version": SCHEMA_VERSION, "policy": "flow", "inputs": inputs, "outputs": [out]},
        **{"spec": SPEC.to_dict(), "tasks": {"a": 0, "b": 1}, "unknown_task": 2, "latency_budget_s": 0.2},
        **{"largest_difference": 0.0, "checkpoint_sha256": "0" * 64, **sizes, **texts},
        "onnx_sha256": hashlib.sha256(onnx).hexdigest(),
    }
    (folder / CONTRACT).write_text(json.dumps(contract))


def hostile_graph(folder: Path, rng: random.Random) -> None:
    """Write a graph that is damaged or computes something else, with a matching contract."""
    data = bytearray((folder / ONNX).read_bytes())
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    cut = bytes(data[: rng.randrange(len(data))])
    others = [graph("ConstantOfShape"), graph("Loop"), graph("Shape"), graph("Nonsense"), graph("Flatten"), b""]
    write_export(
        folder, rng.choice([bytes(data), bytes(data), bytes(data), cut, rng.randbytes(99), rng.choice(others)])
    )


def read_export(folder: Path) -> None:
    """Load the export and act once."""
    pilot = OnnxPilot(folder)
    chunk, task = torch.zeros(1, pilot.chunk_size, pilot.spec.action_dim), torch.zeros(1, dtype=torch.long)
    obs = {"state": torch.zeros(1, pilot.n_context_frames, pilot.spec.state_dim), "task": task}
    pilot.act(obs, torch.zeros(1, *pilot.noise_shape), chunk, task)
