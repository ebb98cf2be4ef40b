"""Flow matching with clean-sample prediction: noise levels, the path, integration steps, likelihood of a noisy chain.

Along the path x_t = (1 - t) * x_0 + t * noise a network estimates x_0; the velocity is (x_t - x_0) / t (Lipman et al.,
2210.02747, with the direction of time reversed: t = 1 is noise). Predicting the clean sample instead of the velocity
keeps wide codes learnable in narrow models (Li & He, 2511.13720).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def uniform_noise_level(n: int, generator: torch.Generator) -> Tensor:
    """Draw noise levels in [0, 1]: a fifth of them 1 (pure noise), the rest uniform. Shape: (n,)."""
    # Every integration starts at pure noise, so that level gets extra samples: uniform in [0, 1.25], clamped to 1.
    return (1.25 * torch.rand(n, generator=generator, device=generator.device)).clamp(max=1.0)


def noised(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Mix `clean` and `noise` (batch, ...): the point of the path at noise level `t` (batch,)."""
    t = t.view(-1, *(1,) * (clean.dim() - 1))  # broadcast over all dimensions but the batch
    return (1 - t) * clean + t * noise


def step_mean(x: Tensor, clean_estimate: Tensor, step: int, n_steps: int) -> Tensor:
    """Take one Euler step of size 1 / n_steps from t = 1 - step / n_steps towards the data.

    The last step returns `clean_estimate` itself.
    """
    # dx = velocity * -dt = (clean_estimate - x) * dt / t
    share = 1 / (n_steps - step)  # dt / t
    return x + share * (clean_estimate - x)


def noise_level(step: int, n_steps: int) -> float:
    """Return the noise level t at which `step` (from 0) of `n_steps` starts."""
    return 1 - step / n_steps


def gaussian_log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Return the log-density of `x` under N(mean, std^2), summed over all dimensions but the first, in float32.

    Shape: (batch,).
    """
    z = (x.float() - mean.float()) / std
    return (-0.5 * z.square() - math.log(std * math.sqrt(2 * math.pi))).flatten(1).sum(1)


def seeded_noise(seeds: Tensor, counter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw standard normal noise (n, *shape). A row depends only on its own seed and counter, not on the batch."""
    rows = []
    for seed, count in zip(seeds.tolist(), counter.tolist(), strict=True):
        # The CPU generator uses only 32 bits of a seed. This formula keeps those bits different for all decisions of
        # neighbouring episodes.
        generator = torch.Generator().manual_seed((seed * 1_000_003 + count) % (2**63))
        rows.append(torch.randn(shape, generator=generator, device=generator.device))
    return torch.stack(rows).to(seeds.device)
