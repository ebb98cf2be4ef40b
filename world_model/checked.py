"""A world model of somebody else, with a check of everything that it returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor

from rewards.api import ImageModel
from rewards.errors import BadNumbers, UserError, blamed, defined_at, file_of
from world_model.api import Prediction, Session, WorldModel
from world_model.data.episodes import Episode
from world_model.env import Frames, Obs, ReadOut
from world_model.guards import MOST
from world_model.processes import Share
from world_model.spec import Spec
from world_model.tree import map_tree, tensors
from world_model.view import View


class CheckedWorldModel(WorldModel):
    """Calls a world model, and refuses results of another type, shape or size, naming its file and line.

    It gets copies of what it could change by mistake.

    Args:
        model: the world model.
        who: beginning of error messages, such as "dream.world_model=FILE.py:Class".

    Raises:
        UserError: what it declares about itself cannot be used.
    """

    def __init__(self, model: WorldModel, who: str) -> None:
        self.model, self.who = model, who
        declared: dict[str, Any] = {n: getattr(model, n, None) for n in ("spec", "n_context_frames", "chunk_size")}
        for name, value in declared.items():
            fits = isinstance(value, Spec) if name == "spec" else type(value) is int and value >= 1
            if not fits:
                expected = "a world_model.spec.Spec" if name == "spec" else "a whole number of at least 1"
                raise UserError(f"{who}: its attribute {name} is {value!r:.80}, expected {expected}")
        self.spec, self.n_context_frames, self.chunk_size = model.spec, model.n_context_frames, model.chunk_size
        with self._blamed():
            self._predicted_spec = model.predicted_spec

    @torch.no_grad()
    def begin(self, history: Obs, seed: Tensor) -> Session:
        """Begin dreams with the model.

        Raises:
            UserError: it raised an exception, or its session has not one row for each dream.
        """
        with self._blamed():
            session = self.model.begin({name: values.clone() for name, values in history.items()}, seed.clone())
        return self._checked_session(session, len(seed), "begin")

    @torch.no_grad()
    def predict(self, session: Session, actions: Tensor) -> tuple[Session, Prediction]:
        """Predict with the model.

        Raises:
            UserError: it raised an exception, or returned another type or shape.
            BadNumbers: a value is not finite, beyond its bounds, or absurdly large.
        """
        with self._blamed():
            result = self.model.predict(map_tree(Tensor.clone, session), actions.clone())
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Prediction)):
            raise self._wrong("predict", f"{_kind(result)}, expected a session and a world_model.api.Prediction")
        following, predicted = result
        n, k = actions.shape[:2]
        checked = Prediction(
            self._checked_frames(predicted.frames, n, k),
            self._checked_numbers("success", predicted.success, (n, k), most=1.0),
            None
            if predicted.expected_error is None
            else self._checked_numbers("expected_error", predicted.expected_error, (n,), most=MOST),
        )
        return self._checked_session(following, n, "predict"), checked

    @property
    def predicted_spec(self) -> Spec:
        """Return the spec of the features that it predicts."""
        return self._predicted_spec

    @property
    def device(self) -> torch.device:
        """Return the device of its tensors."""
        return self.model.device

    @property
    def cameras(self) -> Mapping[str, View]:
        """Return the cameras of the images that it reads."""
        return self.model.cameras

    @property
    def frame_read_out(self) -> ReadOut | None:
        """Return its read-out of frames."""
        return self.model.frame_read_out

    @property
    def image_model(self) -> ImageModel | None:
        """Return what reward terms use of it."""
        return self.model.image_model

    @property
    def estimates_error(self) -> bool:
        """Whether its predictions come with an expected error."""
        return self.model.estimates_error

    @property
    def error_unit(self) -> str:
        """Return the unit of its errors."""
        return self.model.error_unit

    def frame_error(self, true: Frames, dreamed: Frames) -> Tensor:
        """Measure errors as the model does."""
        with self._blamed():
            return self.model.frame_error(true, dreamed)

    def encode_obs(self, frames: Frames) -> Frames:
        """Encode with the model."""
        with self._blamed():
            return self.model.encode_obs(frames)

    def decode_obs(self, frames: Frames, names: Collection[str]) -> Frames:
        """Decode with the model."""
        with self._blamed():
            return self.model.decode_obs(frames, names)

    def encode_episodes(self, episodes: list[Episode]) -> list[Episode]:
        """Encode with the model."""
        with self._blamed():
            return self.model.encode_episodes(episodes)

    @property
    def can_pretrain(self) -> bool:
        """Whether the model has a `pretrain` of its own."""
        return type(self.model).pretrain is not WorldModel.pretrain

    def pretrain(self, seed: int) -> None:
        """Train new weights of the model."""
        with self._blamed():
            self.model.pretrain(seed)

    def refit(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Train the model."""
        with self._blamed():
            self.model.refit(episodes, n_steps, learning_rate, seed, tick)

    def refit_together(
        self,
        episodes: list[Episode],
        n_steps: int,
        learning_rate: float,
        seed: int,
        tick: Callable[[float], None],
        share: Share,
    ) -> None:
        """Train the model in several processes."""
        with self._blamed():
            self.model.refit_together(episodes, n_steps, learning_rate, seed, tick, share)

    @property
    def unseen_tasks(self) -> tuple[str, ...]:
        """Return the tasks that it was not trained on."""
        return self.model.unseen_tasks

    def refit_read_out(self, episodes: list[Episode], own: list[Episode], tasks: Collection[str], seed: int) -> None:
        """Train the model."""
        with self._blamed():
            self.model.refit_read_out(episodes, own, tasks, seed)

    def refined(self) -> Self:
        """Return the refined model, checked as well."""
        with self._blamed():
            return type(self)(self.model.refined(), self.who)

    def calibrate_trust(self, episodes: list[Episode], tick: Callable[[float], None] = lambda share: None) -> None:
        """Calibrate the model."""
        with self._blamed():
            self.model.calibrate_trust(episodes, tick)

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of the model; {} if it has none."""
        with self._blamed():
            found: Any = getattr(self.model, "state_dict", dict)()
        if not (isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values())):
            raise UserError(f"{self.who}: its state_dict returned {_kind(found)}, expected tensors by name")
        return dict(found)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the weights that `state_dict` returned.

        Raises:
            UserError: they do not fit the model.
        """
        if state:
            with self._blamed():
                getattr(self.model, "load_state_dict")(dict(state))  # noqa: B009 - a world model need not have it

    def _checked_frames(self, frames: Any, n: int, k: int) -> Frames:
        features = self._predicted_spec.features
        if not isinstance(frames, Mapping) or set(frames) != set(features):
            has = ", ".join(map(str, frames)) if isinstance(frames, Mapping) else _kind(frames)
            raise self._wrong("predict", f"frames {has}, expected {', '.join(features)}: the features of its spec")
        return {
            name: self._checked_numbers(f"frames[{name!r}]", frames[name], (n, k, *feature.shape), feature.dtype)
            for name, feature in features.items()
        }

    def _checked_numbers(
        self, name: str, values: Any, shape: tuple[int, ...], dtype: str = "float32", most: float | None = None
    ) -> Tensor:
        """Check the shape and type of values, and that they are finite; with `most`, that they are from 0 to it."""
        if not isinstance(values, Tensor) or tuple(values.shape) != shape:
            has = f"of shape {tuple(values.shape)}" if isinstance(values, Tensor) else f"as {_kind(values)}"
            raise self._wrong("predict", f"{name} {has}, expected {shape}")
        if dtype == "uint8" and values.dtype != torch.uint8:
            raise self._wrong("predict", f"{name} of type {values.dtype}, expected torch.uint8: an image")
        if dtype == "uint8":
            return values
        if values.is_complex():
            raise self._wrong("predict", f"{name} of type {values.dtype}, expected real numbers")
        values = values.detach().float()
        fits = values.abs() <= MOST if most is None else (values >= 0) & (values <= most)
        if not fits.all():
            place = (~fits).nonzero()[0].tolist()
            at = f"row {place[0]}" + (f", step {place[1]}" if len(shape) > 1 else "")
            expected = f"a finite number within ±{MOST:g}" if most is None else f"a number from 0 to {most:g}"
            problem = f"{name} with {values[tuple(place)].item():g} in {at} of the chunk; expected {expected}"
            raise self._wrong("predict", problem, BadNumbers)
        return values

    def _checked_session(self, session: Session, n: int, method: str) -> Session:
        """Check that a session has `n` rows in each tensor; return it without gradients."""
        try:
            found = list(tensors(session))
        except TypeError as error:
            raise self._wrong(method, f"a session that is no tree: {error}") from error
        if not found:
            raise self._wrong(method, "a session without tensors, expected at least one")
        for name, values in found:
            if values.dim() == 0 or len(values) != n:
                at = f" at {name}" if name else ""
                raise self._wrong(method, f"a session with shape {tuple(values.shape)}{at}, expected {n} rows")
        return map_tree(Tensor.detach, session)

    def _blamed(self) -> AbstractContextManager[None]:
        return blamed(self.who, file_of(self.model))

    def _wrong(self, method: str, problem: str, kind: type[UserError] = UserError) -> UserError:
        at = defined_at(getattr(self.model, method))
        return kind(f"{self.who} returned {problem}" + (f"; see {at}" if at else ""))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
