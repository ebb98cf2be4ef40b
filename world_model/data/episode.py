"""One recorded episode: its observations, its actions and what came of them, as tensors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rewards.errors import UserError
from world_model.spec import STATE, Spec

POLICY, PERSON, BLEND = range(3)
"""Who acted in a step, see `Episode.control`."""


@dataclass
class Episode:
    """One recorded episode of `T` steps: action `t` leads from frame `t` to frame `t + 1`.

    A feature with one value per frame has T + 1 rows. A slower one, with a new value every `every[name]` steps, has
    rows for frames 0, every, 2 * every, ... and for the last frame; see `rows_of`.
    """

    obs: dict[str, Tensor]  # feature -> (rows, *shape): `state` float32, `images.CAMERA` uint8, `latents` float32
    action: Tensor  # (T, action_dim) float32, as executed, within bounds
    success: Tensor  # (T,) bool, whether frame t + 1 solves the task
    task: str
    source: str  # "expert", "noisy", "random", "policy", "import"
    seed: int
    task_reward: Tensor | None = None  # (T,) float32, the simulator's own reward
    every: dict[str, int] = field(default_factory=dict)  # feature -> steps between its rows, if more than 1
    control: Tensor | None = None  # (T,) uint8, who acted: POLICY, PERSON or a BLEND of both; None: unknown

    @property
    def state(self) -> Tensor:
        """The state vectors (T + 1, state_dim)."""
        return self.obs[STATE]

    @property
    def length(self) -> int:
        """Number of steps."""
        return self.action.shape[0]

    @property
    def is_success(self) -> bool:
        """Whether any step is a success."""
        return bool(self.success.any())

    def rows_of(self, name: str) -> Tensor:
        """Return for each frame (T + 1,) the row of a feature that holds its value."""
        every = self.every.get(name, 1)
        rows = torch.arange(self.length + 1, device=self.action.device) // every
        rows[-1] = -(-self.length // every)  # the last frame has a row of its own
        return rows

    def cut(self, first: int, last: int) -> Episode:
        """Return the part from frame `first` to frame `last`; `first` is a frame in which every feature has a row."""
        obs = {}
        for name, values in self.obs.items():
            every, rows = self.every.get(name, 1), self.rows_of(name)
            frames = [*range(first, last, every), last]
            obs[name] = values[rows[frames]]
        return replace(
            self,
            obs=obs,
            action=self.action[first:last],
            success=self.success[first:last],
            task_reward=None if self.task_reward is None else self.task_reward[first:last],
            control=None if self.control is None else self.control[first:last],
        )

    def slowed(self, name: str, every: int) -> Episode:
        """Return the episode with a feature that has a new value every `every` steps, and in the last frame."""
        values = self.obs[name][self.rows_of(name)[[*range(0, self.length, every), self.length]]]
        return replace(self, obs={**self.obs, name: values}, every={**self.every, name: every})

    def only(self, names: Collection[str]) -> Episode:
        """Return the episode with those of its features that are in `names`."""
        obs = {name: values for name, values in self.obs.items() if name in names}
        return replace(self, obs=obs, every={name: every for name, every in self.every.items() if name in names})

    def check_fits(self, spec: Spec, where: str) -> None:
        """Check features, shapes, task and numbers against `spec`; `where` names the episode in the message.

        Raises:
            UserError: a feature is missing, a shape or the task does not fit, there are no steps, an image is no uint8,
                or a number is not finite.
        """
        steps = self.length
        expected = {"action": (self.action, (steps, spec.action_dim)), "success": (self.success, (steps,))}
        for name, feature in spec.features.items():
            if name not in self.obs:
                raise UserError(f"{where}: it has no {name!r}, it has {', '.join(self.obs)}; leave the episode out")
            n_rows = -(-steps // self.every.get(name, 1)) + 1
            expected = {name: (self.obs[name], (n_rows, *feature.shape)), **expected}
        if self.task_reward is not None:
            expected["task_reward"] = (self.task_reward, (steps,))
        if self.control is not None:
            expected["control"] = (self.control, (steps,))
        if steps == 0:
            raise UserError(f"{where}: the episode has no steps; leave it out")
        if self.task not in spec.tasks:
            known = ", ".join(spec.tasks)
            raise UserError(f"{where}: task {self.task!r:.80} is unknown; the known tasks are {known:.500}")
        for name, (tensor, shape) in expected.items():
            if tensor.shape != shape:
                raise UserError(f"{where}: {name} has shape {tuple(tensor.shape)}, expected {shape}")
            if name in spec.images and tensor.dtype != torch.uint8:
                raise UserError(f"{where}: {name} is {tensor.dtype}, expected torch.uint8, from 0 to 255")
            finite = torch.isfinite(tensor) if tensor.dim() == 1 else torch.isfinite(tensor).flatten(1).all(1)
            if tensor.is_floating_point() and not finite.all():
                step = int((~finite).nonzero()[0])
                raise UserError(f"{where}: {name} is not finite at step {step}; leave the episode out")
