"""One play: who drives, chunk by chunk, and what the page shows of it. It knows no network and no clock."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from rewards.errors import UserError
from rl.play.controls import AXES, NOTHING, Controls, Message
from rl.play.panes import Panes, png, view_of
from rl.play.twin import MOST_CHUNKS, Twin
from rl.policies.api import Policy
from world_model.env import BatchedEnv
from world_model.spec import STATE

PARTED = 2.0
"""Simulator and dream have parted once the error of a chunk exceeds this many times the usual error."""

POLICY_STEPS = 150
"""Steps after which the policy hands back if the task is not solved, as many as an episode of training has."""

CURVE = 150
"""Chunks of the error curve that the page gets."""


@dataclass
class Session:
    """A person and a policy take turns in driving a twin.

    Args:
        twin: simulator and dream.
        tasks: that the person may choose from.
        seed: of the first start; each new start adds 1.
        usual_error: see `rl.play.twin.usual_error`; errors are shown in units of it.
        speed: share of the largest action that a key sends.
        make_policy: builds the policy for the environment that it observes; None: there is none.
        tell: gives the model a sentence for a task and returns a line about it; None: it reads no sentences.
    """

    twin: Twin
    tasks: tuple[str, ...]
    seed: int
    usual_error: float
    speed: float
    make_policy: Callable[[BatchedEnv], Policy] | None
    tell: Callable[[str, str], str] | None = None
    notice: str = ""  # what happened last, in words
    left: int = 0  # steps that the policy may still drive; 0: the person drives
    controls: Controls = field(init=False)
    panes: Panes = field(init=False)

    def __post_init__(self) -> None:
        self.panes = Panes(self.twin)
        self.begin(self.tasks[0])

    def begin(self, task: str) -> None:
        """Begin `task` with the current seed; the person drives."""
        self.twin.begin(task, self.seed)
        model = self.twin.model
        self.controls = Controls(model.spec, view_of(model) if "hand_pos" in model.spec.slices else None, self.speed)
        self.left, self.notice = 0, "Hold a key to move the arm"
        if self.make_policy is not None:
            self.policy = self.make_policy(self.twin.eye)
            self.notice += ", or let the policy drive"

    def handle(self, message: Message) -> None:
        """Do what a message of the page asks for."""
        if message.held is not None:
            self.controls.hold(message.held)
            if any(message.held) and self.left:
                self.left, self.notice = 0, "You drive"
        elif message.task is not None:
            self.begin(message.task)
        elif message.instruction is not None:
            self._tell(message.instruction)
        elif message.press is not None:
            press = {
                "policy": self._hand_over,
                "restart": self._restart,
                "rewind": self._rewind,
                "redream": self._redream,
            }
            press[message.press]()

    @property
    def is_driven(self) -> bool:
        """Whether time runs: the policy drives, or the person holds something."""
        return self.left > 0 or self.controls.is_held

    def tick(self) -> bool:
        """Execute one chunk if the policy drives or something is held; return whether time went on."""
        if not self.is_driven:
            return False
        if len(self.twin.moments) > MOST_CHUNKS:
            self.left, self.notice = 0, f"Time is up after {MOST_CHUNKS} chunks: start anew or go back"
            self.controls.hold(NOTHING)
            self.controls.tapped = NOTHING
            return False
        if self.left:
            self._let_policy_act()
        else:
            self.twin.step(self.controls.actions(self.twin.model.chunk_size))
        return True

    @property
    def parted(self) -> int | None:
        """Number of the first chunk in which simulator and dream parted; None: they agree.

        Its error exceeds `PARTED` times the usual one: the measured error, or without a simulator the expected one.
        """
        for i, moment in enumerate(self.twin.moments):
            error = moment.expected if self.twin.sim is None else moment.measured
            if error is not None and error > PARTED * self.usual_error:
                return i
        return None

    def _let_policy_act(self) -> None:
        eye = self.twin.eye
        with torch.no_grad():
            actions = self.policy.decide(self.policy.encode(eye.observe()), eye.episode_seed, eye.elapsed)
        self.twin.step(actions)
        self.controls.follow(actions)
        self.left = max(self.left - actions.shape[1], 0)
        if all(self.twin.now.solved.values()):
            self.left, self.notice = 0, "The policy has solved the task; you drive"
        elif not self.left:
            self.notice = (
                f"The policy has driven for {POLICY_STEPS} steps and not solved the task everywhere; you drive"
            )

    def _tell(self, sentence: str) -> None:
        if self.tell is None:
            self.notice = "This model knows its tasks by name and reads no instruction"
            return
        try:
            self.notice = self.tell(self.twin.task, sentence)
        except UserError as error:
            self.notice = str(error)
            return
        if self.make_policy is not None:
            self.policy = self.make_policy(self.twin.eye)

    def _hand_over(self) -> None:
        if self.make_policy is None:
            self.notice = "This checkpoint only predicts; it has no policy to hand over to"
        elif self.left:
            self.left, self.notice = 0, "You drive"
        else:
            self.left, self.notice = POLICY_STEPS, "The policy drives; any key takes over"
            self.controls.tapped = NOTHING

    def _restart(self) -> None:
        self.seed += 1
        self.begin(self.twin.task)

    def _rewind(self) -> None:
        parted = self.parted
        alone = self.twin.sim is None
        if parted is None:
            what = "expected error is" if alone else "two still agree: the error of the dream is"
            self.notice = f"Nothing to go back to: the {what} below {PARTED:g} times the usual one"
            return
        self.left = 0
        self.twin.rewind(max(parted - 1, 0))
        self.notice = f"Back to just before the {'dream was unsure' if alone else 'two parted'}; you drive"

    def _redream(self) -> None:
        if self.twin.sim is None:
            self.notice = "There is no simulator from which the dream could begin anew"
            return
        self.twin.redream()
        self.notice = "The dream begins anew from what the simulator shows"

    def about(self) -> dict[str, Any]:
        """Return what stays the same during a play, for the page."""
        model = self.twin.model
        return {
            "tasks": list(self.tasks),
            "has_sim": self.twin.sim is not None,
            "can_act": self.make_policy is not None,
            "moves_hand": self.controls.moves_hand,
            "n_axes": min(len(AXES), model.spec.action_dim),
            "reads_sentences": self.tell is not None,
            "estimates_error": model.estimates_error,
            "parted_at": PARTED,
            "chunk_s": model.chunk_size / model.spec.control_hz,
            "chunk_size": model.chunk_size,
        }

    def status(self) -> dict[str, Any]:
        """Return what changes from chunk to chunk, for the page; errors are in units of the usual error."""
        twin, n = self.twin, len(self.twin.moments) - 1
        curve = [(self._share(m.expected), self._share(m.measured)) for m in twin.moments[1:]]
        return {
            "task": twin.task,
            "instruction": twin.model.spec.instruction(twin.task),
            "seed": twin.seed,
            "chunk": n,
            "driver": "policy" if self.left else "you",
            "solved": twin.now.solved,
            "expected": self._share(twin.now.expected),
            "measured": self._share(twin.now.measured),
            "curve": curve[-CURVE:],
            "curve_from": max(n - CURVE, 0),
            "parted": self.parted,
            "hands": self._hands(),
            "notice": self.notice,
        }

    def frame(self, frames_per_s: float | None) -> bytes:
        """Return one message for the page: the length of the status (4 bytes), the status as JSON, and the images.

        `frames_per_s` is what was measured lately; None: time stands still.
        """
        images = [self.panes.dream(), self.panes.sim()]
        files = [b"" if image is None else png(image) for image in images]
        status = {**self.status(), "sizes": [len(file) for file in files], "frames_per_s": frames_per_s}
        head = json.dumps(status).encode()
        return b"".join([struct.pack(">I", len(head)), head, *files])

    def _share(self, error: float | None) -> float | None:
        return None if error is None else round(error / self.usual_error, 3)

    def _hands(self) -> dict[str, list[float]]:
        """Return where the hand is in each place, in metres; {} if the state has no `hand_pos`."""
        envs: dict[str, BatchedEnv | None] = {"dream": self.twin.dream, "sim": self.twin.sim}
        part = self.twin.model.predicted_spec.slices.get("hand_pos")
        if part is None:
            return {}
        return {
            place: [round(float(x), 4) for x in env.context[STATE][0, -1, part]]
            for place, env in envs.items()
            if env is not None
        }
