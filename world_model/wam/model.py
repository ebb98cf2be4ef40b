"""The built-in world-action model: the network with the methods of the protocol `WorldModel`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from rewards.api import ImageModel
from rewards.errors import UserError
from world_model.api import Context, Prediction, Session, WorldModel
from world_model.data.episodes import Episode
from world_model.env import Frames, Obs, ReadOut
from world_model.flow import seeded_noise
from world_model.processes import ALONE, Share
from world_model.spec import LATENTS, Spec
from world_model.view import View
from world_model.wam import features, modes, trust
from world_model.wam.config import ModelConfig
from world_model.wam.losses import policy_loss
from world_model.wam.network import Network
from world_model.wam.read_out import frame_data
from world_model.wam.training import train_stage
from world_model.wam.training_config import StageConfig

REFIT_BATCH_SIZE, REFIT_CHUNKS = 48, 6
"""Windows in a step of a refit, and chunks that are dreamed from each. More steps help more than larger batches."""

READ_OUT_STAGE = StageConfig(n_steps=300, batch_size=512, warmup_steps=30)
"""Refit of the read-outs on single frames, with the learning rate that they have in the other stages."""


class WorldActionModel(Network, WorldModel):
    """Policy, dream, inverse dynamics and video predictor in one set of weights. See `Network` for the arguments."""

    policy_steps: tuple[int, int] = 2, 0
    """How its policy acts: denoising steps, and executed actions of a chunk (0: all). `load_actor` sets it."""

    def __init__(self, config: ModelConfig, spec: Spec, unseen_tasks: Collection[str] = ()) -> None:
        super().__init__(config, spec, unseen_tasks)
        self.n_context_frames, self.chunk_size = config.n_context_frames, config.chunk_size

    @property
    def cameras(self) -> Mapping[str, View]:
        """Cameras of the images that the model reads, by name; empty for a model without images."""
        return self.config.views

    @property
    def n_cameras(self) -> int:
        """Number of cameras."""
        return len(self.cameras)

    @property
    def predicted_spec(self) -> Spec:
        """Like `spec`, with the features that it predicts: the state, and in place of images their latents."""
        return features.predicted_spec(self.spec, self.image_codec)

    @property
    def frame_read_out(self) -> ReadOut:
        """Read success and progress from frames; see `WorldModel.frame_read_out`."""
        return self.success_and_progress

    @property
    def image_model(self) -> ImageModel | None:
        """The model itself if it reads images; see `WorldModel.image_model`."""
        return self if self.cameras else None

    @property
    def context_noise(self) -> float:
        """Largest standard deviation of the noise on the state in training, in its units; 0: no noise."""
        return self.config.context_noise

    def encode_obs(self, frames: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return frames with latents in place of images; see `WorldModel.encode_obs`."""
        return (
            frames if self.image_codec is None else features.encode_images(self.image_codec, self.spec.images, frames)
        )

    def decode_obs(self, frames: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Return the images `names` of latents; see `WorldModel.decode_obs`."""
        if self.image_codec is None:
            return {}
        return features.decode_images(self.image_codec, self.spec.images, frames[LATENTS], names)

    def with_features(self, frames: dict[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
        """Return frames with images and latents that are among `names` and not there yet; see `rewards.api.ImageModel`.

        Other names are ignored.
        """
        if self.image_codec is None:
            return frames
        if LATENTS in names and LATENTS not in frames:
            frames = frames | {LATENTS: self.encode_obs(frames)[LATENTS]}
        if missing := [name for name in self.spec.images if name in names and name not in frames]:
            frames = frames | self.decode_obs(frames, missing)
        return frames

    def encode_file(self, path: str) -> Tensor:
        """Encode the image in a file once for each camera. Shape: (n_cameras, length of the latents of one).

        Raises:
            UserError: the file does not exist, is not an image, or has another size.
        """
        assert self.image_codec is not None, "a model without cameras provides no latents"
        return self.image_codec.encode_file(path)

    def observe(self, obs: dict[str, Tensor], generator: torch.Generator | None = None) -> Context:
        """Encode an observation of n rows: features (n, n_context_frames, *shape) and `task` (n,).

        With a `generator`, the noise of the training (`context_noise`) is added to the state first, and a model that
        reads sentences gets one of the wordings of each task.
        """
        frames, task = features.joined(self.encode_obs(obs)), obs["task"]
        if generator is not None:
            frames, task = self.noisy(frames, generator), self.reworded(task, generator)
        return self.encode(frames, task)

    def success_and_progress(self, frames: dict[str, Tensor], task: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate success probability and progress in [0, 1] of frames, (n, n_frames) each.

        Args:
            frames: features of `spec` or of `predicted_spec`, each (n, n_frames, *shape).
            task: (n,) int64.
        """
        vectors = features.joined(self.encode_obs(frames))
        n, k = vectors.shape[:2]
        p, progress = self.read_frames(vectors.flatten(0, 1), task.repeat_interleave(k))
        return p.view(n, k), progress.view(n, k)

    def begin(self, history: Obs, seed: Tensor) -> Session:
        """Begin dreams: the session holds the newest frames, numbers the chunks, and has the memory of the trust heads.

        The number of a chunk is for the noise. The heads of older checkpoints have an empty memory.
        """
        return {
            "context": features.joined(self.encode_obs(history)),
            "task": history["task"],
            "seed": seed,
            "counter": torch.zeros_like(seed),
            "trust": self.trust.begin(len(seed)),
        }

    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        """Predict a chunk; a shorter one is completed with its last action, and only its own frames are used.

        The expected error is None until `calibrate_trust` was called.
        """
        context, task, seed, counter = (session[name] for name in ("context", "task", "seed", "counter"))
        k, whole = actions.shape[1], _completed(actions, self.chunk_size)
        shape = self.codec.n_future_tokens, self.codec.code_dim
        if self.n_denoising_steps > 1:
            noise = seeded_noise(seed, counter, shape)
        else:  # a single step does not depend on the noise; zeros avoid the slow draw, row by row on the CPU
            noise = torch.zeros(len(task), *shape, device=self.device)
        encoded = self.encode(context, task)
        vectors = modes.dream(self, encoded, whole, noise, self.n_denoising_steps)
        # Without calibrated trust heads there is no estimate of the error. Older states of runs have no memory.
        expected, memory = None, session["trust"] if "trust" in session else self.trust.begin(len(task))
        if self.estimates_error:
            expected, memory = trust.expected_error(self, trust.read(self, encoded, whole, vectors), memory)
        frames = features.split(vectors[:, :k], self.spec.state_dim)
        success, _ = self.success_and_progress(frames, task)
        newest = torch.cat([context, vectors[:, :k]], dim=1)[:, -self.n_context_frames :].contiguous()
        following = {**session, "context": newest, "counter": counter + 1, "trust": memory}
        return following, Prediction(frames, success, expected)

    def imitation_loss(self, context: Context, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean loss of imitating `actions` (n, chunk_size, action_dim) in an encoded `context` (n rows)."""
        return policy_loss(self, context, actions, generator)

    def refit(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None] = lambda share: None,
        share: Share = ALONE,
    ) -> None:
        """Train the world decoder on its own dreams of the episodes' actions; see `WorldModel.refit`.

        `share` is that of this process in each batch.
        """
        stage = StageConfig(
            n_steps=n_steps,
            batch_size=REFIT_BATCH_SIZE,
            learning_rate=learning_rate,
            warmup_steps=n_steps // 10 + 1,
            seed=seed,
        )
        windows = self.windows_of(episodes, self.spec.tasks, REFIT_CHUNKS * self.chunk_size, ends=True, pads=True)
        train_stage("dynamics", self, windows, stage, log=lambda step, _: tick(step / n_steps), share=share)

    def refit_together(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None],
        share: Share,
    ) -> None:
        """Refit in several processes, each of which computes its share of every batch."""
        self.refit(episodes, n_steps, learning_rate, seed, tick, share)

    def refit_read_out(self, episodes: list[Episode], own: list[Episode], tasks: Collection[str], seed: int) -> None:
        """Train the read-outs of success and progress on `tasks`; see `WorldModel.refit_read_out`.

        A task without a success in its episodes is left out, see `world_model.wam.read_out`.
        """
        data = frame_data(self, episodes, own, tasks)
        if data is None:
            return
        train_stage("read_out", self, data, replace(READ_OUT_STAGE, seed=seed))

    @property
    def estimates_error(self) -> bool:
        """Whether the trust heads were calibrated."""
        return bool(self.trust.given.fitted)

    def calibrate_trust(self, episodes: list[Episode], tick: Callable[[float], None] = lambda share: None) -> None:
        """Fit the trust heads to the true errors of dreams of `episodes`; see `WorldModel.calibrate_trust`.

        Raises:
            UserError: no episode has `trust.HORIZON` chunks.
        """
        dreams = trust.dream_of_real_actions(self, episodes)
        trust.calibrate(self, dreams.given, dreams.errors, trust.N_STEPS, tick)

    @property
    def error_unit(self) -> str:
        """Metres, or normalised units if the state has no `object_pos`."""
        return trust.error_unit(self)

    def frame_error(self, true: Frames, dreamed: Frames) -> Tensor:
        """Return the distance of dreamed from true frames, see `trust.position_error`."""
        return trust.position_error(self, features.joined(true), features.joined(dreamed))

    def to_config(self) -> dict[str, Any]:
        """Return the part of `config.json` that `from_config` needs."""
        return {"model": asdict(self.config), "spec": self.spec.to_dict(), "unseen_tasks": list(self.unseen_tasks)}

    @staticmethod
    def from_config(data: dict[str, Any]) -> WorldActionModel:
        """Build a model from the result of `to_config`, with random weights.

        Raises:
            UserError: the architecture, the spec or the unseen tasks are not valid.
        """
        config, spec = ModelConfig.from_dict(data["model"]), Spec.from_dict(data["spec"])
        unseen = data.get("unseen_tasks", [])  # older checkpoints do not have them
        if not isinstance(unseen, list) or any(task not in spec.tasks for task in unseen):
            raise UserError(f"config.json: unseen_tasks is {unseen!r:.80}, expected a list of tasks of the spec")
        return WorldActionModel(config, spec, unseen)


def _completed(actions: Tensor, chunk_size: int) -> Tensor:
    """Repeat the last of the actions (n, k, action_dim) until there are `chunk_size`."""
    missing = chunk_size - actions.shape[1]
    return torch.cat([actions, actions[:, -1:].expand(-1, missing, -1)], dim=1) if missing else actions
