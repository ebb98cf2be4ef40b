"""multi_task_dit and diffusion: a network that denoises a trajectory, conditioned on one vector of the observation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from rl.policies.lerobot.families import Batch, Family, drawn_from, first_noise, named, with_images
from world_model.tree import Tree


class ConditionedFamily(Family):
    """A policy with a frozen observation encoder and a trained denoising network; by flow matching or by DDPM.

    The conditioning is one vector for each row, so it is kept in place of the observation. A trajectory begins at the
    oldest observation, so its first rows belong to the past.
    """

    has_time = True

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.horizon, self.first = self.config.horizon, self.config.n_obs_steps - 1
        self.is_dit = self.config.type == "multi_task_dit"
        self.is_flow = self.is_dit and self.config.is_flow_matching
        if self.is_flow and self.config.integration_method != "euler":
            raise UserError(
                f"integration_method={self.config.integration_method}: a step of it has no Gaussian density; set it to "
                "euler in the config.json of the policy"
            )
        self.is_stochastic = not self.is_flow
        self.steps_key = "num_integration_steps" if self.is_flow else "num_inference_steps"
        if not self.is_flow:
            owner = policy.objective if self.is_dit else policy.diffusion
            self.scheduler = owner.noise_scheduler
            if type(self.scheduler).__name__ != "DDPMScheduler":
                raise UserError(
                    "noise_scheduler_type=DDIM: its steps have no noise, so a chunk has no likelihood; set it to DDPM "
                    "in the config.json of the policy, which changes no weights"
                )

    def condition(self, batch: Batch) -> tuple[Tree, Tensor]:
        """Encode the observation to one vector (n, n_features), which the critic reads as well."""
        with torch.no_grad():
            full = with_images(self.config, batch, stacked=True)
            if self.is_dit:
                vector = self.policy.observation_encoder.encode(full)
            else:
                vector = self.policy.diffusion._prepare_global_conditioning(full)
        return vector, vector.float()

    def step(self, conditioning: Tree, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        """Take a step of Euler, or of DDPM with its own deviation."""
        if self.is_flow:
            # The grid of LeRobot's integrator, with its rounding.
            grid = torch.linspace(0, 1, n_steps + 1)
            time, size = grid[i].item(), (grid[i + 1] - grid[i]).item()
            return x + size * self._output(x, torch.full((len(x),), time, device=x.device), conditioning), None
        self.scheduler.set_timesteps(n_steps)
        t = int(self.scheduler.timesteps[i])
        output = self._output(x, torch.full((len(x),), t, dtype=torch.long, device=x.device), conditioning)
        return ddpm_step(self.scheduler, output, t, x)

    def noised(self, clean: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor:
        """Return the point of the flow's path at the time of step `i`, or what DDPM makes of `clean` at that time."""
        if self.is_flow:
            time = torch.linspace(0, 1, n_steps + 1)[i].item()
            return time * clean + (1 - (1 - self.config.sigma_min) * time) * noise
        self.scheduler.set_timesteps(n_steps)
        mixed: Tensor = self.scheduler.add_noise(clean, noise, self.scheduler.timesteps[i : i + 1])
        return mixed

    def errors(self, conditioning: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the squared errors of flow matching, or of the noise that DDPM's network predicts."""
        with drawn_from(generator):
            noise = torch.randn_like(actions)
            if self.is_flow:
                t = self.policy.objective._sample_timesteps(len(actions), actions.device)
                keep = 1 - self.config.sigma_min
                level = t.view(-1, 1, 1)
                x, target = level * actions + (1 - keep * level) * noise, actions - keep * noise
            else:
                most = self.scheduler.config.num_train_timesteps
                t = torch.randint(most, (len(actions),), device=actions.device)
                x = self.scheduler.add_noise(actions, noise, t)
                target = noise if self.scheduler.config.prediction_type == "epsilon" else actions
        return (self._output(x, t, conditioning) - target).square()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the denoising network."""
        return named(self.policy, "noise_predictor." if self.is_dit else "diffusion.unet.")

    def own_sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the chunk of LeRobot's own sampler; that of multi_task_dit draws its noise, which is replaced."""
        vector, _ = self.condition(batch)
        if not self.is_dit:
            chunk: Tensor = self.policy.diffusion.conditional_sample(len(noise), vector, noise=noise)
            return chunk
        with first_noise(noise):
            chunk = self.policy.objective.conditional_sample(self.policy.noise_predictor, len(noise), vector)
        return chunk

    @property
    def own_steps(self) -> int:
        """Number of steps of LeRobot's own sampler; DDPM takes as many as in its training if none is configured."""
        return int(getattr(self.config, self.steps_key) or self.scheduler.config.num_train_timesteps)

    def _output(self, x: Tensor, t: Tensor, vector: Tensor) -> Tensor:
        """Return the output of the network for trajectories x (n, horizon, action_dim) at times t (n,)."""
        if self.is_dit:
            output: Tensor = self.policy.noise_predictor(x, t, conditioning_vec=vector)
        else:
            output = self.policy.diffusion.unet(x, t, global_cond=vector)
        return output


def ddpm_step(scheduler: Any, output: Tensor, t: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of a step of DDPM (Ho et al., 2006.11239, equation 7), as diffusers takes it.

    Args:
        scheduler: of diffusers, after `set_timesteps`.
        output: of the network for `x` at time `t`.
        t: an element of `scheduler.timesteps`.
        x: trajectories (n, horizon, action_dim).

    Returns:
        Mean, of the shape of `x`, and deviation, a scalar; it is 0 in the last step.
    """
    config = scheduler.config
    previous = t - config.num_train_timesteps // scheduler.num_inference_steps
    one = torch.ones((), device=x.device)
    share = scheduler.alphas_cumprod[t].to(x.device)  # of the data in x
    share_before = scheduler.alphas_cumprod[previous].to(x.device) if previous >= 0 else one
    kept = share / share_before
    # The clean trajectory that the output stands for.
    clean = output
    if config.prediction_type == "epsilon":
        clean = (x - (1 - share) ** 0.5 * output) / share**0.5
    if config.clip_sample:
        clean = clean.clamp(-config.clip_sample_range, config.clip_sample_range)
    mean = share_before**0.5 * (1 - kept) / (1 - share) * clean + kept**0.5 * (1 - share_before) / (1 - share) * x
    variance = ((1 - share_before) / (1 - share) * (1 - kept)).clamp(min=1e-20) if t > 0 else 0 * one
    return mean, variance.sqrt()
