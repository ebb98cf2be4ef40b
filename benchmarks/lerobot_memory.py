"""Memory of full-size policies of LeRobot in post-training, on paper: no weights are made or loaded.

    python benchmarks/lerobot_memory.py

The networks are built without memory (torch's device `meta`), so their parameters are counted exactly. From these
follow the memory of weights, gradients and optimizer, and that of the observations of a rollout. Activations are not
counted.
Needs the environment with LeRobot.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from rl.policies.lerobot.velocity import EXPERTS, PROJECTIONS

RANK = 16
IMAGE = 224 * 224 * 3
N_CAMERAS, N_DECISIONS = 2, 64 * 19  # of a rollout: 64 environments, 19 decisions each


def main() -> None:
    """Print a table with a row for each policy."""
    table = Table(title=f"gigabytes; LoRA of rank {RANK}, {N_CAMERAS} cameras of 224 pixels", title_justify="left")
    columns = ("policy", "parameters, M", "action side, M", "LoRA, M", "weights, bf16", "weights, float32")
    for column in (*columns, "training, action side", "training, LoRA", "images of a rollout"):
        table.add_column(column, justify="right" if column != "policy" else "left")
    for kind in ("smolvla", "pi0", "pi05"):
        policy = build(kind)
        total = sum(parameter.numel() for parameter in policy.parameters())
        trained = [(n, p) for n, p in policy.named_parameters() if n.startswith((*EXPERTS[kind], *PROJECTIONS))]
        action = sum(parameter.numel() for _, parameter in trained)
        lora = sum(RANK * sum(p.shape) for _, p in trained if p.dim() == 2)
        table.add_row(
            kind,
            *(f"{n / 1e6:,.0f}" for n in (total, action, lora)),
            f"{2 * total / 1e9:.1f}",
            f"{4 * total / 1e9:.1f}",
            # Gradient, two moments of Adam, the reference and a champion for the rollback, each in float32.
            f"{20 * action / 1e9:.2f}",
            f"{24 * lora / 1e9:.2f}",
            f"{N_DECISIONS * N_CAMERAS * IMAGE / 1e9:.2f}",
        )
    Console(width=160).print(table)


def build(kind: str) -> nn.Module:
    """Return a policy in its published size on the device `meta`, with two cameras, a state of 14 and 14 actions."""
    lerobot = importlib.import_module("lerobot.configs")
    factory = importlib.import_module("lerobot.policies.factory")
    feature = lerobot.PolicyFeature
    image, vector = lerobot.FeatureType.VISUAL, lerobot.FeatureType.STATE
    inputs = {f"observation.images.{i}": feature(type=image, shape=(3, 224, 224)) for i in range(N_CAMERAS)}
    inputs["observation.state"] = feature(type=vector, shape=(14,))
    outputs = {"action": feature(type=lerobot.FeatureType.ACTION, shape=(14,))}
    options: dict[str, Any] = {"input_features": inputs, "output_features": outputs, "device": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        if kind == "smolvla":
            options |= {"vlm_model_name": str(_smolvlm(Path(folder))), "load_vlm_weights": False}
        config = factory.make_policy_config(kind, push_to_hub=False, **options)
        config.device = "meta"
        with torch.device("meta"):
            policy: nn.Module = factory.get_policy_class(kind)(config)
    return policy


def _smolvlm(folder: Path) -> Path:
    """Write the published configuration of SmolVLM2-500M, which smolvla builds its VLM from."""
    transformers = importlib.import_module("transformers")
    tokenizers = importlib.import_module("tokenizers")
    text = {"model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
    text |= {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision |= {"image_size": 512, "patch_size": 16}
    transformers.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4).save_pretrained(folder)
    # The processor is only read for two of its tokens.
    words = {name: i for i, name in enumerate(("<pad>", "<fake_token_around_image>", "<global-img>", "<image>"))}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        extra_special_tokens={"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"},
    )
    images, videos = transformers.SmolVLMImageProcessor(), transformers.SmolVLMVideoProcessor()
    transformers.SmolVLMProcessor(images, fast, videos, image_seq_len=64).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
