"""smolvla, pi0 and pi05: flow matching by an action expert that attends to the keys and values of a frozen VLM."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from rl.policies.lerobot.families import STATE, Batch, Family, Stop, drawn_from, named
from world_model.tree import Tree

EXPERTS = {
    "smolvla": ("model.vlm_with_expert.lm_expert.",),
    "pi0": ("model.paligemma_with_expert.gemma_expert.model.", "model.state_proj."),
    "pi05": ("model.paligemma_with_expert.gemma_expert.model.",),
}
"""Type -> prefixes of the parameters of its action expert. In smolvla the state is a part of the frozen prefix."""

PROJECTIONS = ("model.action_in_proj.", "model.action_out_proj.", "model.action_time_mlp_", "model.time_mlp_")


class VelocityFamily(Family):
    """A policy whose `model.denoise_step` returns the velocity, noise minus data, at times from 1 to 0.

    Its conditioning, the keys and values of the VLM, is much larger than the observation: 3.5 MB against .2 MB for
    smolvla and one camera of 224 pixels. So observations are kept, and encoded again for each update.
    """

    keeps_observation = True

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.horizon, self.chain_dim = self.config.chunk_size, self.config.max_action_dim
        self.steps_key = "num_steps" if hasattr(self.config, "num_steps") else "num_inference_steps"

    def condition(self, batch: Batch) -> tuple[Tree, Tensor]:
        """Run the VLM as LeRobot's sampler does, and stop before the first step."""
        model, caught = self.policy.model, dict[str, Any]()
        network = getattr(model, "vlm_with_expert", None) or model.paligemma_with_expert
        forward = network.forward

        def catch(**given: Any) -> None:
            caught.update(given)
            raise Stop

        def keep_hidden(*args: Any, **given: Any) -> Any:
            out = forward(*args, **given)
            caught["hidden"] = out[0][0]
            return out

        # Attributes of the instances hide the methods of their classes for the duration of the call.
        model.denoise_step, network.forward = catch, keep_hidden
        try:
            with torch.no_grad():
                self.policy.predict_action_chunk(dict(batch))
        except Stop:
            pass
        finally:
            del model.denoise_step, network.forward
        del caught["x_t"], caught["timestep"]
        mask, hidden = caught["prefix_pad_masks"], caught.pop("hidden").float()
        mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        # The VLM of pi0 does not know the state, so it is appended for all three.
        features = torch.cat([mean, batch[STATE].float()], dim=-1)
        # The cache as plain tensors: LeRobot's object would be changed by each step.
        cache = [(layer.keys, layer.values) for layer in caught.pop("past_key_values").layers]
        return {"given": caught, "cache": cache}, features

    def step(self, conditioning: Tree, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, None]:
        """Take one Euler step of size 1 / n_steps, in float32."""
        time = torch.full((len(x),), 1 - i / n_steps, dtype=torch.float32, device=x.device)
        return x - self._velocity(conditioning, x, time) / n_steps, None

    def noised(self, clean: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor:
        """Return the point of the straight path at the time of step `i`, which is 1 at noise."""
        time = 1 - i / n_steps
        return time * noise + (1 - time) * clean

    def errors(self, conditioning: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the squared errors of flow matching; LeRobot's loss, but the VLM gets no gradient."""
        padded = torch.nn.functional.pad(actions, (0, self.chain_dim - self.action_dim))
        with drawn_from(generator):
            noise = torch.randn_like(padded)
            t = self.policy.model.sample_time(len(actions), actions.device)
        level = t.view(-1, 1, 1)
        velocity = self._velocity(conditioning, level * noise + (1 - level) * padded, t)
        return (velocity - (noise - padded)).square()[:, :, : self.action_dim]

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the action expert and its projections."""
        # The expert's output layer for words is not used by any action.
        return named(self.policy, *EXPERTS[self.config.type], *PROJECTIONS)

    def _velocity(self, conditioning: Tree, x: Tensor, time: Tensor) -> Tensor:
        """Return noise minus data, as the network estimates it for chunks `x` at times (n,), in float32."""
        # A new cache for each call, because a step changes it.
        pairs = ((keys, values, None) for keys, values in conditioning["cache"])
        cache = importlib.import_module("transformers").DynamicCache(tuple(pairs))
        model = self.policy.model
        velocity: Tensor = type(model).denoise_step(
            model,
            x_t=x,
            timestep=time,
            past_key_values=cache,
            **conditioning["given"],
        )
        return velocity.float()

    def own_sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the chunk of LeRobot's own sampler."""
        chunk: Tensor = self.policy.predict_action_chunk(dict(batch), noise=noise)
        return chunk
