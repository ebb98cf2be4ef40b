"""Low-rank changes of linear layers (LoRA, Hu et al., 2106.09685), by the package peft.

At first the change is 0, so the reference policy of PPO, a copy of the trained weights, is the policy that was brought.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rewards.errors import UserError
from world_model.extras import import_extra

ADAPTER = "default"
"""Name under which peft keeps the change."""


def add_lora(policy: nn.Module, trained: Sequence[nn.Parameter], rank: int) -> list[nn.Parameter]:
    """Add a change of rank `rank` to each linear layer with a weight in `trained`; return the new parameters.

    Raises:
        UserError: peft is missing, or no linear layer has such a weight.
    """
    peft = import_extra("peft", "lerobot", f"policy.params.lora_rank={rank} needs peft")
    wanted = {id(parameter) for parameter in trained}
    names = [
        name for name, module in policy.named_modules() if isinstance(module, nn.Linear) and id(module.weight) in wanted
    ]
    if not names:
        raise UserError(f"policy.params.lora_rank={rank}: the action side has no linear layer; leave lora_rank out")
    # alpha = rank: the change is added as it is.
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the first half of each change; the second is 0
        peft.inject_adapter_in_model(config, policy, adapter_name=ADAPTER)
    return [parameter for name, parameter in policy.named_parameters() if "lora_" in name]


def merged_state(policy: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a policy with the changes of LoRA added, under the names that they have without LoRA."""
    state = {
        name.replace(".base_layer.", "."): tensor.detach().clone()
        for name, tensor in policy.state_dict().items()
        if "lora_" not in name
    }
    for name, module in policy.named_modules():
        if hasattr(module, "get_delta_weight"):
            with torch.no_grad():
                state[f"{name}.weight"] += module.get_delta_weight(ADAPTER)
    return state
