"""The verdict on a run of `wamtune train`: one sentence and one colour, from its evaluation, controls, gates and dream.

The rules, in this order; an interval is a 95 % interval of paired episodes:

* without an evaluation before and after, the run is not finished, or bad numbers have stopped it;
* an environment that never says what a success is has no success rate, and its own reward is compared;
* success rose if the interval of the gain is above 0, and fell if it is below 0;
* a gain counts as one of reinforcement learning only if it is also above that of the best control without it;
* otherwise a dream that promised more than the simulator gave explains why nothing was gained;
* without a single success nothing can be compared but the reward of an episode;
* otherwise nothing has changed, because gates rolled back everything, or there were too few episodes to say.

A run of recorded episodes has no simulator: it is judged in a dream of what was recorded, and the sentence says so.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rl.build import has_simulator, judged_in
from rl.config import CONTROLS
from rl.report.by_task import in_words, task_rows
from rl.report.data import RunData
from rl.rounds.evaluate import EpisodeResult, have_success, mean_reward
from rl.runs.verdict import Kind, RunVerdict
from rl.statistics import describe, mean_change, paired_gain, success_rate, wilson

MOST_EPISODES = 10_000
"""Largest number of episodes that is recommended; a gain that needs more is hardly worth it."""


@dataclass(frozen=True)
class Promise:
    """Success that a dream showed, beside that of the simulator, or of what stands in its place."""

    dream: float
    sim: float
    where: str


def verdict_of(run: RunData) -> RunVerdict:
    """Judge a run by the rules at the top of this file."""
    found = run.evaluations.get(run.config.name)
    if found is None:
        return _unfinished(run)
    before, after = found["before"], found["after"]
    _, low, high = paired_gain(before, after)
    if not have_success(before, after):
        words = _next(run, "unclear", before, after)
        return RunVerdict("no_success", f"{reward_in_words(before, after)}.", words)
    promise = broken_promise(run)
    if low > 0:
        kind, text = _against_controls(run, after)
        start = f"{_success(run)} rose {_change(before, after)}{text}"
    elif high < 0:
        kind, start = "loss", f"{_success(run)} fell {_change(before, after)}"
    elif promise is not None:
        kind = "dream"
        start = (
            f"{_dream(run)} showed {_percent(promise.dream)} success {promise.where}, where {judged_in(run.config)} "
            f"gave {_percent(promise.sim)}, and success {_moved(before, after)} {_change(before, after)}"
        )
    elif not any(result.success for result in (*before, *after)):
        kind, start = "unsolved", _rewards(run, before, after)
    elif (n := _all_rolled_back(run)) and _same(before, after):
        kind = "unchanged"
        start = f"{_success(run)} stayed at {describe(after)} episodes: the gates rolled back every new policy ({n})"
    else:
        kind = "unclear"
        start = f"{_success(run)} {_moved(before, after)} {_change(before, after)}{_enough(before, after)}"
    tasks = task_rows(before, after)
    about_tasks = f"; {in_words(tasks)}" if tasks else ""
    sentence = f"{start}{about_tasks}{_about_dream(run, promise if kind != 'dream' else None)}."
    return RunVerdict(kind, sentence, _next(run, kind, before, after))


def _rewards(run: RunData, before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    old, new = (mean_reward(results) for results in (before, after))
    reward = "the simulator's own reward" if has_simulator(run.config) else "the reward"
    return (
        f"None of {len(after)} fresh episodes succeeded, before training or after it, and {reward} of an episode went "
        f"from {old:.4g} to {new:.4g}"
    )


def reward_in_words(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    """Return how the reward of the environment has changed, where it does not say what a success is."""
    old, new = (mean_reward(results) for results in (before, after))
    return (
        "The environment has no is_success in its info, so there is no success rate; its own reward of an episode went "
        f"from {old:.4g} to {new:.4g} ({describe_reward_gain(before, after)} on {len(after)} fresh episodes)"
    )


def describe_reward_gain(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    """Return the gain in the environment's own reward of an episode, and its 95 % interval."""
    gain, low, high = mean_change([r.reward for r in before], [r.reward for r in after])
    return f"{gain:+.4g}" + (f" [{low:+.4g}, {high:+.4g}]" if math.isfinite(low) else "")


def broken_promise(run: RunData) -> Promise | None:
    """Return what the dream promised if the simulator surely gave less: of the champion, or of what gates rolled back.

    The dream of the champion begins in the same states as its episodes in the simulator. A policy that was rolled back
    was seen in the dream while exploring, which makes success rarer, so the comparison favours the simulator.
    """
    if run.pairs is not None and run.pairs["gap"][1] > 0:
        summary = run.pairs["summary"]
        return Promise(summary["dream"], summary["sim"], f"in the same {summary['n']} episodes")
    found, seen = [], None
    for row in run.rows_of(run.config.name):
        if row.get("rollout/dream_success") is not None:
            seen = row["rollout/dream_success"]
        if row.get("gate/in_dream") and row.get("gate/accepted") == 0 and seen is not None:
            sim, n = row.get("gate/challenger"), row.get("gate/n_episodes")
            if sim is not None and 0 <= sim <= 1 and n and n >= 1 and seen > wilson(round(sim * n), round(n))[1]:
                found.append(Promise(seen, sim, "of a new policy"))
    return max(found, key=lambda promise: promise.dream - promise.sim, default=None)


def _unfinished(run: RunData) -> RunVerdict:
    """Return the verdict on a run without an evaluation after training."""
    first = next((row["eval/success"] for row in run.rows if row.get("eval/success") is not None), None)
    began = f"; before training, success was {_percent(first)}" if first is not None else ""
    if run.bad_numbers:
        sentence = "The run met numbers that are not finite, and there is no evaluation after training"
        again = _command("train", f"{run.folder}/config.yaml", "on_bad_numbers=go_back")
        return RunVerdict("stopped", f"{sentence}{began}.", again)
    sentence = f"The run has not finished, so nothing can be said about its success yet{began}."
    return RunVerdict("unfinished", sentence, _command("train", str(run.folder)))


def _against_controls(run: RunData, after: Sequence[EpisodeResult]) -> tuple[Kind, str]:
    """Compare a gain with that of the best control without policy gradient; return the verdict and the end of its text.

    Pairs are the episodes of both.
    """
    rivals = _rivals(run)
    done = {name: run.evaluations[name]["after"] for name in rivals if name in run.evaluations}
    missing = "; not all controls have finished" if len(done) < len(rivals) else ""
    if not rivals:
        return "gain", "; no control was run beside it"
    if not done:
        return "gain", missing
    best = max(done, key=lambda name: success_rate(done[name]))
    theirs = {(r.task, r.seed): r for r in done[best]}
    both = [(theirs[r.task, r.seed], r) for r in after if (r.task, r.seed) in theirs]
    if not both:
        return "gain", missing
    more, low, high = paired_gain([control for control, _ in both], [own for _, own in both])
    points = f"{_points(more)} points {_interval(low, high)}"
    if low > 0:
        return "gain", f", {points} more than the best control without RL, {best}{missing}"
    return "control", f", but the control {best}, without RL, gained as much (difference {points}){missing}"


def _rivals(run: RunData) -> list[str]:
    """Return the controls that learn without policy gradient."""
    return [name for name in run.config.controls if CONTROLS[name]["ppo"].get("pg_coef") == 0]


def _all_rolled_back(run: RunData) -> int:
    """Return the number of gates if all of them rolled back; else 0."""
    gates = [row["gate/accepted"] for row in run.rows_of(run.config.name) if row.get("gate/accepted") is not None]
    return 0 if any(gates) else len(gates)


def _same(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> bool:
    return [result.success for result in before] == [result.success for result in after]


def _moved(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    return "stayed the same," if success_rate(before) == success_rate(after) else "went"


def _about_dream(run: RunData, promise: Promise | None) -> str:
    """Return what is to be known of the dream beside the gain."""
    if run.config.env.kind == "sim":
        return "; the run used no dream"
    if promise is not None:
        return (
            f"; {_dream(run).lower()} was too optimistic: it showed {_percent(promise.dream)} success {promise.where}, "
            f"{judged_in(run.config)} {_percent(promise.sim)}"
        )
    return ""


def _enough(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    n = episodes_needed(before, after)
    return "" if n is None else f"; a change of this size would be clear from about {n:,} episodes on"


def episodes_needed(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> int | None:
    """Return from how many episodes on a gain or loss of this size excludes 0, in hundreds; None: without end.

    The width of the interval falls with the root of the number of episodes.
    """
    gain, low, high = paired_gain(before, after)
    half = gain - low if gain > 0 else high - gain
    n = math.inf if gain == 0 else len(before) * (half / gain) ** 2
    return 100 * math.ceil(n / 100) if n <= MOST_EPISODES else None


def _next(run: RunData, kind: Kind, before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    """Return the command that is worth a try after this verdict."""
    config = run.config
    change: Callable[..., str] = lambda *words: _command("train", f"{run.folder}/config.yaml", *words)  # noqa: E731
    if kind == "gain" and not _rivals(run) and config.actor.func != "gaussian":  # which has no controls
        return change("controls=anchor,filtered_bc")
    if kind == "gain":  # one seed is one sample of what training does
        return change(f"seed={config.seed + 1}")
    if kind == "loss" and not config.gate.enabled:
        return change("gate.enabled=true")
    if kind == "loss" and isinstance(config.ppo.learning_rate, float):
        return change(f"ppo.learning_rate={config.ppo.learning_rate / 2:g}")
    if kind == "dream" and not has_simulator(config):  # nothing can be collected: stay nearer to recorded actions
        return change(f"dream.ref_kl_coef={2 * config.dream.ref_kl_coef or 0.005:g}")
    if kind == "dream":  # more real episodes for the refit of the dream
        return change(f"dream.n_episodes={max(2 * config.dream.n_episodes, 50)}")
    if kind == "unclear" and (n := episodes_needed(before, after)) is not None:
        return change(f"eval.n_episodes={n}")
    # Twice the training needs twice the budget.
    more = [f"{name}={2 * given}" for name in ("budget_steps", "budget_episodes") if (given := getattr(config, name))]
    if config.env.kind == "dream":
        return change(f"n_rounds={2 * config.n_rounds}", *more)
    return change(f"total_timesteps={2 * config.total_timesteps}", *more)


def _command(verb: str, *words: str) -> str:
    return shlex.join(["wamtune", verb, *words])


def _dream(run: RunData) -> str:
    """Return the name of the dream of training at the beginning of a sentence."""
    return "The dream" if has_simulator(run.config) else "The dream of training"


def _success(run: RunData) -> str:
    return f"Success in {judged_in(run.config)}"


def _change(before: Sequence[EpisodeResult], after: Sequence[EpisodeResult]) -> str:
    gain, low, high = paired_gain(before, after)
    return (
        f"from {_percent(success_rate(before))} to {_percent(success_rate(after))} "
        f"({_points(gain)} points {_interval(low, high)} on {len(after)} fresh episodes)"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _interval(low: float, high: float) -> str:
    return f"[{_points(low)}, {_points(high)}]"
