"""A world-action model of wamtune as a policy of LeRobot."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lerobot.policies import PreTrainedPolicy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lerobot_policy_wamtune.configuration_wamtune import WamtuneConfig, refuse_training
from lerobot_policy_wamtune.env import EPISODE_SEED, seeds_of, sentence_of
from rewards.errors import UserError, closest_or_known
from rl.deploy.frames import Frame, context_of
from world_model.checkpoint import checked_weights
from world_model.data.pixels import shrunk
from world_model.flow import seeded_noise
from world_model.spec import IMAGES
from world_model.wam import modes
from world_model.wam.model import WorldActionModel
from world_model.wam.text import FrozenSentences

PREFIX = "observation."
"""Beginning of LeRobot's names of observations; the rest is wamtune's name of the feature."""


class WamtunePolicy(PreTrainedPolicy):
    """Acts as `wamtune eval` does: the same context frames, chunks and noise.

    The environments of a batch are stepped together: their episodes begin with `reset`, and each later call is one
    step. The noise of a chunk is seeded by the seed of the episode, if the environment gives it as `EPISODE_SEED`, and
    the step; otherwise by the row of the batch and the step.
    """

    config_class = WamtuneConfig
    name = "wamtune"

    def __init__(self, config: WamtuneConfig, **kwargs: Any) -> None:
        super().__init__(config)
        self.model = WorldActionModel.from_config({"model": config.model, "spec": config.spec})
        self.spec, self.n_context_frames = self.model.spec, self.model.n_context_frames
        self.n_action_steps = config.n_action_steps or self.model.chunk_size
        # A task is given by its name, by its sentence in the checkpoint, or by that of the environment; a policy that
        # reads sentences takes names and any sentence.
        ways = (sentence_of, self.spec.instruction, str)
        self._task_of = {way(task): i for way in ways for i, task in enumerate(self.spec.tasks)}
        self._told: dict[str, Tensor] = {}  # the sentences of the newest batch, and their vectors
        # `context_of` goes back by whole periods of a camera, so that many frames are kept.
        periods = [feature.every for feature in self.spec.features.values()]
        n_kept = 1 + max(-(-(self.n_context_frames - 1) // every) * every for every in periods)
        self._frames: deque[Frame] = deque(maxlen=n_kept)
        self.reset()

    def reset(self) -> None:
        """Begin an episode in every row."""
        self._frames.clear()
        self._n_steps = 0  # observations since the episodes began
        self._chunk: Tensor | None = None
        self._first_step = 0  # at which the chunk was predicted

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Return the next action of each row; every `n_action_steps` calls, a chunk is predicted.

        Args:
            batch: `observation.state` (n, state_dim), images (n, 3, height, width) from 0 to 1, and `task`, a sentence
                or name for each row. A policy that reads sentences takes any, also one that it does not know.
            kwargs: see `predict_action_chunk`.

        Returns:
            Actions (n, action_dim), in units of the environment.
        """
        if self._chunk is None or self._n_steps - self._first_step >= self.n_action_steps:
            self._first_step = self._n_steps
            self._chunk = self.predict_action_chunk(batch, **kwargs)
        else:
            self._observe(batch)
        return self._chunk[:, self._n_steps - 1 - self._first_step]

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Take one observation of each row, and predict its chunk; see `select_action`.

        Args:
            batch: as for `select_action`.
            noise: starting noise (n, n_tokens, code_dim) in place of the seeded one.
            kwargs: ignored.

        Returns:
            Actions (n, chunk_size, action_dim), in units of the environment.
        """
        step = self._n_steps
        self._observe(batch)
        # (n_context_frames, n, ...) of each feature -> (n, n_context_frames, ...)
        context = context_of(list(self._frames), self.spec, self.n_context_frames)
        obs = {name: torch.from_numpy(values).transpose(0, 1) for name, values in context.items()}
        n = len(obs["state"])
        obs["task"] = self._task(batch.get("task"), n)
        if noise is None:
            seed = seeds_of(batch[EPISODE_SEED]) if EPISODE_SEED in batch else torch.arange(n)
            codec = self.model.action_codec
            noise = seeded_noise(seed.cpu(), torch.full((n,), step), (codec.n_tokens, codec.code_dim))
        device = self.model.device
        encoded = self.model.observe({name: values.to(device) for name, values in obs.items()})
        return modes.policy(self.model, encoded, noise.to(device), self.config.n_denoising_steps)

    def forward(self, batch: dict[str, Any]) -> NoReturn:
        """Raise `UserError`: LeRobot does not train this policy."""
        refuse_training()

    def get_optim_params(self) -> NoReturn:
        """Raise `UserError`: LeRobot does not train this policy."""
        refuse_training()

    @classmethod
    def _load_as_safetensor(
        cls, model: WamtunePolicy, model_file: str, map_location: str, strict: bool
    ) -> WamtunePolicy:
        """Load the weights. LeRobot would leave missing ones random (`strict` is False by default)."""
        try:
            model.load_state_dict(checked_weights(model_file, load_file(model_file)))
        except (RuntimeError, SafetensorError) as error:
            raise UserError(
                f"{model_file} does not fit {Path(model_file).with_name('config.json')}; write the folder again with "
                "`wamtune cp CHECKPOINT FOLDER format=lerobot`"
            ) from error
        return model

    def _observe(self, batch: dict[str, Any]) -> None:
        """Add the newest frame of every row."""
        frame = {name: self._value(name, batch) for name in self.spec.features}
        if self._frames and len(self._frames[-1]["state"]) != len(frame["state"]):
            raise UserError("the number of rows has changed within an episode; call reset() where episodes begin")
        self._frames.append(frame)
        self._n_steps += 1

    def _value(self, name: str, batch: dict[str, Any]) -> np.ndarray:
        """Return the newest value of a feature, (n, *shape)."""
        key, shape = PREFIX + name, self.spec.features[name].shape
        if key not in batch:
            given = ", ".join(sorted(other for other in batch if other.startswith(PREFIX)))
            raise UserError(
                f"the policy reads {key!r}, the observation has {given or 'nothing'}; name cameras with --rename_map, "
                "or set --env.obs_type of --env.type=wamtune"
            )
        value: Tensor = batch[key].detach()
        if name.startswith(IMAGES):
            return self._images(value, height=shape[0], width=shape[1])
        if value.shape[1:] != shape:
            raise UserError(
                f"{key!r} has the shape {list(value.shape[1:])}, the policy expects {list(shape)}; for "
                "--env.type=wamtune set --env.obs_type"
            )
        return value.float().cpu().numpy()

    def _images(self, value: Tensor, height: int, width: int) -> np.ndarray:
        """Return images (n, 3, ., .) from 0 to 1 as uint8 (n, height, width, 3); larger ones are scaled down."""
        images: np.ndarray = (value * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, 3).cpu().numpy()
        if images.shape[1:3] == (height, width):
            return images
        if images.shape[1] < height or images.shape[2] < width:
            raise UserError(f"an image has {list(images.shape[1:3])} pixels, the policy expects {[height, width]}")
        return np.stack([shrunk(image, height, width) for image in images])  # as on a robot

    def _task(self, given: str | list[str] | None, n: int) -> Tensor:
        """Return what the model gets as task of each row: an index (n,), or the vector of a sentence (n, dim)."""
        given = [given or ""] * n if given is None or isinstance(given, str) else given
        if self.model.reads_sentences:
            # Only the sentences of this batch are kept.
            self._told = {words: self._told[words] if words in self._told else self._read(words) for words in given}
            return torch.cat([self._told[words] for words in given])
        if len(self.spec.tasks) == 1:
            return torch.zeros(n, dtype=torch.long)
        return torch.tensor([self._index_of(words) for words in given])

    @torch.no_grad()
    def _read(self, words: str) -> Tensor:
        """Return the vector (1, dim) of a sentence, of that of a task by its name, or of the only one."""
        tasks = self.spec.tasks
        if words in tasks or not words:
            index = 0 if not words and len(tasks) == 1 else self._index_of(words)
            return self.model.told(torch.tensor([index], device=self.model.device))
        if isinstance(self.model.text, FrozenSentences) and words not in self.model.text.rows:
            known = closest_or_known(words, map(self.spec.instruction, tasks))
            raise UserError(
                f"task {words!r:.80} is a new sentence, which needs the text encoder {self.model.text.encoder}, and "
                f"that is no part of the policy; {known}"
            )
        return self.model.read(words)

    def _index_of(self, words: str) -> int:
        """Return the index of the task with this name or sentence."""
        if words not in self._task_of:
            raise UserError(f"task {words!r} is unknown to the policy; {closest_or_known(words, self.spec.tasks)}")
        return self._task_of[words]
