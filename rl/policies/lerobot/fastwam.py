"""fastwam: a world-action model whose action expert attends to the keys and values of one encoded video frame."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from rl.policies.lerobot.families import STATE, Batch, Family, drawn_from
from world_model.tree import Tree


class FastwamFamily(Family):
    """FastWAM, all rows of a batch at once; LeRobot's own sampler loops over the rows.

    Keys and values take 36 MB a row in the published size, so observations are kept.
    """

    keeps_observation = True
    steps_key = "num_inference_steps"

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.horizon = self.config.action_horizon

    def condition(self, batch: Batch) -> tuple[Tree, Tensor]:
        """Encode image, instruction and state, as `infer_action` of LeRobot does for one row."""
        model, config = self.policy.model, self.config
        module = importlib.import_module("lerobot.policies.fastwam.modeling_fastwam")
        with torch.no_grad():
            given = module._batch_to_infer_kwargs(batch=batch, config=config)
            image = given["input_image"].to(model.device, model.torch_dtype)
            latents = model._encode_video_latents(image.unsqueeze(2))
            state = given["proprio"].to(model.device, model.torch_dtype)
            context, mask = model._prepare_infer_context(given["prompt"], None, None, state)
            video = model.video_expert.pre_dit(
                x=latents,
                timestep=torch.zeros(len(latents), dtype=latents.dtype, device=latents.device),
                context=context,
                context_mask=mask,
                action=None,
                fuse_vae_embedding_in_latents=True,
            )
            n_tokens = int(video["tokens"].shape[1])
            self._sizes = n_tokens, int(video["meta"]["tokens_per_frame"])  # the same for every observation
            cache = model.mot.prefill_video_cache(
                video_tokens=video["tokens"],
                video_freqs=video["freqs"],
                video_t_mod=video["t_mod"],
                video_context_payload={"context": video["context"], "mask": video["context_mask"]},
                video_attention_mask=self._attention_mask(latents.device)[:n_tokens, :n_tokens],
            )
        features = torch.cat([cache[-1]["v"].float().mean(1), batch[STATE].float()], dim=-1)
        return {"context": context, "mask": mask, "cache": cache}, features

    def step(self, conditioning: Tree, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, None]:
        """Take one Euler step on LeRobot's shifted grid of times, in float32."""
        times, sizes = self._grid(x, n_steps)
        return x + sizes[i] * self._velocity(conditioning, x, times[i].expand(len(x))), None

    def noised(self, clean: Tensor, noise: Tensor, i: int, n_steps: int) -> Tensor:
        """Return the point of the straight path at the time of step `i`, which is 1000 at noise."""
        level = self._grid(clean, n_steps)[0][i] / 1000
        return (1 - level) * clean + level * noise

    def errors(self, conditioning: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the squared errors of flow matching, at times that are uniform before LeRobot's shift."""
        scheduler = self.policy.model.infer_action_scheduler
        shift = scheduler.shift if self.config.sigma_shift is None else float(self.config.sigma_shift)
        with drawn_from(generator):
            noise, u = torch.randn_like(actions), torch.rand(len(actions), device=actions.device)
        level = (shift * u / (1 + (shift - 1) * u)).view(-1, 1, 1)
        noisy = (1 - level) * actions + level * noise
        return (self._velocity(conditioning, noisy, 1000 * level.flatten()) - (noise - actions)).square()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the action expert."""
        return [
            parameter
            for name, parameter in self.policy.named_parameters()
            if name.startswith("model.mot.mixtures.action.") or ".blocks.action." in name
        ]

    def own_sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the chunks of LeRobot's sampler, row by row; each draws its noise, which is replaced."""
        model, chunks = self.policy.model, []
        for i in range(len(noise)):
            row = {name: of[i : i + 1] for name, of in batch.items() if isinstance(of, Tensor | list)}
            model._make_action_latents = lambda *_, i=i: noise[i : i + 1].clone()
            try:
                chunks.append(self.policy.predict_action_chunk(row))
            finally:
                del model._make_action_latents
        return torch.cat(chunks)

    def _grid(self, x: Tensor, n_steps: int) -> tuple[Tensor, Tensor]:
        """Return times of the steps, from 1000 down, and their sizes; both (n_steps,), of type and device of `x`."""
        times, sizes = self.policy.model.infer_action_scheduler.build_inference_schedule(
            num_inference_steps=n_steps,
            device=x.device,
            dtype=x.dtype,
            shift_override=self.config.sigma_shift,
        )
        return times, sizes

    def _velocity(self, conditioning: Tree, x: Tensor, time: Tensor) -> Tensor:
        """Return noise minus data, as the network estimates it for chunks `x` at times (n,) from 1000 to 0."""
        model = self.policy.model
        # The function below LeRobot's decorator, which would switch gradients off.
        velocity: Tensor = type(model)._predict_action_noise_with_cache.__wrapped__(
            model,
            latents_action=x,
            timestep_action=time,
            context=conditioning["context"],
            context_mask=conditioning["mask"],
            video_kv_cache=conditioning["cache"],
            attention_mask=self._attention_mask(x.device),
            video_seq_len=self._sizes[0],
        )
        return velocity.float()

    def _attention_mask(self, device: torch.device) -> Tensor:
        n_tokens, per_frame = self._sizes
        mask: Tensor = self.policy.model._build_mot_attention_mask(
            video_seq_len=n_tokens,
            action_seq_len=self.horizon,
            video_tokens_per_frame=per_frame,
            device=device,
        )
        return mask
