"""vla_jepa: flow matching by a head that attends to a few tokens of a frozen vision-language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rl.policies.lerobot.families import STATE, Batch, Family, drawn_from, first_noise, named
from world_model.tree import Tree


class JepaFamily(Family):
    """VLA-JEPA's head for actions; its world model is not used, as in acting.

    The conditioning, tokens of the vision-language model and the state, is kept in place of the observation.
    """

    steps_key = "num_inference_timesteps"

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.horizon = self.config.chunk_size

    def condition(self, batch: Batch) -> tuple[Tree, Tensor]:
        """Encode images and instruction, as LeRobot's `predict_action` does."""
        model, size = self.policy.model, self.config.resize_images_to
        with torch.no_grad():
            given = self.policy._prepare_model_inputs(batch, training=False)
            images = given["images"]
            if size is not None:
                images = [[nn.functional.interpolate(x[None], size, mode="area")[0] for x in row] for row in images]
            tokens = model._encode_qwen(images, given["instructions"], need_action_tokens=False)[0].float()
        # The tokens do not know the state.
        features = torch.cat([tokens.mean(1), batch[STATE].float()], dim=-1)
        return {"tokens": tokens, "state": given["state"].float()}, features

    def step(self, conditioning: Tree, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, None]:
        """Take one Euler step from time i / n_steps; time 0 is noise."""
        bucket = int(i / n_steps * self.config.action_num_timestep_buckets)
        time = torch.full((len(x),), bucket, dtype=torch.long, device=x.device)
        return x + self._velocity(conditioning, x, time) / n_steps, None

    def noised(self, clean: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor:
        """Return the point of the path at time i / n_steps; see `Family.noised`."""
        return (1 - i / n_steps) * noise + i / n_steps * clean

    def errors(self, conditioning: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the squared errors of flow matching."""
        with drawn_from(generator):
            noise = torch.randn_like(actions)
            t = self.policy.model.action_model.sample_time(len(actions), actions.device, actions.dtype)
        level = t.view(-1, 1, 1)
        bucket = (t * self.config.action_num_timestep_buckets).long()
        velocity = self._velocity(conditioning, (1 - level) * noise + level * actions, bucket)
        return (velocity - (actions - noise)).square()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the head."""
        return named(self.policy, "model.action_model.")

    def own_sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the chunk of LeRobot's own sampler, which draws its noise; it is replaced."""
        with first_noise(noise):
            chunk: Tensor = self.policy.predict_action_chunk(dict(batch))
        return chunk

    def _velocity(self, conditioning: Tree, x: Tensor, time: Tensor) -> Tensor:
        """Return data minus noise, as the head estimates it for chunks `x` at whole times (n,), from 0 at noise."""
        head = self.policy.model.action_model
        hidden = head._build_inputs(conditioning["tokens"], x, conditioning["state"], time)
        out = head.model(hidden_states=hidden, encoder_hidden_states=conditioning["tokens"], timestep=time)
        velocity: Tensor = head.action_decoder(out[:, -x.shape[1] :])
        return velocity
