"""Paired evaluation: the same first states and the same policy noise in simulator and dream, and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.build import make_sim, tasks_of
from rl.config import TrainConfig
from rl.envs.simulator import Simulator
from rl.policies.api import Denoiser, TrainablePolicy, load_policy_state, policy_state
from rl.report.film import EVERY, FRAMES_PER_S, Images, decoded, drawn_positions, rendered, side_by_side
from rl.report.videos import draw_video, inline_video
from rl.rounds.eval_envs import SAME_ROUNDING
from rl.rounds.evaluate import EpisodeResult, evaluate_sim, first_states, whole_episodes
from rl.rounds.outcome import Weights
from rl.statistics import correlation, paired_gain, share
from world_model.api import WorldModel
from world_model.data.episodes import Episode
from world_model.dream_env import StartStates
from world_model.env import Frames
from world_model.replays import HORIZON, agreement, chunk_errors, replay
from world_model.spec import STATE
from world_model.tree import join, rows

MOST_STEPS = 150
"""Longest curve of the error by step."""


@dataclass(frozen=True)
class Untrained:
    """The policy before training, for the film: its weights, and its results on the seeds of the evaluation."""

    weights: Weights
    results: Sequence[EpisodeResult]


@dataclass
class Pair:
    """One episode in three versions, all from the same first state. Frames: feature -> (n_steps + 1, *shape)."""

    task: str
    seed: int
    sim: bool  # success in the simulator
    dream: bool  # success in the dream, with the policy acting in it
    episode: Episode  # recording of the simulator
    real: Frames  # its frames
    dreamed: Frames  # frames of the dream in which the policy acted
    replayed: Frames  # frames of the dream of the actions that the simulator executed
    replayed_success: bool  # whether that dream succeeded

    @property
    def n_steps(self) -> int:
        """Number of steps that the simulator executed."""
        return len(self.replayed[STATE]) - 1


def champion_pairs(
    config: TrainConfig,
    policy: TrainablePolicy,
    model: WorldModel,
    denoiser: Denoiser | None = None,
    untrained: Untrained | None = None,
) -> dict[str, Any]:
    """Run the first `config.eval.n_paired` episodes of the evaluation as pairs; return their data for `report.html`.

    Args:
        config: of the run.
        policy: the champion.
        model: dreams.
        denoiser: the network of a policy that is not that of the model.
        untrained: for the film, which shows an episode before and after training; None: there is no film.
    """
    pairs: list[Pair] = []
    film: dict[str, Any] = {}
    tasks = tasks_of(config, model)
    # One simulator per task, and the seeds assigned to the tasks in turn, as in `EvalEnvs`.
    one_task_each: list[tuple[str, ...]] = [(task,) for task in tasks] or [()]
    seeds = config.eval.seeds[: config.eval.n_paired]
    for i, task in enumerate(one_task_each[: len(seeds)]):
        own_seeds = seeds[i :: len(one_task_each)]
        n_envs = min(config.env.n_envs, max(len(own_seeds), SAME_ROUNDING))
        sim = make_sim(config, model, task, n_envs, rewards=False, denoiser=denoiser)
        try:
            of_task = run_pairs(policy, model, sim, own_seeds)[1]
            pairs += of_task
            if i == 0 and untrained is not None:
                film = _film(config, policy, model, sim, of_task, untrained)
        finally:
            sim.close()
    return {
        "unit": model.error_unit,
        "summary": summarise(model, pairs),
        "gap": gap(pairs),
        "points": [_point(model, pair) for pair in _long(model, pairs)],
        "trust": _trust(model, pairs),
        "examples": _examples(model, pairs),
        **({"film": film} if film else {}),
    }


def run_pairs(
    policy: TrainablePolicy,
    model: WorldModel,
    sim: Simulator,
    seeds: Sequence[int],
) -> tuple[list[EpisodeResult], list[Pair]]:
    """Run the episodes named by `seeds` in `sim`, in the dream, and dream the simulator's actions as a third version.

    Args:
        policy: acts in simulator and dream.
        model: dreams.
        sim: runs a single task.
        seeds: of the episodes.

    Returns the results in the simulator, as `evaluate_sim` does, and the pairs.
    """
    starts = first_states(sim, seeds)
    sim.record(True)
    results = evaluate_sim(policy, sim, seeds)
    episodes = {e.seed: e for e in model.encode_episodes(sim.record(False))}
    dreamed, dream_success = _live(policy, model, sim, starts)
    replays = replay(model, starts, [episodes[s].action for s in seeds])
    pairs = [
        Pair(
            task=result.task,
            seed=result.seed,
            sim=result.success,
            dream=dream_success[i],
            episode=episodes[result.seed],
            real=_frames(model, episodes[result.seed]),
            dreamed=dreamed[i],
            replayed=replays[i].frames,
            replayed_success=replays[i].success,
        )
        for i, result in enumerate(results)
    ]
    return results, pairs


def prediction_error(model: WorldModel, pair: Pair) -> Tensor:
    """Return the error of the dream of the executed actions at each step (n,), in the unit of the model."""
    return model.frame_error(rows(pair.real, slice(1, pair.n_steps + 1)), rows(pair.replayed, slice(1, None)))


def movement(model: WorldModel, pair: Pair) -> float:
    """Return how far the dreamed frames move from the first one on average, within the horizon: the baseline."""
    frames = rows(pair.replayed, slice(1, HORIZON * model.chunk_size + 1))
    return float(model.frame_error(frames, rows(pair.replayed, slice(1))).mean())


def summarise(model: WorldModel, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return success in both places, their agreement, the error by step, and its correlation with success."""
    sim, dream = (torch.tensor([getattr(p, place) for p in pairs]) for place in ("sim", "dream"))
    replayed = torch.tensor([p.replayed_success for p in pairs])
    steps, long = HORIZON * model.chunk_size, _long(model, pairs)
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
        "retold_agreement": agreement(replayed, sim),
        "error_by_step": error_by_step(model, pairs),
        "error_and_success": correlation(errors, outcome),
        "movement_and_success": correlation(torch.tensor([movement(model, p) for p in long]), outcome),
        "n_compared": len(long),
    }


def error_by_step(model: WorldModel, pairs: Sequence[Pair]) -> list[float]:
    """Return the mean error after 1, 2, ... steps, as long as a tenth of the episodes lasts, up to `MOST_STEPS`."""
    errors = [prediction_error(model, p) for p in pairs]
    lengths = torch.tensor([len(e) for e in errors])
    enough = [t for t in range(min(MOST_STEPS, int(lengths.max()))) if (lengths > t).float().mean() >= 0.1]
    return [float(torch.stack([e[t] for e in errors if len(e) > t]).mean()) for t in enough]


def worst_false_success(model: WorldModel, pairs: Sequence[Pair]) -> Pair | None:
    """Return the success in the dream alone whose prediction error is largest; None if there is none."""
    wrong = [p for p in pairs if p.dream and not p.sim and p.n_steps > 0]
    return max(wrong, key=lambda p: float(prediction_error(model, p).mean()), default=None)


def gap(pairs: Sequence[Pair]) -> tuple[float, float, float]:
    """Return success in the dream minus success in the simulator, with its 95 % interval."""
    places = [[EpisodeResult(p.task, p.seed, getattr(p, place), 0, 0.0) for p in pairs] for place in ("sim", "dream")]
    return paired_gain(*places)


def _long(model: WorldModel, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs that last as long as the horizon at which episodes are compared."""
    return [p for p in pairs if p.n_steps >= HORIZON * model.chunk_size]


def _point(model: WorldModel, pair: Pair) -> dict[str, Any]:
    """Return one episode as numbers: outcomes, and error and movement within the horizon."""
    error = float(prediction_error(model, pair)[: HORIZON * model.chunk_size].mean())
    outcomes = {name: getattr(pair, name) for name in ("task", "seed", "sim", "dream", "replayed_success")}
    return {**outcomes, "error": error, "movement": movement(model, pair)}


@torch.no_grad()
def _trust(model: WorldModel, pairs: Sequence[Pair], most: int = 300) -> dict[str, Any] | None:
    """Return expected and true error of dreams from states all along the episodes; None if no error is expected.

    At most `most` dreams are returned as points, evenly spread; the correlation is over all of them.
    """
    long = [p.episode for p in _long(model, pairs)]
    replayed = chunk_errors(model, long) if long and model.estimates_error else None
    if replayed is None or replayed.expected is None:
        return None
    expected, true = replayed.expected.mean(1), replayed.errors.mean(1)
    shown = torch.linspace(0, len(true) - 1, min(most, len(true))).long()
    found = correlation(expected, true, replayed.episode)
    return {**found, "n": len(true), "expected": expected[shown].tolist(), "error": true[shown].tolist()}


def _examples(model: WorldModel, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return a success, a failure and the worst false success: positions in the simulator and in both dreams."""
    false_success = worst_false_success(model, pairs)
    chosen = {
        "A success": next((p for p in pairs if p.sim), None),
        "A failure": next((p for p in pairs if not p.sim and p is not false_success), None),
        "The worst false success: the dream succeeds, the simulator does not": false_success,
    }
    slices = {name: part for name, part in model.predicted_spec.slices.items() if name in ("hand_pos", "object_pos")}
    return [
        {
            "title": title,
            "seed": pair.seed,
            "chunk_size": model.chunk_size,
            "parts": {
                name: {
                    "simulator": pair.real[STATE][:, part].tolist(),
                    "dream of its actions": pair.replayed[STATE][:, part].tolist(),
                    "dream of the policy": pair.dreamed[STATE][:, part].tolist(),
                }
                for name, part in slices.items()
            },
            "film": _video(model, pair, title),
        }
        for title, pair in chosen.items()
        if pair is not None and slices
    ]


def _film(
    config: TrainConfig,
    policy: TrainablePolicy,
    model: WorldModel,
    sim: Simulator,
    pairs: Sequence[Pair],
    untrained: Untrained,
) -> dict[str, Any]:
    """Return a film of one episode before training, after it and in the dream; {} if nothing can be shown.

    An episode that only training solved shows most. The weights of `policy` are as before when this returns.
    """
    before = {(result.task, result.seed): result.success for result in untrained.results}
    pair = max(pairs, key=lambda p: (p.sim and not before.get((p.task, p.seed), True), p.sim, p.dream))
    champion = policy_state(policy)
    load_policy_state(policy, untrained.weights)
    try:
        sim.record(True)
        (result,) = evaluate_sim(policy, sim, [pair.seed])
        first = next(e for e in sim.record(False) if e.seed == pair.seed)
    finally:
        load_policy_state(policy, champion)
    videos = _videos(config, model, pair, first)
    if not videos:
        return {}
    outcomes = (result.success, pair.sim, pair.dream)
    titles = [f"{title}: {'solved' if hit else 'failed'}" for title, hit in zip(videos, outcomes, strict=True)]
    gif = inline_video(side_by_side(list(videos.values())), FRAMES_PER_S)
    return {"title": f"{pair.task}, seed {pair.seed}", "panels": titles, "gif": gif}


def _videos(config: TrainConfig, model: WorldModel, pair: Pair, first: Episode) -> dict[str, Images]:
    """Return the videos before training, after it and in the dream, by title; {} if the episodes cannot be shown."""
    (encoded,) = model.encode_episodes([first])
    if (before := decoded(model, _frames(model, encoded), EVERY)) is not None:
        after, dream = decoded(model, pair.real, EVERY), decoded(model, pair.dreamed, EVERY)
    else:
        before, after = rendered(config, first), rendered(config, pair.episode)
        dream = None if after is None else drawn_positions(model, pair.dreamed, after[0])
    found = {"before training": before, "after training": after, "in the dream": dream}
    shown = {title: images for title, images in found.items() if images is not None}
    return shown if len(shown) == len(found) else {}


def _video(model: WorldModel, pair: Pair, title: str) -> str:
    """Draw simulator and dream of its actions as a video, one image per chunk; return "" without images."""
    real, dreamed = (decoded(model, frames, model.chunk_size) for frames in (pair.real, pair.replayed))
    if real is None or dreamed is None:
        return ""
    chunk_s = model.chunk_size / model.spec.control_hz
    title = f"{pair.task}: {title}"
    images = torch.from_numpy(real), torch.from_numpy(dreamed)
    video = draw_video(*images, expected_error=(), title=title, chunk_s=chunk_s)
    return inline_video(video, frames_per_s=0.5 / chunk_s)  # half speed


def _frames(model: WorldModel, episode: Episode) -> Frames:
    """Return the frames of a recorded episode, feature -> (n_steps + 1, *shape), on the device of the model."""
    features = model.predicted_spec.features
    return {name: episode.obs[name][episode.rows_of(name)].to(model.device) for name in features}


def _live(
    policy: TrainablePolicy, model: WorldModel, sim: Simulator, starts: StartStates
) -> tuple[list[Frames], list[bool]]:
    """Let the policy act in the dream from each start, with the settings of `sim`; return frames and successes."""
    env = whole_episodes(model, sim, policy, starts)
    obs = env.reset()
    parts = [[{name: values[i, -1:].clone() for name, values in env.context.items()}] for i in range(env.num_envs)]
    alive = torch.ones_like(env.task, dtype=torch.bool)  # still in its first episode
    success = ~alive
    while alive.any():
        with torch.no_grad():
            step = env.step_chunk(policy.decide(policy.encode(obs), env.episode_seed, env.elapsed))
        for i in alive.nonzero().squeeze(1).tolist():
            parts[i].append({name: values[i, step.executed[i]].clone() for name, values in step.frames.items()})
        success |= alive & step.is_success
        alive &= ~(step.terminated | step.truncated)
        obs = step.obs
    return [join(of_episode) for of_episode in parts], success.tolist()
