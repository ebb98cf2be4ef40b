"""The observations and actions of openpi's websocket clients, for a policy of ours.

Such a client sends a map without `op`: numbers, images and a `prompt`, of one robot at one moment. It gets `actions`
(chunk_size, action_dim) and the time that they took. docs/serve.md says with which version it was tried.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.errors import UserError
from rl.deploy.frames import Frame
from rl.deploy.newest_sentence import NewestSentence
from rl.deploy.pilots import Decider, Pilot, reads_sentences
from world_model.spec import Feature, Spec

Array = np.ndarray

PROMPT = "prompt"
"""Key of the sentence in an observation."""

NOT_FINITE = "the actions of the policy are not finite; are the numbers of the observation in its units?"
"""Error of a chunk with NaN or infinity, which no client gets."""

MOST_LEVELS = 4
"""Most maps within maps of an observation, such as `images` and in it the cameras."""


class OpenpiHandler:
    """Answers the observations of one client; each chunk has new noise, as in evaluation.

    Args:
        pilot: the policy.
        seed: of the noise.
        rename: key of an observation -> feature of the policy, where `feature_name` would not find it.
    """

    def __init__(self, pilot: Pilot, seed: int, rename: Mapping[str, str]) -> None:
        self.pilot, self.rename = pilot, rename
        self.decide = Decider(pilot, pilot.spec.tasks[0], seed)
        self.sentence = NewestSentence(pilot) if reads_sentences(pilot) else None

    def infer(self, observation: Mapping[Any, Any]) -> dict[str, Any]:
        """Return `actions` (chunk_size, action_dim), and `server_timing` with `infer_ms`.

        Raises:
            UserError: a feature is missing or has another shape, the prompt cannot be used, or the policy's actions are
                not finite.
        """
        begun, spec = time.monotonic(), self.pilot.spec
        found = dict(_flat(observation, "", MOST_LEVELS))
        task = self._task_of(found.pop(PROMPT, None))
        given = {self.rename.get(key) or feature_name(key): value for key, value in found.items()}
        frame: Frame = {}
        for name, feature in spec.features.items():
            if name not in given:
                raise UserError(
                    f"{name} is missing, the observation has {', '.join(map(repr, found)) or 'nothing':.200}; send it, "
                    f"or start wamtune serve with 'rename={{KEY: {name}}}'"
                )
            frame[name] = _frames(name, given[name], feature, self.pilot.n_context_frames)
        self.decide.task = task
        actions = self.decide(frame, np.zeros((0, spec.action_dim)))
        if not np.isfinite(actions).all():
            raise UserError(NOT_FINITE)
        return {"actions": actions, "server_timing": {"infer_ms": 1000 * (time.monotonic() - begun)}}

    def _task_of(self, prompt: Any) -> Tensor:
        """Return what the policy gets as `task`: an index (1,), or for another sentence its vector (1, dim).

        A policy that reads sentences takes any.
        """
        spec = self.pilot.spec
        if not isinstance(prompt, str) or prompt in spec.tasks or self.sentence is None:
            return torch.tensor([_index_of(prompt, spec)])
        return self.sentence.read(prompt, PROMPT)


def feature_name(key: str) -> str:
    """Return the feature that a key of openpi names: `observation/state` is `state`, `images/front` `images.front`."""
    return key.removeprefix("observation/").removeprefix("observation.").replace("/", ".")


def _flat(values: Mapping[Any, Any], prefix: str, levels: int) -> Iterator[tuple[str, Any]]:
    """Yield the entries of maps within maps, with their keys joined by a slash."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise UserError(f"an observation has a key that is a {type(key).__name__}, expected text")
        if not isinstance(value, dict):
            yield prefix + key, value
        elif levels > 1:
            yield from _flat(value, f"{prefix}{key}/", levels - 1)
        else:
            raise UserError(f"an observation has maps within maps, expected {MOST_LEVELS} levels at most")


def _index_of(prompt: Any, spec: Spec) -> int:
    """Return the index of the task that a prompt names, by its name or by its sentence."""
    if prompt is None and len(spec.tasks) == 1:
        return 0
    for i, task in enumerate(spec.tasks):
        if isinstance(prompt, str) and prompt in (task, spec.instruction(task)):
            return i
    shown = f"{prompt[:60]!r}" if isinstance(prompt, str) else "none" if prompt is None else "no text"
    known = ", ".join(repr(spec.instruction(task)) for task in spec.tasks)
    raise UserError(f"prompt: it is {shown}, expected one of {known:.300}")


def _frames(name: str, values: Any, feature: Feature, n_context_frames: int) -> Array:
    """Return a feature as (n_context_frames, *shape).

    A single frame is repeated: the robot counts as standing still.
    """
    kinds = "u" if feature.dtype == "uint8" else "fiu"
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds:
        kind = values.dtype.name if isinstance(values, np.ndarray) else type(values).__name__
        raise UserError(f"{name} is {kind}, expected an array of {feature.dtype}")
    history = (n_context_frames, *feature.shape)
    if values.shape == feature.shape:
        values = np.broadcast_to(values, history)
    if values.shape != history:
        raise UserError(
            f"{name} has shape {list(values.shape)}, expected {list(feature.shape)}, or {list(history)} with the "
            "frames before it, the newest last"
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        numbers: Array = values.astype(feature.dtype)
    if not np.isfinite(numbers).all():
        raise UserError(f"{name} has numbers that are not finite")
    return numbers
