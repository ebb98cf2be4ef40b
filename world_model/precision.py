"""Which processors multiply matrices in bfloat16."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself; elsewhere it would be imitated, and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
