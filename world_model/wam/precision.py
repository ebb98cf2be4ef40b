"""Matrix products in bfloat16, where the processor has them: half the time for a model that sees pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_known: dict[str, bool] = {}
"""Device type -> what was found out once; asking takes as long as a small product."""


def products(in_bfloat16: bool, x: Tensor) -> torch.autocast:
    """Return what to compute within: products in bfloat16 if that is wanted and `x` is where it is fast, else as ever.

    Weights, gradients, sums and norms stay in float32 (mixed precision, Micikevicius et al., 1710.03740).
    """
    return torch.autocast(x.device.type, torch.bfloat16, enabled=in_bfloat16 and has_bfloat16(x.device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself; elsewhere it would be imitated, and slower than float32."""
    if device.type not in _known:
        _known[device.type] = _ask(device)
    return _known[device.type]


def _ask(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
