"""Transformer layers. Three stacks share one attention space, so one stack can attend to the tokens of another."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values, each (batch, n_heads, n_tokens, head_dim), in bfloat16 if computed in it."""


FEW = 6
"""Most keys for which the attention of one query is computed without torch's kernel, see `attend`."""


class Block(nn.Module):
    """Pre-norm transformer block: attention to its own tokens and to keys and values of other stacks, then an MLP."""

    def __init__(self, width: int, attention_width: int, n_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * attention_width)
        self.out = nn.Linear(attention_width, width)
        hidden = mlp_ratio * width
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(self, x: Tensor, memory: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return tokens (batch, n, width) and the keys and values of this layer.

        `memory` are the keys and values of other stacks at the same layer.
        """
        batch, n, _ = x.shape
        qkv = self.qkv(self.norm_attention(x))
        head_dim = self.out.in_features // self.n_heads  # given, because -1 is ambiguous without rows
        q, k, v = qkv.view(batch, n, 3, self.n_heads, head_dim).permute(2, 0, 3, 1, 4)
        keys = torch.cat([*(m[0] for m in memory), k], dim=2)
        values = torch.cat([*(m[1] for m in memory), v], dim=2)
        # No autocast on the CPU: the backward pass of attention takes nine times as long there in bfloat16.
        with torch.autocast("cpu", enabled=False):
            q, keys, values = (part.to(self.qkv.weight.dtype) for part in (q, keys, values))
            y = attend(q, keys, values)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_mlp(x)), (k, v)


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the attention (batch, n_heads, n, head_dim) of `n` queries to keys and values of the same head.

    Models without images have one token in each decoder, so one query and few keys. For these, plain products and sums
    are faster than torch's kernel on the CPU: up to twice as fast, with the backward pass.
    """
    if q.shape[2] > 1 or keys.shape[2] > FEW or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, keys, values)
    weights = ((q * keys).sum(-1, keepdim=True) / math.sqrt(q.shape[-1])).softmax(dim=2)
    return (weights * values).sum(2, keepdim=True)


class Stack(nn.Module):
    """A stack of transformer blocks with a final layer norm."""

    def __init__(self, n_layers: int, width: int, attention_width: int, n_heads: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.new_block = partial(Block, width, attention_width, n_heads, mlp_ratio)
        self.blocks = nn.ModuleList(self.new_block() for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.recomputes = False  # in the backward pass, what a block has computed, in place of keeping it

    def forward(self, x: Tensor, memories: tuple[KeysValues, ...] = ()) -> tuple[Tensor, KeysValues]:
        """Return tokens (batch, n, width) and the keys and values of every layer, to which other stacks can attend.

        `memories` are such keys and values of other stacks, with as many layers.
        """
        cache: KeysValues = []
        for i, block in enumerate(self.blocks):
            memory = [of[i] for of in memories]
            if self.recomputes and torch.is_grad_enabled():
                x, keys_values = checkpoint(block, x, memory, use_reentrant=False)
            else:
                x, keys_values = block(x, memory)
            cache.append(keys_values)
        return self.norm(x), cache


class NoiseLevel(nn.Module):
    """Embedding of a noise level in [0, 1]: sines and cosines, then an MLP."""

    def __init__(self, width: int, n_frequencies: int = 16) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.linspace(-1, 5, n_frequencies), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * n_frequencies, 64), nn.SiLU(), nn.Linear(64, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed noise levels `t` (batch,). Shape: (batch, 1, width)."""
        angle = t[:, None] * self.frequencies
        embedded: Tensor = self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))
        return embedded.unsqueeze(1)
