"""act: a transformer that regresses a chunk. Its chain has one step, whose noise `ChainPolicy` adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rl.policies.lerobot.families import STATE, Batch, Family, named, with_images
from world_model.tree import Tree


class RegressionFamily(Family):
    """ACT with a frozen encoder; the decoder is trained, which attends to the encoder's output.

    That output (n, tokens, dim_model) is kept in place of the observation; it is smaller than the images.
    """

    starts_at_zero = True

    def __init__(self, policy: Any) -> None:
        super().__init__(policy)
        self.horizon = self.config.chunk_size

    def condition(self, batch: Batch) -> tuple[Tree, Tensor]:
        """Run everything before the decoder, with the latent at 0 as in LeRobot's evaluation."""
        caught: dict[str, Tensor] = {}

        def keep(module: nn.Module, args: Any, given: dict[str, Any], out: Tensor) -> None:
            # In LeRobot the rows of a batch are the second dimension; embeddings are equal for all of them.
            embedding = given["pos_embed"].detach()
            caught["memory"] = out.transpose(0, 1)
            caught["embedding"] = embedding.transpose(0, 1).expand(out.shape[1], -1, -1)

        hook = self.policy.model.encoder.register_forward_hook(keep, with_kwargs=True)
        try:
            with torch.no_grad():
                self.policy.model(with_images(self.config, batch, stacked=False))
        finally:
            hook.remove()
        state = [batch[STATE].float()] if STATE in batch else []
        return caught, torch.cat([caught["memory"].mean(1), *state], dim=-1)

    def step(self, conditioning: Tree, x: Tensor, i: int, n_steps: int) -> tuple[Tensor, None]:
        """Return the chunk that the decoder outputs; `x` is not used, and all steps are the same."""
        return self._chunk(conditioning), None

    def errors(self, conditioning: Tree, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the absolute errors: LeRobot's loss without the variational part."""
        return (self._chunk(conditioning) - actions).abs()

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the decoder and the action head."""
        return named(self.policy, "model.decoder.", "model.decoder_pos_embed.", "model.action_head.")

    def own_sample(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return LeRobot's chunk, which needs no noise."""
        chunk: Tensor = self.policy.predict_action_chunk(dict(batch))
        return chunk

    def _chunk(self, conditioning: Tree) -> Tensor:
        model, memory = self.policy.model, conditioning["memory"].transpose(0, 1)
        queries = memory.new_zeros(self.horizon, memory.shape[1], memory.shape[2])
        decoded = model.decoder(
            queries,
            memory,
            encoder_pos_embed=conditioning["embedding"].transpose(0, 1),
            decoder_pos_embed=model.decoder_pos_embed.weight.unsqueeze(1),
        )
        chunk: Tensor = model.action_head(decoded.transpose(0, 1))
        return chunk
