"""Matrix products of float32 in another precision for a while, by torch's own setting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set torch's precision of float32 products, "highest", "high" or "medium", and the one before it afterwards.

    With "medium" a processor with bfloat16 instructions rounds both factors to it; sums and weights stay in float32.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
