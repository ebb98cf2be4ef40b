"""What `wamtune serve` offers, and how a request is answered: `act`, and with a dream `reset` and `step_chunk`.

This file knows messages and no network; `rl.deploy.server` carries them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError, did_you_mean
from rl.deploy.newest_sentence import NewestSentence
from rl.deploy.openpi import NOT_FINITE, OpenpiHandler
from rl.deploy.pilots import Pilot, reads_sentences
from rl.deploy.remote_client import PROTOCOL, Malformed, checked, pack, unpack
from world_model.api import WorldModel
from world_model.dream_env import DreamEnv, StartStates
from world_model.env import ChunkStep
from world_model.spec import Feature

Array = np.ndarray
Message = dict[Any, Any]

ROOM = 1 << 16
"""Bytes of a message beside the numbers of its arrays."""

FIELDS = ("reward", "executed", "terminated", "truncated", "is_success", "actions", "success")
"""Tensors of a `ChunkStep` that an answer has, beside the observations and the frames."""


@dataclass(frozen=True)
class Dream:
    """The dream that a server offers: each client gets environments of its own."""

    model: WorldModel
    starts: StartStates  # recorded states in which dreams begin
    horizon: int  # chunks before a dream is truncated
    max_steps: int
    images: tuple[str, ...] = ()  # image features of observations, beside the latents that the model predicts

    def env(self, n_envs: int) -> DreamEnv:
        """Return new environments; success is their only reward."""
        return DreamEnv(
            self.model, n_envs, self.starts, horizon=self.horizon, max_steps=self.max_steps, images=self.images
        )

    def about(self) -> dict[str, Any]:
        """Return what a client is told of it."""
        model = self.model
        images = {name: model.spec.features[name] for name in self.images}
        return {
            "spec": model.predicted_spec.to_dict(),
            "images": {name: {"shape": list(image.shape), "dtype": image.dtype} for name, image in images.items()},
            "n_context_frames": model.n_context_frames,
            "chunk_size": model.chunk_size,
            "horizon": self.horizon,
            "max_steps": self.max_steps,
        }


@dataclass(frozen=True)
class Served:
    """A policy, and its dream if there is one."""

    pilot: Pilot
    checkpoint: str  # its name, for people
    sha256: str  # of its weights; empty: unknown
    max_rows: int = 16  # most rows of a request, and most dreams of a client
    seed: int = 0  # of the noise for clients of openpi, which send none
    rename: Mapping[str, str] = field(default_factory=dict)  # key of openpi's observations -> feature
    dream: Dream | None = None

    @cached_property
    def greeting(self) -> bytes:
        """The first message to each client."""
        pilot = self.pilot
        return pack(
            {
                "wamtune": PROTOCOL,
                "checkpoint": self.checkpoint,
                "sha256": self.sha256,
                "spec": pilot.spec.to_dict(),
                "n_context_frames": pilot.n_context_frames,
                "chunk_size": pilot.chunk_size,
                "noise_shape": list(pilot.noise_shape),
                "latency_budget_s": pilot.chunk_size / pilot.spec.control_hz / 2,
                "max_rows": self.max_rows,
                "max_bytes": self.max_bytes,
                "reads_sentences": reads_sentences(pilot),
                "dream": None if self.dream is None else self.dream.about(),
            }
        )

    @cached_property
    def max_bytes(self) -> int:
        """Size in bytes of the largest request that makes sense; anything larger is not read."""
        pilot = self.pilot
        n_actions = pilot.chunk_size * pilot.spec.action_dim
        if self.dream is not None:
            n_actions = max(n_actions, self.dream.model.chunk_size * self.dream.model.spec.action_dim)
        numbers = math.prod(pilot.noise_shape) + n_actions + 2
        row = 8 * numbers + pilot.n_context_frames * sum(map(_bytes_of, pilot.spec.features.values()))
        return ROOM + self.max_rows * row

    def handler(self) -> Handler:
        """Return the handler of one client."""
        return Handler(self)


class Handler:
    """Answers the requests of one client; each client has a handler, and dreams, of its own."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._last = 0  # id of the newest request
        self._env: DreamEnv | None = None
        self._sentence = NewestSentence(served.pilot) if reads_sentences(served.pilot) else None
        self._openpi = OpenpiHandler(served.pilot, served.seed, served.rename)
        self._ops = {"act": self._act, "reset": self._reset, "step_chunk": self._step_chunk}

    def answer(self, data: bytes) -> bytes | str:
        """Return the answer to a message; text is an error that belongs to no request, as clients of openpi expect.

        Raises:
            Malformed: it is no message at all.
        """
        message = unpack(data)
        if "op" not in message:
            try:
                return pack(self._openpi.infer(message))
            except UserError as error:
                return str(error)
        number = message.get("id")
        if type(number) is not int or not self._last < number < 2**63:
            return f"id: expected a whole number above {self._last}, that of the request before"
        self._last = number
        try:
            return pack({"id": number, **self._done(message)})
        except UserError as error:
            return pack({"id": number, "error": str(error)})

    def _done(self, message: Message) -> dict[str, Any]:
        """Do what a message asks for; return the fields of the answer."""
        op = message["op"]
        if not isinstance(op, str) or op not in self._ops:
            word = op[:40] if isinstance(op, str) else type(op).__name__
            raise UserError(f"op={word}: expected one of {', '.join(self._ops)}{did_you_mean(word, self._ops)}")
        given = {name: value for name, value in message.items() if name not in ("op", "id")}
        try:
            return self._ops[op](given)
        except Malformed as error:
            raise UserError(f"{op}: {error}") from error

    def _act(self, given: Message) -> dict[str, Any]:
        pilot = self.served.pilot
        _check_names(given, ("obs", "task", "noise", "held", "n_held"), optional=("instruction",))
        n, spec = self._n_rows(given["task"]), pilot.spec
        task = checked(given["task"], "task", "<i8", (n,))
        if (task < 0).any() or (task >= len(spec.tasks)).any():
            raise Malformed(f"task has an index beyond 0 to {len(spec.tasks) - 1}")
        n_held = checked(given["n_held"], "n_held", "<i8", (n,))
        if (n_held < 0).any() or (n_held > pilot.chunk_size).any():
            raise Malformed(f"n_held has a number beyond 0 to {pilot.chunk_size}, the actions of a chunk")
        obs = given["obs"]
        if not isinstance(obs, dict):
            raise Malformed("obs is no map of features")
        _check_names(obs, tuple(spec.features))
        rows = {
            name: checked(obs[name], f"obs.{name}", _dtype(feature), (n, pilot.n_context_frames, *feature.shape))
            for name, feature in spec.features.items()
        }
        noise = checked(given["noise"], "noise", "<f4", (n, *pilot.noise_shape))
        held = checked(given["held"], "held", "<f4", (n, pilot.chunk_size, spec.action_dim))
        tensors = {name: torch.from_numpy(values) for name, values in (rows | {"task": task}).items()}
        if "instruction" in given:
            tensors["task"] = self._told(given["instruction"]).expand(n, -1)
        actions = pilot.act(tensors, *(torch.from_numpy(values) for values in (noise, held, n_held)))
        if not torch.isfinite(actions).all():
            raise UserError(f"act: {NOT_FINITE}")
        return {"actions": _plain(actions)}

    def _told(self, instruction: Any) -> Tensor:
        """Return the vector (1, dim) of the sentence of a request, which then counts in place of its tasks."""
        if self._sentence is None:
            raise Malformed("instruction: the policy here knows its tasks by name and reads no sentence; leave it out")
        if not isinstance(instruction, str):
            raise Malformed(f"instruction is a {type(instruction).__name__}, expected text")
        return self._sentence.read(instruction, "instruction")

    def _reset(self, given: Message) -> dict[str, Any]:
        dream = self._dream()
        _check_names(given, ("n_envs", "seed"))
        n_envs, seed = given["n_envs"], given["seed"]
        if type(n_envs) is not int or not 1 <= n_envs <= self.served.max_rows:
            raise Malformed(f"n_envs: expected a whole number from 1 to {self.served.max_rows}, see max_rows")
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise Malformed("seed: expected a whole number from 0 to 2,147,483,647")
        self._env = dream.env(n_envs)
        return {"obs": _plain_all(self._env.reset(seed))}

    def _step_chunk(self, given: Message) -> dict[str, Any]:
        self._dream()
        _check_names(given, ("actions",))
        env = self._env
        if env is None:
            raise Malformed("there is no dream yet; send a reset first")
        actions = checked(given["actions"], "actions", "<f4", (env.num_envs, None, env.spec.action_dim))
        if not 1 <= actions.shape[1] <= env.chunk_size:
            raise Malformed(f"actions has {actions.shape[1]} steps, expected 1 to {env.chunk_size}")
        return _plain_step(env.step_chunk(torch.from_numpy(actions)))

    def _dream(self) -> Dream:
        if self.served.dream is None:
            raise Malformed("this server offers no dream; start it with dream=true")
        return self.served.dream

    def _n_rows(self, task: Any) -> int:
        """Return the number of rows of a request, which its tasks say."""
        n = len(task) if isinstance(task, np.ndarray) and task.ndim == 1 else 0
        if not 1 <= n <= self.served.max_rows:
            raise Malformed(f"task: expected an index for each of 1 to {self.served.max_rows} rows, see max_rows")
        return n


def _check_names(given: Message, expected: Collection[str], optional: Collection[str] = ()) -> None:
    """Check that a message has the expected fields and no others but optional ones.

    Raises:
        Malformed: it has not; the message names one.
    """
    for name in expected:
        if name not in given:
            raise Malformed(f"{name} is missing; expected {', '.join(expected)}")
    for name in given:
        if name not in (*expected, *optional):
            word = name[:40] if isinstance(name, str) else type(name).__name__
            raise Malformed(f"unknown {word!r}; expected {', '.join((*expected, *optional))}")


def _plain_step(step: ChunkStep) -> dict[str, Any]:
    """Return a step as the fields of an answer."""
    fields = {name: _plain(getattr(step, name)) for name in FIELDS}
    return fields | {name: _plain_all(getattr(step, name)) for name in ("obs", "final_obs", "frames")}


def _plain_all(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: _plain(values) for name, values in tensors.items()}


def _plain(values: Tensor) -> Array:
    array: Array = values.detach().cpu().numpy()
    return array


def _dtype(feature: Feature) -> str:
    return "|u1" if feature.dtype == "uint8" else "<f4"


def _bytes_of(feature: Feature) -> int:
    """Return the most bytes of a feature of one frame: clients of openpi may send float64."""
    return math.prod(feature.shape) * (1 if feature.dtype == "uint8" else 8)
