"""What a person holds and presses: the messages of the page, checked, and the actions that they stand for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from world_model.spec import Spec
from world_model.view import View

AXES = ("right", "away", "up", "grip")
"""Axes of a person's controls, each from -1 to 1; `right` and `away` are as the camera sees them."""

NOTHING = (0.0,) * len(AXES)
"""What is held if no key is."""

PRESSES = ("policy", "restart", "rewind", "redream")
"""Buttons: who drives, a new start, back to where simulator and dream parted, and dream anew from the simulator."""

MAX_LETTERS = 200
"""Length of the longest instruction."""

MAX_BYTES = 1024
"""Size of the largest message of a page."""


class Refused(Exception):
    """A message that no page of ours sends."""


@dataclass(frozen=True)
class Message:
    """One message of the page; exactly one of the fields is set."""

    held: tuple[float, ...] | None = None  # a value for each of `AXES`
    press: str | None = None  # one of `PRESSES`
    task: str | None = None  # one of the tasks that are offered
    instruction: str | None = None  # what the robot is told to do, at most `MAX_LETTERS`; "": nothing


def parse(text: str | bytes, tasks: tuple[str, ...]) -> Message:
    """Return a message of the page.

    Raises:
        Refused: it is not JSON, has other fields, or a value is out of range.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused("expected JSON") from error
    if not isinstance(given, dict) or len(given) != 1:
        raise Refused("expected an object with one of held, press, task and instruction")
    ((key, value),) = given.items()
    if key == "held" and isinstance(value, list) and len(value) == len(AXES) and all(map(_is_share, value)):
        return Message(held=tuple(map(float, value)))
    if key == "press" and value in PRESSES:
        return Message(press=value)
    if key == "task" and value in tasks:
        return Message(task=value)
    if key == "instruction" and isinstance(value, str) and len(value) <= MAX_LETTERS and value.isprintable():
        return Message(instruction=value)
    raise Refused(f"{key[:20]}: unknown field or value")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1  # NaN is not


@dataclass
class Controls:
    """Turns what is held into actions.

    With an action of four numbers and a state with `hand_pos`, the first three move the hand along x, y and z, and the
    last one closes the gripper. The hand moves as the camera sees it: `right` is to the right in the image. With any
    other action, axis i drives entry i of the action, and further entries rest.

    Args:
        spec: action bounds and slices of the state.
        view: of the camera that the person sees; None: the axes are those of the action.
        speed: share of the largest action that a key sends.
    """

    spec: Spec
    view: View | None
    speed: float
    held: tuple[float, ...] = NOTHING
    tapped: tuple[float, ...] = NOTHING  # what was held since the last chunk, if it has been let go
    grip: float = 0.0  # the gripper keeps the command of the last key, or of the policy

    @property
    def moves_hand(self) -> bool:
        """Whether the action moves a hand in space and has a gripper."""
        return self.spec.action_dim == len(AXES) and "hand_pos" in self.spec.slices

    @property
    def is_held(self) -> bool:
        """Whether anything is held, so that time runs."""
        return any(self.held) or any(self.tapped)

    def hold(self, held: tuple[float, ...]) -> None:
        """Set what is held, a value for each of `AXES`; it stays until the next call."""
        self.held = held
        self.tapped = held if any(held) else self.tapped
        self.grip = held[-1] or self.grip

    def follow(self, actions: Tensor) -> None:
        """Go on from actions (1, n, action_dim) of the policy: the gripper keeps its last command."""
        self.grip = float(actions[0, -1, -1])

    def actions(self, n: int) -> Tensor:
        """Return `n` equal actions (1, n, action_dim), within their bounds, of what is held or was tapped."""
        axes = self._axes()[: self.spec.action_dim]
        self.tapped = NOTHING
        low, high, action = torch.tensor(self.spec.action_low), torch.tensor(self.spec.action_high), self.rest()
        k = len(axes)
        # A share of the way from rest to the bound on that side.
        action[:k] += axes * torch.where(axes > 0, (high - action)[:k], (action - low)[:k])
        return action.clamp(low, high).expand(1, n, -1).clone()

    def rest(self) -> Tensor:
        """Return the action that moves nothing (action_dim,): 0, or the nearest value that is allowed."""
        zero = torch.zeros(self.spec.action_dim)
        return zero.clamp(torch.tensor(self.spec.action_low), torch.tensor(self.spec.action_high))

    def _axes(self) -> Tensor:
        """Return the share of the largest action for each axis of the action, or of the first four."""
        right, away, up, grip = self.held if any(self.held) else self.tapped
        if not self.moves_hand:
            return self.speed * torch.tensor([right, away, up, grip])
        if self.view is not None:  # from what the camera sees to x and y on the ground
            angle = math.radians(self.view.azimuth)
            cos, sin = math.cos(angle), math.sin(angle)
            right, away = right * sin + away * cos, away * sin - right * cos
        return torch.tensor([self.speed * right, self.speed * away, self.speed * up, self.grip])
