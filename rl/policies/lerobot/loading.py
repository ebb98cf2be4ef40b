"""Load a checkpoint of LeRobot: configuration, weights, and the processors with their statistics.

LeRobot's own loaders are not strict: weights that do not fit stay random, missing statistics leave numbers in wrong
units, and a processor file may name any class, which is imported and called (LeRobot 0.6.1). So everything is checked
here before and after they run.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewards.errors import UserError, closest_or_known
from world_model.extras import pip_line
from world_model.files import JSON_BYTES, parse_json, read_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"

SUPPORTED = ("act", "diffusion", "fastwam", "multi_task_dit", "pi0", "pi05", "smolvla", "vla_jepa")
"""Values of `type` in the `config.json` of policies that can be trained here."""

REFUSED = {
    "xvla": "each step of its sampler reads the first noise again, so a chunk has no likelihood",
    "lingbot_va": "it runs one environment at a time and keeps a state of its own",
    "vqbet": "its actions are codes, not the end of a denoising chain",
    "pi0_fast": "its actions are tokens, not the end of a denoising chain",
    "tdmpc": "it plans with a model of its own; it has no chunk of actions with a likelihood",
}
"""Type -> why PPO cannot train it here."""

STEPS = frozenset(
    {
        "absolute_actions_processor",
        "device_processor",
        "normalizer_processor",
        "pi0_new_line_processor",
        "pi05_prepare_state_tokenizer_processor_step",
        "relative_actions_processor",
        "rename_observations_processor",
        "smolvla_new_line_processor",
        "to_batch_processor",
        "tokenizer_processor",
        "unnormalizer_processor",
        "vla_jepa_binarize_gripper",
        "vla_jepa_clip_actions",
        "vla_jepa_pre_snap_gripper",
    }
)
"""Names of the processor steps that may be built; all of them are LeRobot's own and harmless."""


@dataclass
class Loaded:
    """A policy of LeRobot in evaluation mode, and its processors."""

    type: str  # such as "smolvla"
    policy: Any  # lerobot.policies.pretrained.PreTrainedPolicy
    preprocessor: Any  # raw observation or action -> normalised, on the device of the policy
    postprocessor: Any  # normalised actions -> actions in the units of the dataset, on the CPU


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a checkpoint of LeRobot: its `config.json` has `type` and `output_features`."""
    try:
        config = parse_json(read_file(folder / CONFIG, JSON_BYTES))
    except (OSError, ValueError, UserError):
        return False
    return isinstance(config, dict) and "type" in config and "output_features" in config


def load(folder: Path, device: str | torch.device = "cpu") -> Loaded:
    """Load a checkpoint that LeRobot wrote, such as the folder `pretrained_model` of `lerobot-train`.

    Raises:
        UserError: LeRobot is missing; a file is missing or damaged; the policy has no likelihood; weights do not fit;
            statistics are missing; or a processor file asks for a step that is not in `STEPS`.
    """
    kind = _read_type(folder)
    for name in (PREPROCESSOR, POSTPROCESSOR):
        check_processor(folder, name)
    lerobot = _import("lerobot.configs")
    factory = _import("lerobot.policies.factory")
    try:
        config = lerobot.PreTrainedConfig.from_pretrained(str(folder))
    except Exception as error:  # its parser raises many types, and exits of its own
        raise UserError(f"{folder / CONFIG}: LeRobot cannot read it: {error!r:.200}") from error
    config.device = str(device)
    # The checkpoint holds all weights, so none is downloaded to be replaced.
    for name, value in (("load_vlm_weights", False), ("pretrained_backbone_weights", None)):
        if hasattr(config, name):
            setattr(config, name, value)
    with quiet():
        policy = factory.get_policy_class(kind)(config).to(device)
    load_policy_weights(policy, folder)
    overrides = {"device_processor": {"device": str(device)}}
    preprocessor, postprocessor = factory.make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=overrides
    )
    for pipeline, name in ((preprocessor, PREPROCESSOR), (postprocessor, POSTPROCESSOR)):
        _check_statistics(pipeline, folder / name)
    for step in preprocessor.steps:
        if getattr(step, "padding", None) == "longest":
            step.padding = "max_length"  # so that a row is encoded alike in any batch
    # Evaluation mode also in training: dropout and random crops would change the likelihood from call to call.
    return Loaded(kind, policy.eval(), preprocessor, postprocessor)


def load_policy_weights(policy: Any, folder: Path) -> None:
    """Load the weights of a checkpoint strictly: LeRobot would leave what does not fit at random values.

    Raises:
        UserError: weights are missing, unknown, damaged or not finite.
    """
    safetensors = importlib.import_module("safetensors.torch")
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path}: the file is missing; copy the checkpoint again")
    try:
        missing, unexpected = safetensors.load_model(policy, str(path), strict=False)
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(f"{path}: the weights do not fit its config.json: {error!r:.200}") from error
    if missing or unexpected:
        name = sorted([*missing, *unexpected])[0]
        raise UserError(
            f"{path}: {len(missing)} weights are missing and {len(unexpected)} unknown, such as {name}; the policy was "
            "saved by another version of LeRobot, save it again with the installed one"
        )
    for name, tensor in policy.named_parameters():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: tensor {name!r} holds a value that is not finite; nothing was loaded")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers reports of parts that a policy does not use, and what LeRobot prints."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    restore = _without_progress_bars()
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        restore()


def _without_progress_bars() -> Callable[[], None]:
    """Switch the progress bars of transformers off, if it is installed; return what switches them on again."""
    try:
        log = importlib.import_module("transformers.utils.logging")
    except ImportError:
        return lambda: None
    if not log.is_progress_bar_enabled():
        return lambda: None
    log.disable_progress_bar()
    restore: Callable[[], None] = log.enable_progress_bar
    return restore


def check_processor(folder: Path, name: str) -> None:
    """Check that a processor file asks for known steps alone, before LeRobot reads it.

    Raises:
        UserError: the file is missing or damaged, a step is not in `STEPS`, or a state is outside the folder.
    """
    path = folder / name
    try:
        content = parse_json(read_file(path, JSON_BYTES))
        steps = content["steps"]
        asked = [(step.get("registry_name"), set(step), step.get("state_file")) for step in steps]
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: the file is missing, and without it observations and actions have wrong units; save the "
            "policy with its processors, as lerobot-train does (older checkpoints: LeRobot's "
            "migrate_policy_normalization)"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: it does not describe the steps of a processor; copy the checkpoint again") from error
    for step, keys, state in asked:
        if step not in STEPS or "class" in keys:
            what = next((s["class"] for s in steps if "class" in s), step)
            raise UserError(
                f"{path}: it asks for the step {str(what)!r:.80}, which could run any code; nothing was loaded, known "
                f"are {', '.join(sorted(STEPS))}"
            )
        if state is not None and (not isinstance(state, str) or Path(state).name != state or state.startswith(".")):
            raise UserError(f"{path}: the state {str(state)!r:.80} is not a file of the checkpoint; nothing was loaded")
    if "trust_remote_code" in json.dumps(content):
        raise UserError(f"{path}: it asks for trust_remote_code, which could run any code; nothing was loaded")


def _read_type(folder: Path) -> str:
    """Return the type of a policy that can be trained."""
    try:
        kind = parse_json(read_file(folder / CONFIG, JSON_BYTES))["type"]
    except FileNotFoundError as error:
        raise UserError(f"{folder / CONFIG}: the file is missing; name the folder pretrained_model") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: it is not the configuration of a policy; copy the file again") from error
    if kind in REFUSED:
        raise UserError(f"{folder}: PPO cannot train {kind}: {REFUSED[kind]}; known are {', '.join(SUPPORTED)}")
    if kind not in SUPPORTED:
        raise UserError(f"{folder}: unknown policy {str(kind)!r:.80}; {closest_or_known(str(kind), SUPPORTED)}")
    return str(kind)


def _check_statistics(pipeline: Any, path: Path) -> None:
    """Check that each feature that is normalised has the statistics for it."""
    needed = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
    needed["QUANTILE10"] = ("q10", "q90")
    for step in pipeline.steps:
        modes = {kind.value: mode.value for kind, mode in (getattr(step, "norm_map", None) or {}).items()}
        for name, feature in getattr(step, "features", {}).items():
            found = (step.stats or {}).get(name, {})
            for key in needed.get(modes.get(feature.type.value, "IDENTITY"), ()):
                if key not in found:
                    raise UserError(
                        f"{path}: it has no {key} of {name}, so its numbers would have wrong units; save the policy "
                        "with the statistics of its dataset"
                    )


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"a policy of LeRobot needs LeRobot and Python 3.12 ({error}); install it with {pip_line('lerobot')}"
        ) from error
