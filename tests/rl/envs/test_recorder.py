"""Recorded episodes against what the environment itself says."""

from collections.abc import Callable
from typing import Any

import torch

from rl.envs.recorder import Recorder
from world_model.env import BatchedEnv

N, K = 3, 5


def record(env: BatchedEnv, recorder: Recorder, n_chunks: int, generator: torch.Generator) -> list[Any]:
    """Random chunks; returns (frames before, actions, step) of each."""
    seen = []
    for _ in range(n_chunks):
        actions = 2 * torch.rand(N, K, 2, generator=generator) - 1
        before = env.context[:, -1].clone(), env.elapsed.clone(), env.task.clone(), env.episode_seed.clone()
        step = env.step_chunk(actions)
        recorder.add(*before, actions, step)
        seen.append((before, actions, step))
    return seen


def test_an_episode_is_put_together_from_its_chunks(make_point: Callable[..., BatchedEnv]) -> None:
    env, recorder = make_point(N, seed=3, max_steps=12), Recorder(("reach", "rest"))
    env.reset()
    seen = record(env, recorder, 3, torch.Generator().manual_seed(0))
    assert len(recorder.episodes) == N
    for episode in recorder.episodes:
        j = next(j for j in range(N) if torch.equal(seen[0][0][0][j], episode.state[0]))
        parts = [
            (actions[j, :n], step.frames[j, :n], step.success[j, :n])
            for _, actions, step in seen
            if (n := int(step.executed[j].sum()))
        ]
        actions, frames, success = (torch.cat(part)[: episode.length] for part in zip(*parts, strict=True))
        assert torch.equal(episode.action, actions) and torch.equal(episode.state[1:], frames)
        assert torch.equal(episode.success, success) and episode.task == "reach"
        assert episode.length == 12 or bool(episode.success[-1])
        assert episode.seed == int(seen[0][0][3][j])


def test_what_began_unseen_or_never_ended_is_left_out(make_point: Callable[..., BatchedEnv]) -> None:
    env, recorder = make_point(N, seed=3, max_steps=12), Recorder(("reach", "rest"))
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
