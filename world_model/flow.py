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
    """Draw noise levels (n,), a fifth of them pure noise, where every integration starts; the rest are uniform."""
    return (1.25 * torch.rand(n, generator=generator, device=generator.device)).clamp(max=1.0)


def noised(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Point of the path at `t` (batch,) between `clean` and `noise` (batch, ...)."""
    t = t.view(-1, *(1,) * (clean.dim() - 1))
    return (1 - t) * clean + t * noise


def step_mean(x: Tensor, clean_estimate: Tensor, step: int, n_steps: int) -> Tensor:
    """Go from t = 1 - step / n_steps one Euler step towards the data; the last step lands on the estimate."""
    share = 1 / (n_steps - step)  # dt / t
    return x + share * (clean_estimate - x)


def noise_level(step: int, n_steps: int) -> float:
    """Noise level at which `step` of `n_steps` starts."""
    return 1 - step / n_steps


def gaussian_log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of `x` under N(mean, std^2), summed over all but the first dimension, in float32. Shape: (batch,)."""
    z = (x.float() - mean.float()) / std
    return (-0.5 * z.square() - math.log(std * math.sqrt(2 * math.pi))).flatten(1).sum(1)


def seeded_noise(seeds: Tensor, counter: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (n, *shape) that depends on (seed, counter) of each row alone, not on its neighbours."""
    rows = []
    for seed, count in zip(seeds.tolist(), counter.tolist(), strict=True):
        # Of a seed the generator looks at 32 bits, in which no two decisions of neighbouring episodes are alike.
        generator = torch.Generator().manual_seed((seed * 1_000_003 + count) % (2**63))
        rows.append(torch.randn(shape, generator=generator, device=generator.device))
    return torch.stack(rows).to(seeds.device)
