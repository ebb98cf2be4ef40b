"""Matrix products in bfloat16, where the processor has them: half the time for a model that sees pictures."""

from __future__ import annotations

import torch


def bfloat16(wanted: bool, device: torch.device) -> torch.autocast:
    """Return what to compute within: products in bfloat16 if that is `wanted` and fast here, else all in float32.

    Weights, gradients, sums and norms stay in float32 (mixed precision, Micikevicius et al., 1710.03740).
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself; elsewhere it would be imitated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
