"""Policies that run on a robot, with one interface: a model in torch, an export in onnxruntime, or one on a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError
from rl.deploy.contract import CONTRACT, ONNX, load_contract
from rl.deploy.frames import Frame, tensors_of
from rl.deploy.onnx_trial import complaint
from rl.deploy.remote_pilot import RemotePilot, is_remote
from rl.policies.wam import ModelPilot, load_actor
from world_model.env import Obs
from world_model.extras import import_extra
from world_model.files import TENSOR_BYTES, existing_folder, read_file
from world_model.flow import seeded_noise
from world_model.spec import Spec

Array = np.ndarray


class Pilot(Protocol):
    """A policy with the sizes that the control loop needs."""

    spec: Spec
    n_context_frames: int
    chunk_size: int
    noise_shape: tuple[int, ...]

    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """Return chunks (n, chunk_size, action_dim).

        Args:
            obs: the features of `spec`, each (n, n_context_frames, *shape), and `task` (n,) int64.
            noise: start of the sampler, (n, *noise_shape).
            held: chunk whose first `n_held` actions are fixed, (n, chunk_size, action_dim).
            n_held: (n,) int64.
        """


class OnnxPilot:
    """A policy exported by `wamtune deploy ... export`, run by onnxruntime.

    Args:
        folder: of the export.

    Raises:
        UserError: the export is damaged, its policy does not support held actions, or onnxruntime is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        contract = load_contract(folder)
        self.spec, self.n_context_frames = Spec.from_dict(contract["spec"]), contract["n_context_frames"]
        self.chunk_size = contract["chunk_size"]
        ports = self._ports(folder, contract)
        self.noise_shape = tuple(ports["noise"][1][1:])
        path = existing_folder(Path(folder)) / ONNX
        graph = read_file(path, TENSOR_BYTES)  # as bytes: then the graph cannot refer to other files
        _onnxruntime()
        # Try the graph in a limited process before loading it here.
        if why := complaint(graph, ports, ports["held"][1]):
            raise UserError(f"{path}: the graph cannot be run ({why}); export the policy again")
        self._session = onnx_session(graph, 1)  # one thread: the graph is too small to gain from more

    def _ports(self, folder: str | Path, contract: dict[str, Any]) -> dict[str, tuple[str, list[int]]]:
        """Check the inputs against the sizes of the contract; return name -> (dtype, shape with batch 1)."""
        ports = {port["name"]: (port["dtype"], [1, *port["shape"][1:]]) for port in contract["inputs"]}
        if "held" not in ports:
            raise UserError(f"{folder}: policy={contract['policy']} plans no chunk beside another; run a flow policy")
        expected = {
            "state": ("float32", [1, self.n_context_frames, self.spec.state_dim]),
            "task": ("int64", [1]),
            "noise": ("float32", ports.get("noise", ("", []))[1]),  # any size
            "held": ("float32", [1, self.chunk_size, self.spec.action_dim]),
            "n_held": ("int64", [1]),
        }
        frames = self.n_context_frames
        expected |= {name: ("uint8", [1, frames, *self.spec.features[name].shape]) for name in self.spec.images}
        if ports != expected:
            wrong = next(name for name in (*expected, *ports) if ports.get(name) != expected.get(name))
            raise UserError(
                f"{folder}: the input {wrong!r:.80} does not fit the sizes of its contract; export it again"
            )
        return ports

    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """See `Pilot.act`."""
        given = {**obs, "noise": noise, "held": held, "n_held": n_held}
        (actions,) = self._session.run(["actions"], {name: value.numpy() for name, value in given.items()})
        return torch.from_numpy(actions)


def onnx_session(onnx: bytes, n_threads: int) -> Any:
    """Return an onnxruntime session for a graph, on the CPU.

    Raises:
        UserError: onnxruntime is missing.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    return ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _onnxruntime() -> Any:
    return import_extra("onnxruntime", "export", "an export needs onnxruntime to run")


def load_pilot(name_or_folder: str, n_denoising_steps: int | None = None) -> Pilot:
    """Load an export if the folder contains one, else a checkpoint or a run folder; for a url, connect to its server.

    A checkpoint acts with the denoising steps of its training unless another number is given. Exports and servers have
    numbers of their own.
    """
    if is_remote(name_or_folder):
        return RemotePilot(name_or_folder)
    if (Path(name_or_folder) / CONTRACT).is_file():
        return OnnxPilot(name_or_folder)
    return ModelPilot(load_actor(name_or_folder), n_denoising_steps)


def reads_sentences(pilot: Pilot) -> TypeGuard[ModelPilot]:
    """Whether a policy can be told any sentence, see `ModelPilot.read`."""
    return isinstance(pilot, ModelPilot) and pilot.reads_sentences


class Decider:
    """Calls a pilot with the planner's arguments: an observation, and actions to hold at the start of the chunk.

    Args:
        pilot: the policy.
        task: name of the task.
        seed: of the noise; as in evaluation, each chunk gets new noise.
    """

    def __init__(self, pilot: Pilot, task: str, seed: int) -> None:
        self.pilot, self.seed, self.n_chunks = pilot, seed, 0
        self.task = torch.tensor([pilot.spec.tasks.index(task)])

    def __call__(self, obs: Frame, held: Array) -> Array:
        """Return a chunk (chunk_size, action_dim); `obs` has features (n_context_frames, *shape), `held` n actions."""
        pilot, n_held = self.pilot, torch.tensor([len(held)])
        # Noise depends on the seed and the number of the chunk only, so an episode repeats with the same noise.
        noise = seeded_noise(torch.tensor([self.seed]), torch.tensor([self.n_chunks]), pilot.noise_shape)
        self.n_chunks += 1
        chunk = torch.zeros(1, pilot.chunk_size, pilot.spec.action_dim)
        if len(held):
            chunk[0, : len(held)] = torch.tensor(held)
        rows = tensors_of(obs) | {"task": self.task}
        actions: Array = pilot.act(rows, noise, chunk, n_held)[0].numpy()
        return actions
