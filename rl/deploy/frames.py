"""Observations of a robot step by step: the frames of an episode, and what a policy gets of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from world_model.spec import STATE, Spec, periods

Array = np.ndarray

Frame = dict[str, Array]
"""Feature -> its value at one step: `state` (state_dim,) float64, `images.CAMERA` (height, width, 3) uint8."""


def context_of(frames: Sequence[Frame], spec: Spec, n_context_frames: int) -> Frame:
    """Return the observation of a policy at the newest of `frames`: feature -> (n_context_frames, *shape).

    Before the first frame, that one stands for all earlier ones: the robot stood still. As in training, an earlier
    frame has the image of one camera period before, even if the robot has an image for each step.
    """
    newest, context = len(frames) - 1, {}
    for name, feature in spec.features.items():
        past = [-(-j // feature.every) * feature.every for j in reversed(range(n_context_frames))]
        context[name] = np.stack([frames[max(newest - steps, 0)][name] for steps in past])
    return context


def recorded(frames: Sequence[Frame], spec: Spec) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the features of an episode, and the steps between the rows of each; see `Episode.obs` and `every`."""
    obs, last = {}, len(frames) - 1
    for name, feature in spec.features.items():
        rows = [frames[i][name] for i in (*range(0, last, feature.every), last)]
        obs[name] = torch.from_numpy(np.stack(rows)).to(torch.float32 if name == STATE else torch.uint8)
    return obs, periods(spec.features)


def tensors_of(obs: Frame) -> dict[str, Tensor]:
    """Return the observation of a policy as tensors with one row."""
    kinds = {name: torch.float32 if name == STATE else torch.uint8 for name in obs}
    return {name: torch.as_tensor(values).to(kinds[name]).unsqueeze(0) for name, values in obs.items()}
