"""A model as the folder of a policy of LeRobot, for the plug-in `lerobot_policy_wamtune`.

These are JSON, safetensors and text, so LeRobot need not be installed to write them.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save

from world_model.checkpoint import CONFIG, MODEL, README
from world_model.files import to_json
from world_model.spec import IMAGES, STATE, Spec
from world_model.view import View
from world_model.wam.model import WorldActionModel

DEVICE = "cpu"
"""Device in the files; `--policy.device=cuda` of LeRobot's programs changes it."""

_FRONT_MATTER = """---
library_name: lerobot
pipeline_tag: robotics
tags: [robotics, lerobot, wamtune]
---

"""


def lerobot_files(
    model: WorldActionModel, n_denoising_steps: int, n_action_steps: int, card: str = ""
) -> dict[str, bytes]:
    """Return the files of a folder that `lerobot-eval --policy.path=FOLDER` loads, by name.

    Args:
        model: is not changed.
        n_denoising_steps: of the policy, for each chunk.
        n_action_steps: executed of a chunk.
        card: the model card, which the README ends with.
    """
    if card.startswith("---\n"):  # a file has one front matter
        card = card.partition("\n---\n")[2]
    own = model.to_config()
    config = {
        "type": "wamtune",
        "n_obs_steps": 1,  # the policy keeps earlier frames itself
        **_policy_features(model.spec),
        "device": DEVICE,
        "model": own["model"],
        "spec": own["spec"],
        "n_denoising_steps": n_denoising_steps,
        "n_action_steps": n_action_steps,
    }
    # The plug-in's policy has the model as its attribute `model`. Cloned, because safetensors refuses shared memory.
    tensors = {f"model.{name}": value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    device: dict[str, Any] = {"device": DEVICE, "float_dtype": None}
    before = {"rename_observations_processor": {"rename_map": {}}, "to_batch_processor": {}, "device_processor": device}
    return {
        CONFIG: to_json(config),
        MODEL: save(tensors, {"format": "pt"}),
        "policy_preprocessor.json": _processor("policy_preprocessor", before),
        "policy_postprocessor.json": _processor("policy_postprocessor", {"device_processor": device}),
        README: (_FRONT_MATTER + _usage(model) + card).encode(),
    }


def _policy_features(spec: Spec) -> dict[str, Any]:
    """Return the features by LeRobot's names; its images are (3, height, width)."""
    inputs: dict[str, Any] = {}
    for name, feature in spec.features.items():
        shape, kind = list(feature.shape), "STATE" if name == STATE else "ENV"
        if name.startswith(IMAGES):
            shape, kind = [shape[2], *shape[:2]], "VISUAL"
        inputs[f"observation.{name}"] = {"type": kind, "shape": shape}
    return {
        "input_features": inputs,
        "output_features": {"action": {"type": "ACTION", "shape": [spec.action_dim]}},
    }


def _processor(name: str, steps: dict[str, dict[str, Any]]) -> bytes:
    """Return the steps before or after the policy: registered name -> config."""
    return to_json(
        {"name": name, "steps": [{"registry_name": step, "config": config} for step, config in steps.items()]}
    )


def _usage(model: WorldActionModel) -> str:
    """Return the beginning of the README: how to run the policy, and what it expects."""
    spec, lines = model.spec, []
    for name, feature in spec.features.items():
        parts = ", ".join(feature.slices)
        lines.append(f"- `observation.{name}` {list(feature.shape)}{f': {parts}' if parts else ''}")
    return f"""# A policy of wamtune for LeRobot

Needs LeRobot with the plug-in `lerobot_policy_wamtune`. In wamtune's simulated tasks, where they are the ones below:

```bash
lerobot-eval --policy.path=. --env.type=wamtune --env.task={spec.tasks[0]}{_env_keys(model)}
```

On a robot whose observation is this one:

```bash
lerobot-rollout --policy.path=. --task={spec.tasks[0]} --fps={spec.control_hz:g} --robot.type=...
```

{chr(10).join(lines)}
- `action` [{spec.action_dim}], {spec.control_hz:g} a second
- tasks: {", ".join(spec.tasks)}{"; or any sentence, as in --task='Open it.'" if model.reads_sentences else ""}

"""


def _env_keys(model: WorldActionModel) -> str:
    """Return the keys of `--env.type=wamtune` that give the images of the model; empty without images."""
    if not model.cameras:
        return ""
    size = model.spec.features[model.spec.images[0]].shape[0]
    lines = ["", f"--env.obs_type=pixels_agent_pos --env.image_size={size}"]
    # Only what differs from the plug-in's defaults: one camera `front` in the default position.
    default = vars(View())
    views = {name: {key: x for key, x in vars(v).items() if x != default[key]} for name, v in model.cameras.items()}
    if views != {"front": {}}:
        lines.append(f"--env.cameras='{json.dumps(views)}'")
    return " \\\n    ".join(lines)
