"""Tiny random checkpoints of LeRobot policies, built offline, and LeRobot's own way to load and to sample them.

`make` writes the folder that `lerobot-train` calls `pretrained_model`. All policies are for an environment with
`observation.state` (4,), `observation.images.front` (3, 64, 64) and `action` (4,), except `multi_task_dit_state`, which
has no images and `observation.state` (21,). Written for lerobot[smolvla,pi,diffusion,multi_task_dit,fastwam]==0.6.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline, TokenizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

from tests.lerobot import parts

Loaded = tuple[PreTrainedPolicy, PolicyProcessorPipeline, PolicyProcessorPipeline]
"""Policy in eval mode, preprocessor, postprocessor."""

IMAGE = f"{OBS_IMAGES}.front"
ACTION_DIM = 4
SENTENCES = ("push the puck to the goal", "pull the drawer open", "press the button")

STATISTICS = {
    OBS_STATE: {"mean": 0.3, "std": 2.0, "min": -5.0, "max": 6.0, "q01": -4.0, "q99": 5.0},
    IMAGE: {"mean": 0.4, "std": 0.25, "min": 0.0, "max": 1.0, "q01": 0.01, "q99": 0.99},
    ACTION: {"mean": 0.1, "std": 0.5, "min": -1.4, "max": 1.6, "q01": -1.1, "q99": 1.3},
}
"""Statistics of the dataset; nowhere 0 and 1, so that actions which are not unnormalised are noticed."""


@contextmanager
def patched(name: str) -> Iterator[None]:
    """Replace what LeRobot's code fixes for a policy; hold it while a checkpoint of `make` is loaded by other code.

    `name` is one of `NAMES` or the type of a config. `make` and `load` do it themselves.
    """
    with ExitStack() as stack:
        if name in ("pi0", "pi05"):
            stack.enter_context(parts.small_gemma(name))
        elif name == "fastwam":
            stack.enter_context(parts.small_wan_vae())
        yield


def make(name: str, folder: Path) -> Path:
    """Save a random policy with its processors as `folder / name`, and the parts it loads as `folder / "parts"`.

    The checkpoint holds absolute paths to these parts, so the folder cannot be moved.
    """
    with parts.seeded(0), patched(name):
        config = _CONFIGS[name](folder / "parts")
        policy = get_policy_class(config.type)(config)
        _draw_larger(policy)
    with parts.paligemma_tokenizer() if name in ("pi0", "pi05") else ExitStack():
        preprocessor, postprocessor = make_pre_post_processors(config, dataset_stats=_statistics(config))
    if name in ("pi0", "pi05"):
        saved = str(parts.save_tokenizer(folder / "parts" / "tokenizer"))
        next(step for step in preprocessor.steps if isinstance(step, TokenizerProcessorStep)).tokenizer_name = saved
    for part in (policy, preprocessor, postprocessor):
        part.save_pretrained(folder / name)
    return folder / name


def load(folder: Path) -> Loaded:
    """Load a checkpoint of `make` by LeRobot's own functions."""
    config = PreTrainedConfig.from_pretrained(folder)
    with patched(config.type):
        policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
        return policy, *make_pre_post_processors(config, pretrained_path=str(folder))


def observation(n: int, seed: int, policy: PreTrainedPolicy | None = None) -> dict[str, Any]:
    """Return raw features of `n` environments, before the preprocessor.

    Args:
        n: rows.
        seed: seed of the numbers.
        policy: the policy they are for. If it reads more than one step, state and images have that history, oldest
            first: state (n, n_obs_steps, 4), images (n, n_obs_steps, 3, 64, 64). None: the features of a single step,
            state (n, 4) and images (n, 3, 64, 64).
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {OBS_STATE: (4,), IMAGE: (3, 64, 64)}
    steps: tuple[int, ...] = ()
    if policy is not None:
        shapes = {key: tuple(feature.shape) for key, feature in policy.config.input_features.items()}
        steps = (policy.config.n_obs_steps,) if policy.config.n_obs_steps > 1 else ()
    obs: dict[str, Any] = {}
    for key, shape in shapes.items():
        unit = torch.rand(n, *steps, *shape, generator=generator)
        obs[key] = unit if key.startswith(OBS_IMAGES) else 8 * unit - 4
    obs["task"] = [SENTENCES[i % len(SENTENCES)] for i in range(n)]
    return obs


def noise_shape(policy: PreTrainedPolicy) -> tuple[int, int]:
    """Return rows and columns of the noise of one chunk, padding included; `act` uses none and has those of a chunk."""
    config = policy.config
    rows = next(getattr(config, key) for key in ("chunk_size", "horizon", "action_horizon") if hasattr(config, key))
    return rows, getattr(config, "max_action_dim", ACTION_DIM)


def own_sample(policy: PreTrainedPolicy, batch: dict[str, Any], noise: Tensor, seed: int = 0) -> Tensor:
    """Return the chunk that LeRobot's own sampler makes of a starting noise.

    Args:
        policy: the policy, in eval mode.
        batch: preprocessed observations of n rows, with the history that the policy reads.
        noise: starting noise (n, *noise_shape(policy)).
        seed: seed of the noise that DDPM adds in each step; flow policies and `act` use none.

    Returns:
        All rows of the chunk, before the postprocessor (n, rows, action_dim).
    """
    with torch.no_grad():
        return _SAMPLERS[policy.config.type](policy, dict(batch), noise, seed)


# Configs: for each name a function of the folder for the pretrained parts.


def _features(state: int = 4, image: bool = True) -> dict[str, Any]:
    inputs = {OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(state,))}
    if image:
        inputs[IMAGE] = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 64))
    outputs = {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,))}
    return {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}


def _smolvla(folder: Path) -> PreTrainedConfig:
    return make_policy_config(
        "smolvla",
        **_features(),
        vlm_model_name=str(parts.save_smolvlm(folder / "smolvlm")),
        num_vlm_layers=2,
        resize_imgs_with_padding=(32, 32),
        max_state_dim=6,
        max_action_dim=6,
        chunk_size=8,
        n_action_steps=4,
        num_steps=4,
    )


def _pi(name: str) -> Callable[[Path], PreTrainedConfig]:
    sizes = {"max_state_dim": 6, "max_action_dim": 6, "chunk_size": 8, "n_action_steps": 4, "num_inference_steps": 4}
    return lambda folder: make_policy_config(name, **_features(), **sizes, image_resolution=(28, 28))


def _multi_task_dit(objective: str, **features: Any) -> Callable[[Path], PreTrainedConfig]:
    def config(folder: Path) -> PreTrainedConfig:
        clip = str(parts.save_clip(folder / "clip"))
        return make_policy_config(
            "multi_task_dit",
            **_features(**features),
            objective=objective,
            num_train_timesteps=20,
            num_inference_steps=5,
            num_integration_steps=4,
            horizon=8,
            n_action_steps=4,
            hidden_dim=16,
            num_layers=1,
            num_heads=2,
            timestep_embed_dim=8,
            vision_encoder_name=clip,
            text_encoder_name=clip,
            image_resize_shape=(40, 40),
            image_crop_shape=(32, 32),
        )

    return config


def _diffusion(folder: Path) -> PreTrainedConfig:
    return make_policy_config(
        "diffusion",
        **_features(),
        horizon=8,
        n_action_steps=4,
        crop_shape=(56, 56),
        pretrained_backbone_weights=None,
        spatial_softmax_num_keypoints=4,
        down_dims=(16, 32),
        kernel_size=3,
        n_groups=4,
        diffusion_step_embed_dim=16,
        num_train_timesteps=20,
        num_inference_steps=5,
    )


def _act(folder: Path) -> PreTrainedConfig:
    return make_policy_config(
        "act",
        **_features(),
        chunk_size=8,
        n_action_steps=4,
        pretrained_backbone_weights=None,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        latent_dim=4,
    )


def _fastwam(folder: Path) -> PreTrainedConfig:
    text = str(parts.save_wan_text(folder / "umt5"))
    both = {"ffn_dim": 16, "freq_dim": 8, "text_dim": 16, "num_heads": 2, "attn_head_dim": 12, "num_layers": 2}
    video = {"patch_size": [1, 2, 2], "in_dim": 48, "out_dim": 48, "hidden_dim": 24, "seperated_timestep": True}
    return make_policy_config(
        "fastwam",
        **_features(),
        action_dim=ACTION_DIM,
        proprio_dim=4,
        action_horizon=8,
        n_action_steps=4,
        num_video_frames=9,
        action_video_freq_ratio=2,
        image_size=(64, 64),
        tokenizer_max_len=128,  # the template of its prompt has 83 letters already
        tokenizer_model_id=text,
        text_encoder_model_id=text,
        base_model_id=None,
        torch_dtype="float32",
        num_inference_steps=4,
        video_dit_config={**both, **video, "eps": 1e-6, "video_attention_mask_mode": "first_frame_causal"},
        action_dit_config={**both, "hidden_dim": 16, "action_dim": ACTION_DIM, "eps": 1e-6},
    )


def _vla_jepa(folder: Path) -> PreTrainedConfig:
    return make_policy_config(
        "vla_jepa",
        **_features(),
        qwen_model_name=str(parts.save_qwen(folder / "qwen")),
        freeze_qwen=True,  # also leaves out the world model, which acting does not use
        chunk_size=8,
        n_action_steps=4,
        action_model_type="DiT-test",
        action_hidden_size=16,
        action_num_layers=2,
        num_action_tokens_per_timestep=2,
        num_embodied_action_tokens_per_instruction=4,
        num_video_frames=4,
        num_inference_timesteps=4,
        torch_dtype="float32",
    )


_CONFIGS: dict[str, Callable[[Path], PreTrainedConfig]] = {
    "smolvla": _smolvla,
    "pi0": _pi("pi0"),
    "pi05": _pi("pi05"),
    "multi_task_dit_flow": _multi_task_dit("flow_matching"),
    "multi_task_dit_ddpm": _multi_task_dit("diffusion"),
    # This policy reads no `observation.environment_state`, so everything is in the state.
    "multi_task_dit_state": _multi_task_dit("flow_matching", state=21, image=False),
    "diffusion": _diffusion,
    "act": _act,
    "fastwam": _fastwam,
    "vla_jepa": _vla_jepa,
}

NAMES = tuple(_CONFIGS)


def _draw_larger(policy: PreTrainedPolicy) -> None:
    """Draw the weights that start at 0 or near it: with those, such narrow networks hardly see the observation."""
    for parameter in policy.parameters():
        if parameter.dim() == 1:
            std, small = 0.2, not parameter.any()  # biases; the scales of norms start at 1 and stay
        else:
            std = parameter[0].numel() ** -0.5
            small = parameter.std() < std / 2
        if small:
            torch.nn.init.normal_(parameter, std=std)


def _statistics(config: PreTrainedConfig) -> dict[str, dict[str, Tensor]]:
    """Return `STATISTICS` in the shapes of a dataset's: one number a dimension, or a channel of an image."""
    stats = {}
    for key, feature in {**config.input_features, **config.output_features}.items():
        shape = (3, 1, 1) if feature.type is FeatureType.VISUAL else feature.shape
        stats[key] = {name: torch.full(shape, value) for name, value in STATISTICS[key].items()}
    return stats


# Samplers: for each type of config, how its own sampler is given a noise.


def _sample_with_noise(policy: Any, batch: dict[str, Any], noise: Tensor, seed: int) -> Tensor:
    return policy.predict_action_chunk(batch, noise=noise)


def _sample_multi_task_dit(policy: Any, batch: dict[str, Any], noise: Tensor, seed: int) -> Tensor:
    batch = policy._prepare_batch(batch)
    conditioning = policy.observation_encoder.encode(batch)
    # Its sampler takes no noise: it draws it first, from torch's global generator.
    with parts.seeded(seed), _first_randn(noise):
        return policy.objective.conditional_sample(policy.noise_predictor, len(noise), conditioning)


def _sample_diffusion(policy: Any, batch: dict[str, Any], noise: Tensor, seed: int) -> Tensor:
    batch[OBS_IMAGES] = torch.stack([batch[key] for key in policy.config.image_features], dim=-4)
    conditioning = policy.diffusion._prepare_global_conditioning(batch)
    generator = torch.Generator().manual_seed(seed)
    return policy.diffusion.conditional_sample(len(noise), conditioning, generator=generator, noise=noise)


def _sample_act(policy: Any, batch: dict[str, Any], noise: Tensor, seed: int) -> Tensor:
    return policy.predict_action_chunk(batch)


def _sample_fastwam(policy: Any, batch: dict[str, Any], noise: Tensor, seed: int) -> Tensor:
    def row(i: int) -> Tensor:
        # The sampler draws the noise from a seed of the config, the same for all rows; here each row has its own.
        with patch.object(policy.model, "_make_action_latents", lambda *_: noise[i : i + 1].clone()):
            one = {key: value[i : i + 1] for key, value in batch.items() if isinstance(value, Tensor | list)}
            return policy.predict_action_chunk(one)

    return torch.cat([row(i) for i in range(len(noise))])


def _sample_vla_jepa(policy: Any, batch: dict[str, Any], noise: Tensor, seed: int) -> Tensor:
    with _first_randn(noise):  # it takes a noise, too, but does not use it
        return policy.predict_action_chunk(batch)


@contextmanager
def _first_randn(noise: Tensor) -> Iterator[None]:
    """Let the first `torch.randn` return a noise; later ones draw as usual."""
    draw, pending = torch.randn, [noise]
    with patch("torch.randn", lambda *size, **options: pending.pop() if pending else draw(*size, **options)):
        yield


_SAMPLERS: dict[str, Callable[[Any, dict[str, Any], Tensor, int], Tensor]] = {
    "smolvla": _sample_with_noise,
    "pi0": _sample_with_noise,
    "pi05": _sample_with_noise,
    "multi_task_dit": _sample_multi_task_dit,
    "diffusion": _sample_diffusion,
    "act": _sample_act,
    "fastwam": _sample_fastwam,
    "vla_jepa": _sample_vla_jepa,
}
