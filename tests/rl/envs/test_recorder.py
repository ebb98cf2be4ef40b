"""Recorded episodes against what the environment itself says."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rl.envs.recorder import Recorder
from rl.envs.simulator import Simulator
from world_model.env import Advance, BatchedEnv, Start
from world_model.spec import Feature, Spec

N, K = 3, 5


def record(env: BatchedEnv, recorder: Recorder, n_chunks: int, generator: torch.Generator) -> list[Any]:
    """Random chunks; returns (frames before, actions, step) of each."""
    seen = []
    for _ in range(n_chunks):
        actions = 2 * torch.rand(N, K, 2, generator=generator) - 1
        first = {name: frames[:, -1].clone() for name, frames in env.context.items()}
        before = first, env.elapsed.clone(), env.task.clone(), env.episode_seed.clone()
        step = env.step_chunk(actions)
        recorder.add(*before, step)
        seen.append((before, actions, step))
    return seen


def test_an_episode_is_put_together_from_its_chunks(make_point: Callable[..., BatchedEnv]) -> None:
    env = make_point(N, seed=3, max_steps=12)
    recorder = Recorder(env.spec)
    env.reset()
    seen = record(env, recorder, 3, torch.Generator().manual_seed(0))
    assert len(recorder.episodes) == N
    for episode in recorder.episodes:
        j = next(j for j in range(N) if torch.equal(seen[0][0][0]["state"][j], episode.state[0]))
        parts = [
            (actions[j, :n], step.frames["state"][j, :n], step.success[j, :n])
            for _, actions, step in seen
            if (n := int(step.executed[j].sum()))
        ]
        actions, frames, success = (torch.cat(part)[: episode.length] for part in zip(*parts, strict=True))
        assert torch.equal(episode.action, actions) and torch.equal(episode.state[1:], frames)
        assert torch.equal(episode.success, success) and episode.task == "reach"
        assert episode.length == 12 or bool(episode.success[-1])
        assert episode.seed == int(seen[0][0][3][j])


def test_what_began_unseen_or_never_ended_is_left_out(make_point: Callable[..., BatchedEnv]) -> None:
    env = make_point(N, seed=3, max_steps=12)
    recorder = Recorder(env.spec)
    env.reset()
    env.step_chunk(torch.zeros(N, K, 2))
    record(env, recorder, 1, torch.Generator().manual_seed(0))  # steps 6 to 10 of episodes begun before
    env.reset()
    record(env, recorder, 1, torch.Generator().manual_seed(0))
    env.reset()
    record(env, recorder, 3, torch.Generator().manual_seed(0))
    taken = recorder.take()
    assert len(taken) >= N and all(e.length == 12 or bool(e.success[-1]) for e in taken)
    assert all(e.state.shape == (e.length + 1, 4) for e in taken)
    assert recorder.take() == []


class Clock(Simulator):
    """The state and the image of frame t are t; there is a new image every third step, and where an episode ends."""

    def __init__(self, max_steps: int) -> None:
        image = Feature((2, 2, 3), dtype="uint8", every=3)
        spec = Spec({"state": Feature((1,)), "images.front": image}, (-1.0,), (1.0,), ("wait",), control_hz=10.0)
        super().__init__(spec, num_envs=1, n_context_frames=2, max_steps=max_steps)

    def _restart(self, mask: Tensor) -> Start:
        context = {"state": torch.zeros(1, 2, 1), "images.front": torch.zeros(1, 2, 2, 2, 3, dtype=torch.uint8)}
        return Start(context, torch.zeros(1, dtype=torch.long), self._next_seeds(1))

    def _advance(self, actions: Tensor, limit: Tensor) -> Advance:
        t = self.elapsed + torch.arange(1, actions.shape[1] + 1)
        shown = torch.where(t == self.max_steps, t, t // 3 * 3)
        images = shown.to(torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
        never = torch.zeros(1, len(t), dtype=torch.bool)
        return Advance({"state": t.float().view(1, -1, 1), "images.front": images[None]}, never, never, never)


def test_a_slow_camera_has_a_row_for_each_new_image_and_for_the_end() -> None:
    env = Clock(max_steps=7)
    env.record(True)
    obs = env.reset()
    held = [int(obs["images.front"][0, -1, 0, 0, 0])]
    for _ in range(2):  # chunks of 4: the second one is cut at step 7
        step = env.step_chunk(torch.zeros(1, 4, 1))
        held += step.frames["images.front"][0, step.executed[0], 0, 0, 0].tolist()
    (episode,) = env.record(False)
    assert episode.length == 7 and episode.every == {"images.front": 3}
    assert episode.state[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    images = episode.obs["images.front"]
    assert images.dtype == torch.uint8 and images.shape == (4, 2, 2, 3)
    assert images[:, 0, 0, 0].tolist() == [0, 3, 6, 7]
    # What was held at each frame, from the rows: the same as the environment gave.
    assert images[episode.rows_of("images.front"), 0, 0, 0].tolist() == held == [0, 0, 0, 3, 3, 3, 6, 7]


def test_recording_goes_on_from_its_state_dict() -> None:
    env, other = Clock(max_steps=7), Clock(max_steps=7)
    env.record(True)
    env.reset()
    env.step_chunk(torch.zeros(1, 4, 1))
    other.load_state_dict(env.state_dict())
    found = []
    for one in (env, other):
        one.step_chunk(torch.zeros(1, 4, 1))
        found += one.record(False)
    first, second = found
    assert first.obs.keys() == second.obs.keys() and first.every == second.every
    assert all(torch.equal(first.obs[name], second.obs[name]) for name in first.obs)
