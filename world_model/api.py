"""The interface of a world model, and the data that it exchanges.

`world_model.wam` holds the built-in model. To bring one of your own, write a subclass of `WorldModel` with `begin` and
`predict`; docs/bring_your_own.md shows one.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from rewards.api import ImageModel
from world_model.data.episodes import Episode
from world_model.env import Frames, Obs, ReadOut
from world_model.processes import Share
from world_model.spec import STATE, Spec
from world_model.tree import Tree
from world_model.view import View

METRES, NORMALISED, OF_STATE = "m", "normalised units", "units of the state"
"""Units of errors: distance of the object in metres, of the whole state in standard deviations, or in its own units."""

Session = Tree
"""All that a world model carries from one chunk to the next: nested tensors with `n` rows each, one row a dream."""


@dataclass
class Context:
    """Encoded observations (`n` rows), computed once and read by all decoders and by the critic; a `Tree`."""

    frames: Tensor  # (n, n_context_frames, size of all features together)
    cache: list[tuple[Tensor, Tensor]]  # keys and values (n, ...) of each layer
    features: Tensor  # (n, n_features), detached, for the critic


@dataclass
class Prediction:
    """Predicted result of a chunk of `k` actions, for `n` rows."""

    frames: Frames  # feature of `predicted_spec` -> (n, k, *shape), its value after each action
    success: Tensor  # (n, k), probability that the task is solved in each frame
    expected_error: Tensor | None = None  # (n,), of the chunk, in `error_unit`; None if the model cannot estimate it


class WorldModel(ABC):
    """Predicts what actions lead to; `DreamEnv` makes a batched environment of it.

    A subclass sets `spec` and `chunk_size` and implements `begin` and `predict`. Weights are saved with a run and
    restored if it has `state_dict` and `load_state_dict`, as a `torch.nn.Module` has. For a run that repeats exactly,
    random numbers must come from the seeds that a method gets.
    """

    spec: Spec  # features that it reads, action bounds, tasks and control rate
    n_context_frames: int = 1  # frames of each observation that `begin` gets, and that a policy gets in the dream
    chunk_size: int  # most actions that one call of `predict` gets; `dream.horizon` counts such chunks
    n_denoising_steps: int = 1  # integration steps of a prediction (`dream.n_denoising_steps`); others ignore it

    @abstractmethod
    def begin(self, history: Obs, seed: Tensor) -> Session:
        """Begin `n` dreams.

        Args:
            history: features of `predicted_spec`, each (n, n_context_frames, *shape), the newest frame last, and `task`
                (n,) int64, an index into `spec.tasks`. At the start of an episode the first frame is repeated.
            seed: (n,) int64; all random numbers of a row must depend on nothing but its seed.

        Returns:
            Nested tensors with n rows each. Single rows of them are replaced by those of a later call when their dream
            ends and the next one begins.
        """

    @abstractmethod
    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        """Predict what `k` actions lead to, and return the session from which the next chunk goes on.

        Args:
            session: of `n` rows; it must not be changed in place.
            actions: (n, k, action_dim) with 1 <= k <= chunk_size, in environment units and within their bounds.
        """

    @property
    def predicted_spec(self) -> Spec:
        """Like `spec`, with the features that it predicts, such as latents in place of images. By default `spec`."""
        return self.spec

    @property
    def device(self) -> torch.device:
        """Device of all its tensors. By default that of its weights, or the CPU if it has none."""
        weights = next(self.parameters(), None) if isinstance(self, nn.Module) else None
        return torch.device("cpu") if weights is None else weights.device

    @property
    def cameras(self) -> Mapping[str, View]:
        """Where a simulator puts the cameras of the images that it reads, by name. By default none."""
        return {}

    @property
    def frame_read_out(self) -> ReadOut | None:
        """Success probability and progress in [0, 1] read from frames of `spec` or `predicted_spec`.

        The reward term `progress` needs it, in the simulator as well. By default None: they cannot be read from frames.
        """
        return None

    @property
    def image_model(self) -> ImageModel | None:
        """What reward terms use to convert images to latents and back. By default None: there are no latents."""
        return None

    def encode_obs(self, frames: Frames) -> Frames:
        """Return the features of `predicted_spec` for those of `spec`, each (n, n_frames, *shape). By default the same.

        Features that are there already stay as they are. A key that is no feature, such as `task`, stays too.
        """
        return frames

    def decode_obs(self, frames: Frames, names: Collection[str]) -> Frames:
        """Return the features `names` of `spec` for those of `predicted_spec`, for a policy, a reward or a person."""
        return {name: frames[name] for name in names}

    def encode_episodes(self, episodes: list[Episode]) -> list[Episode]:
        """Return episodes with the features of `predicted_spec`, as `encode_obs` does."""
        return episodes

    def pretrain(self, seed: int) -> None:  # noqa: B027 - its constructor may have loaded its weights
        """Train new weights before the first dream; not called where saved weights are loaded. By default nothing.

        `seed` is that of the run, for batches and noise.
        """

    def refit(  # noqa: B027 - a world model need not be trained
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Train the prediction of frames on recorded episodes. By default nothing is trained.

        Args:
            episodes: with the features of `predicted_spec`.
            n_steps: optimizer steps (`dream.refit_steps`).
            learning_rate: `dream.refit_learning_rate`.
            seed: of batches and noise.
            tick: called with the finished share of the training, from 0 to 1.
        """

    def refit_together(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None],
        share: Share,
    ) -> None:
        """Refit in several processes; afterwards all get the weights of process 0.

        By default each process does the whole refit. `seed` is different in each process, and `share` averages the
        gradients; the other arguments are those of `refit`.
        """
        self.refit(episodes, n_steps, learning_rate, seed, tick)

    @property
    def unseen_tasks(self) -> tuple[str, ...]:
        """Tasks of `spec` that its weights were not trained on, so that their success is a guess. By default none."""
        return ()

    def refit_read_out(  # noqa: B027 - success need not be learned
        self, episodes: list[Episode], own: list[Episode], tasks: Collection[str], seed: int
    ) -> None:
        """Train what tells success from frames on `tasks`, after a refit. By default nothing is trained.

        Args:
            episodes: recorded ones of the run as this model dreams them, with true labels; see `dreamed_episodes`.
            own: those of the checkpoint, whose tasks must stay as they are; none for a world model of somebody else.
            tasks: to learn, see `dream.refit_read_out`.
            seed: of the batches.
        """

    def refined(self) -> Self:
        """Return this model with one denoising step more, which dreams successes again for `redream`; same weights."""
        refined = copy.copy(self)
        refined.n_denoising_steps += 1
        return refined

    @property
    def estimates_error(self) -> bool:
        """Whether predictions come with an expected error, after calibration if it needs one. By default: no."""
        return False

    def calibrate_trust(  # noqa: B027 - there may be nothing to calibrate
        self, episodes: list[Episode], tick: Callable[[float], None] = lambda share: None
    ) -> None:
        """Fit the estimate of the prediction error to recorded episodes that no refit has used. By default nothing.

        `tick` is called with the finished share of the fit, from 0 to 1.
        """

    @property
    def error_unit(self) -> str:
        """Unit of `frame_error` and `Prediction.expected_error`, one of METRES, NORMALISED and OF_STATE."""
        return METRES if "object_pos" in self.predicted_spec.slices else OF_STATE

    def frame_error(self, true: Frames, dreamed: Frames) -> Tensor:
        """Return the distance (...) of dreamed from true frames, feature -> (..., *shape).

        By default it is the distance of the slice `object_pos`, or of the whole state if there is no such slice.
        """
        part = self.predicted_spec.slices.get("object_pos", slice(None))
        return (true[STATE] - dreamed[STATE])[..., part].norm(dim=-1)
