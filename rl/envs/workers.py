"""Groups of single environments, in this process or spread over worker processes.

A worker is a plain subprocess. It exchanges one message per chunk over its pipes. It imports neither torch nor the
caller's main module, and it ends when its pipe closes, so it cannot outlive its parent.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from rewards.errors import BadNumbers
from rl.envs.cameras import Cameras, Images

if TYPE_CHECKING:
    from rl.envs.metaworld.events import Event

Array = np.ndarray
Events: TypeAlias = "Mapping[str, Event]"


class Task(Protocol):
    """One environment: the methods that `MetaWorldTask` and `GymTask` share."""

    def reset(self, seed: int) -> Array:
        """Begin the episode of `seed`; return its first frame (state_dim,)."""

    def step(self, action: Array) -> tuple[Array, float, bool, bool, bool]:
        """Execute `action`; return frame, reward, success, terminated, truncated.

        Raises:
            BadNumbers: the environment returned something else than numbers and flags; any other exception is an error
                of code, and is not caught.
        """

    def images(self, cameras: Cameras) -> Images:
        """Return images of the current state."""

    def close(self) -> None:
        """Release the resources of the environment."""


class Steps(NamedTuple):
    """Results of `k` steps in each of `n` environments; rows after an end repeat the last frame."""

    frames: Array  # (n, k, state_dim) float32
    reward: Array  # (n, k) float32
    success: Array  # (n, k) bool
    terminated: Array  # (n, k) bool
    truncated: Array  # (n, k) bool
    images: list[list[tuple[int, Images]]]  # for each environment its new images: (step of the chunk, images after it)


class Group:
    """A fixed list of environments, stepped one after the other; each is rendered by the `cameras`."""

    def __init__(
        self, env_id: str, tasks: Sequence[str], events: Events, cameras: Cameras | None = None, first: int = 0
    ) -> None:
        self.cameras = dict(cameras or {})
        self.first = first  # number of the group's first environment, counted over all workers
        self.envs = [make_task(env_id, task, events, first + i, self.cameras) for i, task in enumerate(tasks)]
        # The newest frame of each environment, and the one before it.
        self.last: list[Array] = [np.zeros(0, np.float32)] * len(self.envs)
        self.before = list(self.last)

    def reset(self, seeds: dict[int, int]) -> tuple[Array, list[Images]]:
        """Begin an episode in some environments.

        Args:
            seeds: index of an environment -> seed of its episode.

        Returns:
            Their first frames (n, state_dim), and the first images of each.
        """
        for i, seed in seeds.items():
            self.last[i] = self.before[i] = self.envs[i].reset(seed)
        return np.stack([self.last[i] for i in seeds]), [self.envs[i].images(self.cameras) for i in seeds]

    def advance(self, actions: Array, limit: Array, stop_on_success: bool, elapsed: Array) -> Steps:
        """Execute the first `limit` (n,) of `actions` (n, k, action_dim) in each environment; stop where one ends.

        `elapsed` (n,) are the steps of each episode so far. There is a new image when it is due, and at the end.
        """
        n, k = actions.shape[:2]
        frames = np.empty((n, k, len(self.last[0])), np.float32)
        reward, flags = np.zeros((n, k), np.float32), np.zeros((3, n, k), bool)
        images: list[list[tuple[int, Images]]] = [[] for _ in range(n)]
        for i, env in enumerate(self.envs):
            over = False
            for j in range(k):
                if not over and j < limit[i]:  # execute nothing after the end, or beyond the limit
                    self.before[i] = self.last[i]
                    try:
                        self.last[i], reward[i, j], success, terminated, truncated = env.step(actions[i, j])
                    except BadNumbers as error:  # of what the environment returned; all else is an error of code
                        raise BadNumbers(f"sim: environment {self.first + i}: {error}") from error
                    flags[:, i, j] = success, terminated, truncated
                    over = terminated or truncated or (success and stop_on_success)
                    if new := self._due(int(elapsed[i]) + j + 1, at_end=over or j + 1 == limit[i]):
                        images[i].append((j, env.images(new)))
                frames[i, j] = self.last[i]  # after the end: the last frame again
        return Steps(
            frames=frames,
            reward=reward,
            success=flags[0],
            terminated=flags[1],
            truncated=flags[2],
            images=images,
        )

    def replay(self, seeds: Sequence[int], actions: Sequence[Array]) -> None:
        """Restore each environment: begin the episode of its seed and repeat its `actions` (steps, action_dim)."""
        for i, (seed, past) in enumerate(zip(seeds, actions, strict=True)):
            self.last[i] = self.before[i] = self.envs[i].reset(seed)
            for action in past:
                self.before[i], self.last[i] = self.last[i], self.envs[i].step(action)[0]

    def newest(self) -> Array:
        """Return the last two frames of each environment, the newest one last. Shape: (n, 2, state_dim)."""
        return np.stack([np.stack(self.before), np.stack(self.last)], axis=1)

    def reports_success(self) -> bool:
        """Whether the steps of any environment have reported success so far; those of Meta-World always do."""
        return any(getattr(env, "reports_success", True) for env in self.envs)

    def close(self) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _due(self, step: int, at_end: bool) -> Cameras:
        """Return the cameras with a new image after a step of the episode, the first of which is 1."""
        return {name: camera for name, camera in self.cameras.items() if at_end or step % camera.every == 0}


class Workers:
    """A `Group` spread over worker processes; their number does not change the results."""

    def __init__(self, env_id: str, tasks: Sequence[str], events: Events, cameras: Cameras, n_workers: int) -> None:
        self.parts = [part.tolist() for part in np.array_split(np.arange(len(tasks)), min(n_workers, len(tasks)))]
        self.processes = [start("rl.envs.workers") for _ in self.parts]
        # The arguments of `Group`, one tuple per worker; they travel over its pipe.
        arguments = [(env_id, [tasks[i] for i in part], dict(events), dict(cameras), part[0]) for part in self.parts]
        self._all("__init__", arguments)

    def reset(self, seeds: dict[int, int]) -> tuple[Array, list[Images]]:
        """See `Group.reset`."""
        # Each worker numbers its own environments from 0; a worker without a seed is not called.
        shares = [{i - part[0]: seeds[i] for i in part if i in seeds} for part in self.parts]
        answers = self._all("reset", [(share,) if share else None for share in shares])
        frames, images = zip(*answers, strict=True)
        return np.concatenate(frames), [of for part in images for of in part]

    def advance(self, actions: Array, limit: Array, stop_on_success: bool, elapsed: Array) -> Steps:
        """See `Group.advance`."""
        steps = self._all(
            "advance", [(actions[part], limit[part], stop_on_success, elapsed[part]) for part in self.parts]
        )
        arrays = {name: np.concatenate([getattr(part, name) for part in steps]) for name in Steps._fields[:-1]}
        return Steps(**arrays, images=[of_env for part in steps for of_env in part.images])

    def replay(self, seeds: Sequence[int], actions: Sequence[Array]) -> None:
        """See `Group.replay`."""
        self._all("replay", [([seeds[i] for i in part], [actions[i] for i in part]) for part in self.parts])

    def newest(self) -> Array:
        """See `Group.newest`."""
        return np.concatenate(self._all("newest", [()] * len(self.parts)))

    def reports_success(self) -> bool:
        """See `Group.reports_success`."""
        return any(self._all("reports_success", [()] * len(self.parts)))

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            end(process)
        self.processes = []

    def _all(self, method: str, arguments: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """Call `method` in parallel in all workers that have arguments; return the answers or raise the first error."""
        busy = [(p, a) for p, a in zip(self.processes, arguments, strict=True) if a is not None]
        for process, args in busy:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # the worker has ended; reading its answer raises the error for it
                pickle.dump((method, args), process.stdin)
                process.stdin.flush()
        # Read the answers of all workers before raising an error that one of them sent.
        answers = [_answer(process) for process, _ in busy]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def make_task(env_id: str, task: str, events: Events, number: int, cameras: Cameras) -> Task:
    """Make environment `number`: a Meta-World task, changed by `events` if there are any, or a gymnasium id.

    An environment prepares for its cameras when it is made.
    """
    if env_id == "metaworld":
        from rl.envs.metaworld.events import Perturbed
        from rl.envs.metaworld.tasks import MetaWorldTask

        metaworld_task = MetaWorldTask(task, bool(cameras))
        return Perturbed(metaworld_task, events, number) if events else metaworld_task
    from rl.envs.gym_env import GymTask

    return GymTask(env_id, cameras)


def start(module: str) -> subprocess.Popen[bytes]:
    """Start a process that runs `serve` of `module`, with one OpenMP thread, pipes to it, and this process's path."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"from {module} import serve; serve()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)


def end(process: subprocess.Popen[bytes]) -> None:
    """Close the pipes of a process made by `start`, which ends it, and wait for its exit."""
    process.communicate()  # also drains a pending answer, on which the worker would block


def _answer(process: subprocess.Popen[bytes]) -> Any:
    assert process.stdout is not None
    try:
        return pickle.load(process.stdout)
    except EOFError:
        raise RuntimeError(f"an environment worker ended with exit code {process.wait()}") from None


def serve() -> None:
    """Run the worker: answer messages until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C; the closing pipe ends the worker
    # Use the pipe for answers only: what an environment prints goes to the error stream, or it would corrupt them.
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    group: Any = None
    while True:
        try:
            method, args = pickle.load(requests)
        except EOFError:
            return
        try:
            if method == "__init__":
                group, answer = Group(*args), None
            else:
                answer = getattr(group, method)(*args)
        except Exception as error:  # send it as the answer; the parent raises it
            answer = error
        pickle.dump(answer, answers)
        answers.flush()
