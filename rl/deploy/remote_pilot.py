"""A policy at the other end of a line, for a session on a robot: `wamtune deploy ws://HOST:PORT run ...`.

The robot's side keeps everything that decides about safety: limits, stops, the plan and its splicing. The server only
sends chunks of actions, which are treated like those of any other policy. While the line is lost, the rest of the plan
is executed, then the robot stands still, and after `max_late` such commands the session stops.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.deploy.remote_client import BadAnswer, Client, Refused, pack
from world_model.env import Obs
from world_model.extras import pip_line
from world_model.spec import Spec

TOKEN = "WAMTUNE_TOKEN"
"""Environment variable with the token, so that it stands in no command line."""

SCHEMES = ("ws://", "wss://")
"""How the name of a policy on a server begins."""

PATIENCE_S = 3.0
"""Seconds to wait for an answer, and after which no further attempt is made to connect again."""

RETRY_S = 0.05
"""Seconds between two attempts to connect."""


def is_remote(name: str) -> bool:
    """Whether the name of a policy is that of a server."""
    return name.startswith(SCHEMES)


class RemotePilot:
    """A policy that `wamtune serve` offers; see `rl.deploy.pilots.Pilot`.

    Args:
        url: of the server.
        connect: returns a connected client.

    Attributes:
        trouble: why the line is lost at the moment; empty: it is not.

    Raises:
        UserError: there is no server, it refuses the token, or msgpack or websockets is missing.
    """

    def __init__(self, url: str, connect: Callable[[str], Client] | None = None) -> None:
        self.url, self._connect, self.trouble = url, connect or _client, ""
        try:
            self._line: Client | None = self._connect(url)
        except ImportError as error:
            raise UserError(f"{url}: a policy on a server needs {_package(error)}; {pip_line('serve')}") from error
        except (Refused, ConnectionError) as error:
            raise UserError(f"{error}; start wamtune serve there, or name another url") from error
        self._server = self._line.server
        try:
            self.spec = Spec.from_dict(self._server["spec"])
        except UserError:
            self.close()
            raise
        self.n_context_frames: int = self._server["n_context_frames"]
        self.chunk_size: int = self._server["chunk_size"]
        self.noise_shape: tuple[int, ...] = tuple(self._server["noise_shape"])
        self._instruction = ""  # sentence in place of that of the task, see `tell`

    def __str__(self) -> str:
        about = self._server
        return f"{self.url}: {about['checkpoint']:.200}, sha256 {about['sha256'][:12] or 'unknown'}"

    @property
    def reads_sentences(self) -> bool:
        """Whether the policy there takes any sentence; that of an older server takes none."""
        return self._server.get("reads_sentences") is True

    def tell(self, task: str, instruction: str) -> None:
        """Send this sentence with each request; a session records it as the instruction of `task`."""
        self._instruction = instruction
        self.spec = replace(self.spec, instructions=self.spec.instructions | {task: instruction})

    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """See `Pilot.act`. If the line is lost, connect again and repeat the request, until `PATIENCE_S` have passed.

        Raises:
            ConnectionError: the line is still lost, the answer is not what a policy sends, or the server has another
                policy now. A session stops.
            UserError: the server refused the request.
        """
        features = {name: values.numpy() for name, values in obs.items() if name != "task"}
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._open_line()
                arrays = (obs["task"].numpy(), noise.numpy(), held.numpy(), n_held.numpy())
                actions = line.act(features, *arrays, instruction=self._instruction)
            except Refused as error:
                raise UserError(str(error)) from error
            except BadAnswer:
                raise
            except ConnectionError as error:
                self.trouble = str(error)
                self.close()
                if time.monotonic() > end:
                    raise
                time.sleep(RETRY_S)
                continue
            self.trouble = ""
            return torch.from_numpy(actions)

    def latency_s(self, n: int = 5) -> float:
        """Return the longest time in seconds of `n` plans from an observation of zeros."""
        rows = {
            name: torch.zeros(1, self.n_context_frames, *feature.shape, dtype=getattr(torch, feature.dtype))
            for name, feature in self.spec.features.items()
        }
        rows["task"] = torch.zeros(1, dtype=torch.long)
        noise, nothing = torch.zeros(1, *self.noise_shape), torch.zeros(1, dtype=torch.long)
        held, longest = torch.zeros(1, self.chunk_size, self.spec.action_dim), 0.0
        for _ in range(n):
            begun = time.monotonic()
            self.act(rows, noise, held, nothing)
            longest = max(longest, time.monotonic() - begun)
        return longest

    @property
    def latency_budget_s(self) -> float:
        """Seconds that a plan may take: half of the time in which its chunk is executed."""
        return self.chunk_size / self.spec.control_hz / 2

    def close(self) -> None:
        """Close the line; the next call of `act` opens it again."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _open_line(self) -> Client:
        """Return the line, which is opened again if it was lost.

        Raises:
            BadAnswer: there is another policy at its other end than before.
        """
        if self._line is None:
            line = self._connect(self.url)
            if pack(line.server) != pack(self._server):
                line.close()
                raise BadAnswer(f"{self.url}: the server has another policy than before")
            self._line = line
        return self._line


def _package(error: ImportError) -> str:
    return str(error.name).partition(".")[0]


def _client(url: str) -> Client:
    return Client(url, os.environ.get(TOKEN, ""), timeout_s=PATIENCE_S)
