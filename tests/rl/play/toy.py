"""A hand that follows its actions, and a dream in which the object drifts by 1 cm a chunk: all errors are known."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rl.envs.simulator import Simulator
from rl.play.loop import play
from rl.play.page import Page
from rl.play.panes import SHOWN, SIZE
from rl.play.server import Hub, serving
from rl.play.session import Session
from rl.play.twin import Twin
from world_model.api import Prediction, WorldModel
from world_model.dream_env import StartStates
from world_model.env import Advance, BatchedEnv, Start
from world_model.spec import Feature, Spec

TASKS = ("reach", "rest")
CHUNK, STEP, DRIFT, GOAL = 4, 0.01, 0.01, 0.3
"""Actions of a chunk, metres of an action of 1, metres a chunk, and x beyond which the hand has solved the task."""

STATE = Feature((6,), "m", {"hand_pos": (0, 3), "object_pos": (3, 6)})


def spec(**features: Feature) -> Spec:
    return Spec({"state": STATE, **features}, (-1.0,) * 4, (1.0,) * 4, TASKS, control_hz=40.0)


class ToySim(Simulator):
    """The hand begins at x = (seed % 10) / 100."""

    def __init__(self, task: str) -> None:
        seen = {SHOWN: Feature((SIZE, SIZE, 3), dtype="uint8", every=CHUNK)}
        super().__init__(spec(**seen), 1, 1, max_steps=10_000, terminate_on_success=False)
        self.name, self.closed = task, False

    def _restart(self, mask: Tensor) -> Start:
        seed = self._next_seeds(1)
        state = torch.tensor([float(seed) % 10 / 100, 0.6, 0.2, 0.05, 0.7, 0.02]).view(1, 1, 6)
        return Start({"state": state, SHOWN: self._seen(1)}, torch.tensor([TASKS.index(self.name)]), seed)

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        state = moved(self.context["state"], actions)
        never = torch.zeros(state.shape[:2], dtype=torch.bool)
        return Advance({"state": state, SHOWN: self._seen(len(actions[0]))}, state[..., 0] > GOAL, never, never)

    def _seen(self, n: int) -> Tensor:
        return torch.full((1, n, SIZE, SIZE, 3), 200, dtype=torch.uint8)

    def close(self) -> None:
        self.closed = True


class ToyWorld(WorldModel):
    """Expects twice the error that it makes."""

    spec = spec()
    chunk_size = CHUNK
    estimates_error = True

    def begin(self, history: dict[str, Tensor], seed: Tensor) -> dict[str, Tensor]:
        return {"state": history["state"][:, -1:], "chunks": torch.zeros_like(seed)}

    def predict(self, session: Any, actions: Tensor) -> tuple[Any, Prediction]:
        state, chunks = moved(session["state"], actions), session["chunks"] + 1
        state[..., 3] += DRIFT
        after = {"state": state[:, -1:].clone(), "chunks": chunks}
        return after, Prediction({"state": state}, (state[..., 0] > GOAL).float(), 2 * DRIFT * chunks.float())


class ToyPolicy:
    """Moves the hand to the right end, as fast as it can, and opens the gripper."""

    def encode(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        return obs

    def decide(self, encoded: Any, seed: Tensor, counter: Tensor) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0, -1.0]).expand(1, CHUNK, 4)


def moved(state: Tensor, actions: Tensor) -> Tensor:
    frames = state[:, -1:].repeat(1, actions.shape[1], 1)
    frames[..., :3] += STEP * actions[..., :3].cumsum(1)
    return frames


def starts() -> StartStates:
    """Two recorded states, one of each task."""
    state = torch.tensor([[0.0, 0.6, 0.2, 0.05, 0.7, 0.02], [0.1, 0.6, 0.2, 0.05, 0.7, 0.02]]).view(2, 1, 6)
    return StartStates({"state": state}, torch.tensor([0, 1]), torch.tensor([7, 8]))


def make_session(sim: bool = True, acts: bool = True, kind: type[Session] = Session, seed: int = 3) -> Session:
    """Return a play of the toy; the usual error is 1 cm."""
    twin = Twin(ToyWorld(), starts(), ToySim if sim else None)

    def make_policy(env: BatchedEnv) -> ToyPolicy:
        return ToyPolicy()

    return kind(twin, TASKS, seed=seed, usual_error=DRIFT, speed=0.5, make_policy=make_policy if acts else None)


class Ended(Exception):
    """Ends the loop of `playing`."""


@contextmanager
def playing(frames_per_s: float = 30.0) -> Iterator[tuple[Hub, Session]]:
    """Play the toy on a free port, with its clock in a thread."""
    end = threading.Event()

    class Ending(Session):
        def handle(self, message: Any) -> None:
            if end.is_set():
                raise Ended
            super().handle(message)

    session = make_session(kind=Ending)
    session.tell = lambda task, sentence: f"{task}: {sentence}"

    def run() -> None:
        try:
            play(session, hub, frames_per_s)
        except Ended:
            pass

    with serving(Page("a toy"), session.tasks, session.about(), port=0) as hub:
        clock = threading.Thread(target=run)
        clock.start()
        try:
            yield hub, session
        finally:
            end.set()
            hub.messages.put(None)  # type: ignore[arg-type] # wakes the loop, which ends
            clock.join()
