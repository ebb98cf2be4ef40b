"""Any `Denoiser` on a robot: its own sampler, which continues the actions that are executed meanwhile."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rewards.errors import UserError
from rl.policies.api import Denoiser
from world_model.env import Obs
from world_model.spec import STATE, Feature, Spec
from world_model.tree import Tree


class DenoiserPilot:
    """A network of somebody else that acts on a robot; see `rl.deploy.pilots.Pilot`.

    A robot has one state vector. If the network reads `environment_state` apart, it gets the last numbers of that
    vector, as `joined` puts them together.

    Args:
        denoiser: the network.
        spec: of the robot, with the features that the network reads.
        n_denoising_steps: steps per chunk; None: as many as the network's own sampler takes.

    Raises:
        UserError: the network cannot act there, see `Denoiser.attach`.
    """

    def __init__(self, denoiser: Denoiser, spec: Spec, n_denoising_steps: int | None = None) -> None:
        denoiser.attach(spec)
        self.denoiser, self.reads = denoiser, denoiser.spec
        self.n_denoising_steps = n_denoising_steps or denoiser.n_denoising_steps
        self.spec = joined(self.reads)
        self.n_context_frames, self.chunk_size = denoiser.n_context_frames, denoiser.chunk_size
        self.low, self.high = (torch.tensor(bounds) for bounds in (self.spec.action_low, self.spec.action_high))
        # The noise that starts a chain, then that of each step of a stochastic sampler.
        n_noises = 1 + self.n_denoising_steps * denoiser.is_stochastic
        self.noise_shape: tuple[int, ...] = (n_noises, denoiser.horizon, denoiser.chain_dim)

    @torch.no_grad()
    def act(self, obs: Obs, noise: Tensor, held: Tensor, n_held: Tensor) -> Tensor:
        """See `Pilot.act`.

        Raises:
            UserError: the network returned actions of another shape.
        """
        denoiser, device = self.denoiser, self.denoiser.device
        encoded = denoiser.encode({name: values.to(device) for name, values in self._as_read(obs).items()})
        is_held = torch.arange(self.chunk_size) < n_held.unsqueeze(1)
        x = self._denoised(encoded, noise.to(device), held.to(device), is_held.to(device))
        actions = denoiser.to_actions(encoded, x).to("cpu", torch.float32)
        if actions.shape != held.shape:
            raise UserError(
                f"the policy returned actions of shape {list(actions.shape)}, expected {list(held.shape)}: "
                "(n, chunk_size, action_dim); correct its to_actions, horizon or first"
            )
        return torch.where(is_held.unsqueeze(2), held, actions.clamp(self.low, self.high))

    def _denoised(self, encoded: Tree, noise: Tensor, held: Tensor, is_held: Tensor) -> Tensor:
        """Return finished chunks (n, horizon, chain_dim); the actions of `held` where `is_held` are kept on the path.

        The path is inpainted in each step, as in real-time chunking (Black et al., 2506.07339).
        """
        denoiser, n_steps, start = self.denoiser, self.n_denoising_steps, noise[:, 0]
        x = torch.zeros_like(start) if denoiser.starts_at_zero else start
        # Rows of the chain before the first executed action are past, and no action is held there.
        is_held_row = torch.nn.functional.pad(is_held, (denoiser.first, 0)).unsqueeze(2)
        prepared = denoiser.prepare(encoded)
        for i in range(n_steps):
            fixed = denoiser.noised(encoded, held, start, i, n_steps) if is_held.any() else None
            if fixed is not None:
                x = torch.where(is_held_row, fixed, x)
            x, std = denoiser.step(prepared, x, i, n_steps)
            if denoiser.is_stochastic and std is not None:
                x = x + std * noise[:, i + 1]
        return x

    def _as_read(self, obs: Obs) -> Obs:
        """Split the robot's state into the vectors that the network reads."""
        names = self.reads.vectors
        sizes = [self.reads.features[name].shape[0] for name in names]
        return {**obs, **dict(zip(names, obs[STATE].split(sizes, dim=-1), strict=True))}


def joined(spec: Spec) -> Spec:
    """Return a spec with the vectors of `spec` joined to one `state` in their order, whose slices are `spec.parts`."""
    size = sum(spec.features[name].shape[0] for name in spec.vectors)
    slices = {name: (part.start, part.stop) for name, part in spec.parts.items()}
    others = {name: feature for name, feature in spec.features.items() if name not in spec.vectors}
    return replace(spec, features={STATE: Feature((size,), slices=slices), **others})
