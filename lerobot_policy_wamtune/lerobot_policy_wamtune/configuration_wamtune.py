"""The config of the policy, as `wamtune cp CHECKPOINT FOLDER format=lerobot` writes it to `config.json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from draccus.utils import DecodingError
from lerobot.configs import PreTrainedConfig

from rewards.errors import UserError
from world_model.spec import Spec
from world_model.wam.config import ModelConfig


@PreTrainedConfig.register_subclass("wamtune")
@dataclass
class WamtuneConfig(PreTrainedConfig):
    """What is needed to build the model and to act with it.

    `model` and `spec` are those of the checkpoint and belong to its weights. The other two may be changed on the
    command line, such as `--policy.n_action_steps=4`.

    Raises:
        DecodingError: there is no model, or a number is out of range.
    """

    model: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    n_denoising_steps: int = 2
    n_action_steps: int = 0  # executed of a chunk; 0: all of it

    def __post_init__(self) -> None:
        super().__post_init__()
        with one_line("policy"):
            self._check()

    def _check(self) -> None:
        if not self.model or not self.spec:
            raise UserError(
                "type=wamtune alone has no weights; write a folder with `wamtune cp CHECKPOINT FOLDER format=lerobot` "
                "and name it with --policy.path=FOLDER"
            )
        try:
            Spec.from_dict(self.spec)
            ModelConfig.from_dict(self.model)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"its config.json does not describe a model of wamtune: {error}") from error
        if self.n_denoising_steps < 1:
            raise UserError(f"n_denoising_steps={self.n_denoising_steps}: expected at least 1")
        if not 0 <= self.n_action_steps <= self.chunk_size:
            raise UserError(
                f"n_action_steps={self.n_action_steps}: expected 1 to {self.chunk_size}, the actions of a chunk, or 0 "
                "for all of them"
            )

    @property
    def chunk_size(self) -> int:
        """Number of actions that are predicted at once."""
        return ModelConfig.from_dict(self.model).chunk_size

    @property
    def observation_delta_indices(self) -> None:
        """No frames but the newest one: the policy keeps the earlier ones itself."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """Steps of the actions of a chunk, counted from the observation."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return None

    def validate_features(self) -> None:
        """Nothing: the policy checks each observation."""

    def get_optimizer_preset(self) -> NoReturn:
        """Raise `UserError`: LeRobot does not train this policy."""
        refuse_training()

    def get_scheduler_preset(self) -> None:
        """No schedule."""
        return None


@contextmanager
def one_line(keys: str) -> Iterator[None]:
    """Report a `UserError` about `--KEYS...` as LeRobot's programs print it: in one line.

    Raises:
        DecodingError: there was one. Of any other exception in a config they hide the message.
    """
    try:
        yield
    except UserError as error:
        raise DecodingError((keys,), str(error)) from error


def refuse_training() -> NoReturn:
    """Raise the `UserError` of everything that would train the policy."""
    raise UserError(
        "LeRobot runs this policy and does not train it: use `wamtune tune` for demonstrations or `wamtune train` for "
        "reinforcement learning, then write the folder again with `wamtune cp CHECKPOINT FOLDER format=lerobot`"
    )
