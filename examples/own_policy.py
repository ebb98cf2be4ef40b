"""A policy of your own: a small flow-matching network on the state, trained by imitation and PPO as the built-in one.

    wamtune train sim policy=examples/own_policy.py:OwnPolicy demonstrations=metaworld-tuned \
        env.tasks=button-press-topdown ppo.imitation_steps=3000 n_rounds=1
    wamtune eval runs/sim policy=examples/own_policy.py:OwnPolicy env.tasks=button-press-topdown

The first phase imitates the demonstrations, from random weights; then PPO goes on. docs/bring_your_own.md explains each
part.
"""

import torch
from torch import Tensor, nn

from rl.policies.api import Denoiser
from world_model.env import Obs
from world_model.spec import Feature


class OwnPolicy(Denoiser):
    """An MLP outputs the velocity from actions to noise; time 1 is noise, time 0 is actions.

    The default sizes are those of Meta-World. Actions must be between -1 and 1.
    """

    n_denoising_steps = 4  # of its own sampler

    def __init__(self, state_dim: int = 21, action_dim: int = 4, horizon: int = 8, width: int = 256) -> None:
        super().__init__()
        self.reads = {"state": Feature((state_dim,))}
        self.horizon, self.chain_dim, self.n_features = horizon, action_dim, state_dim
        self.velocity = nn.Sequential(
            nn.Linear(state_dim + horizon * action_dim + 1, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, horizon * action_dim),
        )

    def encode(self, obs: Obs, generator: torch.Generator | None = None) -> Tensor:
        """Return the newest state (n, state_dim); all other methods get it as `encoded`."""
        return obs["state"][:, -1]

    def features(self, encoded: Tensor) -> Tensor:
        """Return what the critic reads."""
        return encoded

    def step(self, prepared: Tensor, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, None]:
        """Take an Euler step from time 1 - i / n_steps; None: the sampler itself adds no noise."""
        time = x.new_full((len(x), 1, 1), 1 - i / n_steps)
        return x - self._velocity(prepared, x, time) / n_steps, None

    def to_actions(self, encoded: Tensor, x: Tensor) -> Tensor:
        """Return the actions of finished chunks, which are in environment units already."""
        return x

    def imitation_loss(self, encoded: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the flow-matching loss of demonstrated chunks (n, horizon, action_dim)."""
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        time = torch.rand(len(actions), 1, 1, generator=generator, device=actions.device)
        x = (1 - time) * actions + time * noise
        return (self._velocity(encoded, x, time) - (noise - actions)).square().mean()

    def action_parameters(self) -> list[nn.Parameter]:
        """Return what is trained; all other weights would stay frozen."""
        return list(self.velocity.parameters())

    def _velocity(self, state: Tensor, x: Tensor, time: Tensor) -> Tensor:
        return self.velocity(torch.cat([state, x.flatten(1), time.flatten(1)], dim=1)).view_as(x)
