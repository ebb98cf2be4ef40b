"""Tiny random stand-ins for the pretrained parts that LeRobot policies download: tokenizers and networks.

Nothing here touches the network. Parts that a policy loads by a path of its config are saved as folders; parts whose
name or size is fixed in LeRobot's code are swapped by a context manager (`small_gemma`, `small_wan_vae`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = (
    "<pad>",
    "<unk>",
    "<bos>",
    "<eos>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
)
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256  # one token a byte, so that every sentence has its own tokens


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a fixed seed inside, and leave torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token a byte, between "<bos>" and "<eos>"; it needs no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.add_special_tokens(list(SPECIAL_TOKENS))
    # CLIP takes its features at "<eos>"; without that token it would take them at the first letter.
    ends = [("<bos>", vocab["<bos>"]), ("<eos>", vocab["<eos>"])]
    tok.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<bos>",
        eos_token="<eos>",
        # SmolVLA reads the ids of these two from its tokenizer.
        extra_special_tokens={"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"},
    )


def save_tokenizer(folder: Path) -> Path:
    """Save `tokenizer()` as a folder that `AutoTokenizer` loads."""
    tokenizer().save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Save a CLIP with a tokenizer, as `multi_task_dit` loads it; images are 32x32 pixels in four patches."""
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": VOCAB_SIZE, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config={**size, **tokens, "max_position_embeddings": 77},
        vision_config={**size, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    CLIPModel(config).save_pretrained(folder)
    return save_tokenizer(folder)


def save_smolvlm(folder: Path) -> Path:
    """Save config and processor of a SmolVLM; SmolVLA with `load_vlm_weights=False` reads no weights from there."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": VOCAB_SIZE,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=SPECIAL_TOKENS.index("<image>"),
        pad_token_id=0,
    ).save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer(), SmolVLMVideoProcessor(), image_seq_len=4).save_pretrained(
        folder
    )
    return folder


def save_wan_text(folder: Path) -> Path:
    """Save the text encoder of `fastwam` with its tokenizer; the encoder lies in the subfolder that it expects."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return save_tokenizer(folder)


def save_qwen(folder: Path) -> Path:
    """Save a Qwen3-VL with its processor, as `vla_jepa` loads it; an image of 64x64 pixels becomes four tokens."""
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    size = {"hidden_size": 16, "intermediate_size": 16}
    config = Qwen3VLConfig(
        text_config={
            **size,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": 512,  # vla_jepa adds tokens for its actions
            "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        },
        vision_config={
            **size,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **{f"{name}_token_id": SPECIAL_TOKENS.index(f"<|{name}_pad|>") for name in ("image", "video")},
        **{f"vision_{end}_token_id": SPECIAL_TOKENS.index(f"<|vision_{end}|>") for end in ("start", "end")},
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    part = (
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    )
    template = "{% for message in messages %}{% for part in message.content %}" + part + "{% endfor %}{% endfor %}"
    images = Qwen2VLImageProcessor(patch_size=16)
    Qwen3VLProcessor(images, tokenizer(), Qwen3VLVideoProcessor(), chat_template=template).save_pretrained(folder)
    return folder


@contextmanager
def small_gemma(policy: str) -> Iterator[None]:
    """Make `pi0` or `pi05` build small networks, because LeRobot fixes the sizes of Gemma and SigLIP in its code.

    Three names of the policy's module are replaced: `get_gemma_config` (width and depth of both transformers), and the
    two classes of the networks, which are given a config with a small vocabulary and a small vision tower.
    """
    module = importlib.import_module(f"lerobot.policies.{policy}.modeling_{policy}")
    vlm, expert = "PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"
    with ExitStack() as stack:
        stack.enter_context(patch.object(module, "get_gemma_config", _gemma_config(module.GemmaConfig)))
        for name, shrink in ((vlm, _shrink_paligemma), (expert, _shrink_gemma)):
            stack.enter_context(patch.object(module, name, _with_config(getattr(module, name), shrink)))
        yield


@contextmanager
def paligemma_tokenizer() -> Iterator[None]:
    """Give every `TokenizerProcessorStep` the tiny tokenizer, because that of PaliGemma needs an account on the Hub."""
    with patch("lerobot.processor.tokenizer_processor.AutoTokenizer") as auto:
        auto.from_pretrained.side_effect = lambda name, **_: tokenizer()
        yield


@contextmanager
def small_wan_vae() -> Iterator[None]:
    """Give `fastwam` a tiny video autoencoder, because LeRobot fixes the Hub name of the real one in its code.

    LeRobot leaves the autoencoder out of the checkpoint, so this one is drawn from the same seed each time.
    """
    with patch("lerobot.policies.fastwam.modeling_fastwam.load_pretrained_wan_vae", _wan_vae):
        yield


def _gemma_config(config: type) -> Callable[[str], Any]:
    # `compute_layer_complete` of the training loss is written for 8 heads.
    def small(variant: str) -> Any:
        width = {"gemma_2b": 32, "gemma_300m": 16}[variant]
        return config(width=width, depth=2, mlp_dim=16, num_heads=8, num_kv_heads=1, head_dim=4)

    return small


def _with_config(build: Callable[..., Any], shrink: Callable[[Any], None]) -> Callable[..., Any]:
    def small(config: Any) -> Any:
        shrink(config)
        return build(config=config)

    return small


def _shrink_paligemma(config: Any) -> None:
    config.text_config.vocab_size = VOCAB_SIZE
    config.image_token_id = SPECIAL_TOKENS.index("<image>")
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size = 16, 16
    vision.num_hidden_layers, vision.num_attention_heads = 1, 2
    vision.projection_dim = config.text_config.hidden_size


def _shrink_gemma(config: Any) -> None:
    config.vocab_size = VOCAB_SIZE


def _wan_vae(*, torch_dtype: torch.dtype, device: str) -> torch.nn.Module:
    from diffusers import AutoencoderKLWan
    from lerobot.policies.fastwam.wan.adapters import WanVideoVAE38

    channels = WanVideoVAE38.z_dim
    with seeded(1):
        vae = AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=channels,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            latents_mean=[0.1] * channels,
            latents_std=[0.5] * channels,
            scale_factor_temporal=4,
            scale_factor_spatial=16,
        )
    return WanVideoVAE38(dtype=torch_dtype, device=device, pretrained=vae.eval())
