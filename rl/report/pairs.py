"""Paired evaluation: the same first states and the same policy noise in simulator and dream, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.build import SAME, make_sim, tasks_of
from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.policies.api import Denoiser, TrainablePolicy
from rl.report.videos import draw_video, inline_video
from rl.rounds.evaluate import EpisodeResult, evaluate_sim, first_states
from rl.statistics import correlation, paired_gain, share
from world_model.data.episodes import Episode
from world_model.dream_env import SURE, DreamEnv, StartStates
from world_model.wam import modes
from world_model.wam.features import frame_vectors, joined
from world_model.wam.model import WorldActionModel
from world_model.wam.trust import HORIZON, dream_of_real_actions, error_unit, expected_error, position_error


@dataclass
class Pair:
    """One episode in three versions, all from the same first state. Frames: (n_steps + 1, frame_dim)."""

    task: str
    seed: int
    sim: bool  # success in the simulator
    dream: bool  # success in the dream, with the policy acting in it
    episode: Episode  # recording of the simulator
    real: Tensor  # its frames
    dreamed: Tensor  # frames of the dream in which the policy acted
    replayed: Tensor  # frames of the dream of the actions that the simulator executed
    replayed_success: bool  # whether these frames were read as a success


def champion_pairs(
    config: TrainConfig, policy: TrainablePolicy, model: WorldActionModel, denoiser: Denoiser | None = None
) -> dict[str, Any]:
    """Run the first `config.eval.n_paired` episodes of the evaluation as pairs; return their data for `report.html`.

    `denoiser` is the network of a policy that is not that of the model.
    """
    pairs: list[Pair] = []
    tasks = tasks_of(config, model)
    # One simulator per task, and the seeds assigned to the tasks in turn, as in `EvalEnvs`.
    one_task_each: list[tuple[str, ...]] = [(task,) for task in tasks] or [()]
    seeds = config.eval.seeds[: config.eval.n_paired]
    for i, task in enumerate(one_task_each[: len(seeds)]):
        n_envs = min(config.env.n_envs, len(seeds))
        sim = make_sim(config, model, task, n_envs, rewards=False, denoiser=denoiser)
        try:
            own_seeds = seeds[i :: len(one_task_each)]
            pairs += run_pairs(policy, model, sim, own_seeds, config.dream.n_denoising_steps)[1]
        finally:
            sim.close()
    return {
        "unit": error_unit(model),
        "summary": summarise(model, pairs),
        "gap": gap(pairs),
        "points": [_point(model, pair) for pair in _long(model, pairs)],
        "trust": _trust(model, pairs),
        "examples": _examples(model, pairs),
    }


def run_pairs(
    policy: TrainablePolicy,
    model: WorldActionModel,
    sim: Simulator,
    seeds: Sequence[int],
    n_denoising_steps: int = 1,
) -> tuple[list[EpisodeResult], list[Pair]]:
    """Run the episodes named by `seeds` in `sim`, in the dream, and dream the simulator's actions as a third version.

    Args:
        policy: acts in simulator and dream.
        model: dreams.
        sim: runs a single task.
        seeds: of the episodes.
        n_denoising_steps: of the dreams.

    Returns the results in the simulator, as `evaluate_sim` does, and the pairs.
    """
    starts = first_states(sim, seeds)
    sim.record(True)
    results = evaluate_sim(policy, sim, seeds)
    episodes = {e.seed: e for e in model.encode_episodes(sim.record(False))}
    dreamed, dream_success = _live(policy, model, sim, starts, n_denoising_steps)
    replayed, replayed_success = _replay(model, starts, [episodes[s].action for s in seeds], n_denoising_steps)
    pairs = [
        Pair(
            task=result.task,
            seed=result.seed,
            sim=result.success,
            dream=dream_success[i],
            episode=episodes[result.seed],
            real=frame_vectors(episodes[result.seed]).to(model.device),
            dreamed=dreamed[i],
            replayed=replayed[i],
            replayed_success=replayed_success[i],
        )
        for i, result in enumerate(results)
    ]
    return results, pairs


def prediction_error(model: WorldActionModel, pair: Pair) -> Tensor:
    """Return the error of the dream of the executed actions at each step (n,), in the units of `position_error`."""
    return position_error(model, pair.real[1 : len(pair.replayed)], pair.replayed[1:])


def movement(model: WorldActionModel, pair: Pair) -> float:
    """Return how far the dreamed frames move from the first one on average, within the horizon: the baseline."""
    frames = pair.replayed[: HORIZON * model.config.chunk_size + 1]
    return float(position_error(model, frames[1:], frames[:1]).mean())


def summarise(model: WorldActionModel, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return success in both places, their agreement, the error by step, and its correlation with success."""
    sim, dream = (torch.tensor([getattr(p, place) for p in pairs]) for place in ("sim", "dream"))
    replayed = torch.tensor([p.replayed_success for p in pairs])
    steps, long = HORIZON * model.config.chunk_size, _long(model, pairs)
    errors = torch.tensor([float(prediction_error(model, p)[:steps].mean()) for p in long])
    outcome = torch.tensor([float(p.sim) for p in long])
    return {
        "n": len(pairs),
        "sim": float(sim.float().mean()),
        "dream": float(dream.float().mean()),
        "both": int((sim & dream).sum()),
        "sim_only": int((sim & ~dream).sum()),
        "dream_only": int((~sim & dream).sum()),
        "neither": int((~sim & ~dream).sum()),
        "retold_recall": share(replayed, sim),
        "retold_false_success": share(replayed, ~sim),
        "error_by_step": error_by_step(model, pairs),
        "error_and_success": correlation(errors, outcome),
        "movement_and_success": correlation(torch.tensor([movement(model, p) for p in long]), outcome),
        "n_compared": len(long),
    }


def error_by_step(model: WorldActionModel, pairs: Sequence[Pair], most: int = 150) -> list[float]:
    """Return the mean error after 1, 2, ... steps, as long as a tenth of the episodes lasts, up to `most` steps."""
    errors = [prediction_error(model, p) for p in pairs]
    lengths = torch.tensor([len(e) for e in errors])
    enough = [t for t in range(min(most, int(lengths.max()))) if (lengths > t).float().mean() >= 0.1]
    return [float(torch.stack([e[t] for e in errors if len(e) > t]).mean()) for t in enough]


def worst_false_success(model: WorldActionModel, pairs: Sequence[Pair]) -> Pair | None:
    """Return the success in the dream alone whose prediction error is largest; None if there is none."""
    wrong = [p for p in pairs if p.dream and not p.sim and len(p.replayed) > 1]
    return max(wrong, key=lambda p: float(prediction_error(model, p).mean()), default=None)


def gap(pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Return success in the dream minus success in the simulator, with its 95 % interval."""
    places = [[EpisodeResult(p.task, p.seed, getattr(p, place), 0, 0.0) for p in pairs] for place in ("sim", "dream")]
    return paired_gain(*places)


def _long(model: WorldActionModel, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs that last as long as the horizon at which episodes are compared."""
    return [p for p in pairs if len(p.replayed) > HORIZON * model.config.chunk_size]


def _point(model: WorldActionModel, pair: Pair) -> dict[str, Any]:
    """Return one episode as numbers: outcomes, and error and movement within the horizon."""
    error = float(prediction_error(model, pair)[: HORIZON * model.config.chunk_size].mean())
    outcomes = {name: getattr(pair, name) for name in ("task", "seed", "sim", "dream", "replayed_success")}
    return {**outcomes, "error": error, "movement": movement(model, pair)}


@torch.no_grad()
def _trust(model: WorldActionModel, pairs: Sequence[Pair], most: int = 300) -> dict[str, Any] | None:
    """Return expected and true error of dreams from states all along the episodes; None without calibrated trust.

    At most `most` dreams are returned as points, evenly spread; the correlation is over all of them.
    """
    long = [p.episode for p in _long(model, pairs)]
    if not long or not model.trust.given.fitted:
        return None
    replayed = dream_of_real_actions(model, long)
    expected, true = expected_error(model, replayed.given).mean(1), replayed.errors.mean(1)
    shown = torch.linspace(0, len(true) - 1, min(most, len(true))).long()
    found = correlation(expected, true, replayed.episode)
    return {**found, "n": len(true), "expected": expected[shown].tolist(), "error": true[shown].tolist()}


def _examples(model: WorldActionModel, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return a success, a failure and the worst false success: positions in the simulator and in both dreams."""
    false_success = worst_false_success(model, pairs)
    chosen = {
        "A success": next((p for p in pairs if p.sim), None),
        "A failure": next((p for p in pairs if not p.sim and p is not false_success), None),
        "The worst false success: the dream succeeds, the simulator does not": false_success,
    }
    slices = {name: part for name, part in model.spec.slices.items() if name in ("hand_pos", "object_pos")}
    return [
        {
            "title": title,
            "seed": pair.seed,
            "chunk_size": model.config.chunk_size,
            "parts": {
                name: {
                    "simulator": pair.real[:, part].tolist(),
                    "dream of its actions": pair.replayed[:, part].tolist(),
                    "dream of the policy": pair.dreamed[:, part].tolist(),
                }
                for name, part in slices.items()
            },
            "film": _video(model, pair, title),
        }
        for title, pair in chosen.items()
        if pair is not None and slices
    ]


@torch.no_grad()
def _video(model: WorldActionModel, pair: Pair, title: str) -> str:
    """Draw simulator and dream of its actions as a video, one image per chunk; return "" without cameras."""
    codec, size = model.image_codec, model.config.chunk_size
    if codec is None:
        return ""
    real, dreamed = (codec.decode(x[::size, -codec.code_dim :])[:, 0].cpu() for x in (pair.real, pair.replayed))
    chunk_s = size / model.spec.control_hz
    video = draw_video(real, dreamed, expected_error=(), title=f"{pair.task}: {title}", chunk_s=chunk_s)
    return inline_video(video, frames_per_s=0.5 / chunk_s)  # half speed


def _live(
    policy: TrainablePolicy, model: WorldActionModel, sim: Simulator, starts: StartStates, n_denoising_steps: int
) -> tuple[list[Tensor], list[bool]]:
    """Let the policy act in the dream from each start, with the settings of `sim`; return frames and successes."""
    n, horizon = len(starts), -(-sim.max_steps // policy.n_action_steps)
    same = {name: getattr(sim, name) for name in SAME}
    env = DreamEnv(model, n, starts, horizon, n_denoising_steps, in_order=True, images=policy.images, **same)
    obs = env.reset()
    frames = [[first[-1:].clone()] for first in joined(env.context)]
    alive = torch.ones_like(env.task, dtype=torch.bool)  # still in its first episode
    success = ~alive
    while alive.any():
        with torch.no_grad():
            step = env.step_chunk(policy.decide(policy.encode(obs), env.episode_seed, env.elapsed))
        dreamed = joined(step.frames)
        for i in alive.nonzero().squeeze(1).tolist():
            frames[i].append(dreamed[i, step.executed[i]].clone())
        success |= alive & step.is_success
        alive &= ~(step.terminated | step.truncated)
        obs = step.obs
    return [torch.cat(f) for f in frames], success.tolist()


@torch.no_grad()
def _replay(
    model: WorldActionModel, starts: StartStates, actions: Sequence[Tensor], n_denoising_steps: int
) -> tuple[list[Tensor], list[bool]]:
    """Dream each row of `actions` (n_steps, action_dim) from its start; return frames (n_steps + 1, ...) and successes.

    The last chunk is padded with its last action. Frames after the row are not returned, but they may show success,
    which takes two frames in a row.
    """
    # Pad all rows to whole chunks of one length.
    size = model.config.chunk_size
    n_chunks = [-(-len(a) // size) for a in actions]
    padded = torch.stack([a[torch.arange(max(n_chunks) * size).clamp(max=len(a) - 1)] for a in actions])
    context = joined(model.encode_obs(starts.context))
    dreams = modes.dream_on(model, context, starts.task, padded.to(model.device), starts.seed, n_denoising_steps)
    replayed = torch.cat([context[:, -1:], *(frames for _, _, frames in dreams)], dim=1)
    # Success: the read-out is sure in two consecutive frames, as in `DreamEnv`.
    whole = [replayed[i, 1 : k * size + 1] for i, k in enumerate(n_chunks)]
    sure = [model.read_frames(f, t.expand(len(f)))[0] >= SURE for f, t in zip(whole, starts.task, strict=True)]
    success = [bool((s[1:] & s[:-1]).any()) for s in sure]
    return [replayed[i, : len(a) + 1].clone() for i, a in enumerate(actions)], success
