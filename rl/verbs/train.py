"""`wamtune train`: post-training and its controls, with all results in one run folder."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors.torch import save

from rewards.errors import BadNumbers
from rl.build import has_simulator, judged_in
from rl.config import TrainConfig
from rl.instructions import with_instruction
from rl.policies.api import load_policy_state, policy_state
from rl.ppo.distributed import Distributed
from rl.report import by_task
from rl.report.by_task import task_rows
from rl.report.card import noise_metrics, success_metrics
from rl.report.data import BAD_NUMBERS, PAIRS
from rl.report.page import write_report
from rl.report.pairs import Untrained, champion_pairs
from rl.report.plots import draw_before_after
from rl.report.results import RESULTS, costs, decomposition, results_of, reward, with_noise
from rl.report.verdict import describe_reward_gain, reward_in_words
from rl.report.videos import gif_of
from rl.rounds.evaluate import EpisodeResult, have_success
from rl.rounds.loop import PostTraining
from rl.rounds.outcome import Outcome, Weights
from rl.runs.folder import RunFolder
from rl.runs.inputs import check_inputs, inputs_of, keep_sources
from rl.runs.progress import Progress, show
from rl.runs.state import Run, load_state, save_state
from rl.runs.verdict import read_verdict
from rl.seeds import GO_BACK
from rl.statistics import describe, describe_gain
from rl.verbs.begin import begin_together, tells_how_to_go_on
from rl.verbs.prepare import control_config, prepare
from rl.world_models import load_world_model_weights, world_model_of

Watch = Callable[[Path, dict[str, float]], None]

MOST_BACK = 3
"""How often a run goes back to a saved state after bad numbers before it stops."""


def run(words: list[str]) -> None:
    """Train, evaluate, save the champion, and print the table of before and after."""
    train(words)


@dataclass(frozen=True)
class Trained:
    """A finished training: its folder, its config, and the run and its controls."""

    folder: Path
    config: TrainConfig
    runs: list[Run]


def train(words: Sequence[str], root: str | Path = "runs", watch: Watch = lambda folder, values: None) -> Trained:
    """Do what `wamtune train` does with these words, and return the result.

    If torchrun has started several processes, each does its share, and process 0 alone writes.

    Args:
        words: preset and overrides, or a run folder.
        root: folder in which `NAME/TIME` of a new run is made.
        watch: called with the run folder and the values that the run itself logs; an exception ends the run.

    Raises:
        UserError: the config is wrong, or the run cannot be built or continued.
    """
    with Distributed.join() as distributed, distributed.together():
        config, folder, state = begin_together(distributed, "train", words, TrainConfig, load_state, root)
        with folder, tells_how_to_go_on("train", folder.path):
            runs = _run_and_controls(config, folder, state or {"runs": []}, distributed, watch)
    return Trained(folder.path, config, runs)


def _run_and_controls(
    config: TrainConfig, folder: RunFolder, state: dict[str, Any], distributed: Distributed, watch: Watch
) -> list[Run]:
    """Do the run and then its controls, or what is left of them after a saved `state`."""
    torch.set_num_threads(config.threads or distributed.n_threads)
    config = replace(config, env=with_instruction(config.env, config.instruction))
    runs: list[Run] = state["runs"]
    inputs = _inputs(config, folder, state)
    first = prepare(config, folder.path, distributed, say=print)
    start = policy_state(first.policy)
    kept = {"runs": runs, "inputs": inputs or inputs_of(config)}
    print(f"run folder: {folder.path}\nrewards: {_terms(first)}", flush=True)
    if plan := first.budget_plan:
        print(plan, flush=True)
    if callbacks := [name for name, term in config.callbacks.items() if term is not None]:
        print(f"callbacks: {', '.join(callbacks)}", flush=True)
    if distributed.is_first:
        keep_sources(config, folder.path)
    if runs:  # a resumed run of which only controls are left
        first.close()
        if distributed.is_first:
            _load_champion(first, runs[0].outcome, folder.path / "checkpoints" / "last")
    # The run itself, then its controls; finished ones are in `runs` already.
    n_runs = 1 + len(config.controls)
    for name in (config.name, *config.controls)[len(runs) :]:
        path = folder.path / "controls" / name
        post = prepare(control_config(config, name), path, distributed) if runs else first
        title = f"train {name}" + (f", run {len(runs) + 1} of {n_runs}" if n_runs > 1 else "")
        runs.append(_train(title, name, post, folder, kept, state.pop("post", None), watch))
        if distributed.is_first:
            _keep_finished(config, folder, kept, post if post is first else None)
    if distributed.is_first:
        _report(config, folder, first, runs, start)
    return runs


def _keep_finished(config: TrainConfig, folder: RunFolder, kept: dict[str, Any], first: PostTraining | None) -> None:
    """Save the state after a run has finished, and the champion of the `first` one; None: it was a control."""
    runs: list[Run] = kept["runs"]
    if first is not None:
        # A success in a dream is no measurement of the policy, so it stays in the card alone.
        metrics = _metrics(config, runs[0].outcome) if first.sim.place == "sim" else None
        for step in ("last", str(runs[0].outcome.sim_steps)):
            first.save(folder.path / "checkpoints" / step, _readme(config, runs[0]), metrics)
    save_state(folder.path, {**kept, "mark": folder.mark()})
    folder.keep(RESULTS, json.dumps(results_of(runs)).encode())


def _metrics(config: TrainConfig, outcome: Outcome) -> dict[str, Any]:
    """Return the measurements of a champion, as in the config of a checkpoint of `wamtune tune`."""
    noisy = {f"{config.evaluated_noise:g}": outcome.with_noise} if outcome.with_noise else {}
    return success_metrics(outcome.after) | noise_metrics(noisy)


def _report(config: TrainConfig, folder: RunFolder, first: PostTraining, runs: list[Run], start: Weights) -> None:
    """Write the report, and print the table and the verdict; `start` are the weights before training."""
    # Paired evaluation of the champion in simulator and dream, for the report.
    if first.model is not None and config.eval.n_paired > 0 and first.sim.place == "sim":
        untrained = Untrained(start, runs[0].outcome.before)
        pairs = champion_pairs(config, first.policy, first.model, first.denoiser, untrained)
        folder.keep(PAIRS, json.dumps(pairs).encode())
        videos = {example["title"]: example["film"] for example in pairs["examples"]}
        if "film" in pairs:
            videos["before and after"] = pairs["film"]["gif"]
        for title, video in videos.items():
            if video:
                folder.write_video(title, runs[0].outcome.n_updates, gif_of(video))
    draw_before_after({r.name: (r.outcome.before, r.outcome.after) for r in runs}, folder.path / "before_after.png")
    report = write_report(folder.path)
    show(_table(runs, config))
    if tasks := task_rows(runs[0].outcome.before, runs[0].outcome.after):
        show(by_task.terminal(tasks))
    print(f"\nchampion: {folder.path / 'checkpoints' / 'last'}\nreport: {report}")
    print(f"plot: {folder.path / 'before_after.png'}\ncurves: tensorboard --logdir {folder.path}")
    if (verdict := read_verdict(folder.path)) is not None:
        print(f"\n{verdict}\n\nnext: {verdict.next_command}", flush=True)


def _inputs(config: TrainConfig, folder: RunFolder, state: dict[str, Any]) -> dict[str, str] | None:
    """Return the inputs of a saved run after checking that they have not changed; None if they were not saved.

    Raises:
        UserError: the checkpoint or a plug-in has changed since the run began.
    """
    inputs: dict[str, str] | None = state.get("inputs")
    if inputs is not None:
        check_inputs(config, folder.path, inputs)
    elif state["runs"] or "post" in state:
        print(
            "its state was saved by an older version: nothing says whether checkpoint and plug-ins have changed since"
        )
    return inputs


def _train(
    title: str,
    name: str,
    post: PostTraining,
    folder: RunFolder,
    kept: dict[str, Any],
    state: dict[str, Any] | None,
    watch: Watch,
) -> Run:
    """Do one run, or resume one from its saved `state`; `title` is shown with its progress.

    `kept` is part of every saved state: `runs`, the finished runs before this one, and `inputs`, see `inputs_of`.
    """
    runs: list[Run] = kept["runs"]
    shown, prefix = _Shown(has_simulator(post.config)), f"{name}/" if runs else ""
    post.safe = saver = _Saver(post, folder, kept, state["minutes"] if state else 0.0)
    if state is not None:
        post.load_state_dict(state)

    def log(step: int, values: dict[str, float]) -> None:
        folder.log(step, {prefix + tag: value for tag, value in values.items()})
        shown.add(values)
        if not prefix:
            watch(folder.path, values)

    with Progress(title) as progress:
        post.log, post.say = log, progress.note
        post.tick = lambda done, total, doing: progress.update(
            100 * done / total, 100, **shown.values, doing=doing, **shown.steps(post.state.sim_steps)
        )
        try:
            outcome = _run(post, folder, runs[0].outcome.before if runs else None)
        finally:
            post.close()
    for phase, step, results in (("before", 0, outcome.before), ("after", outcome.n_updates, outcome.after)):
        for result in results:
            folder.eval_row({"step": step, "run": name, "phase": phase, "place": "sim", **result.to_row()})
    return Run(name, outcome, saver.minutes)


def _run(post: PostTraining, folder: RunFolder, before: list[EpisodeResult] | None) -> Outcome:
    """Run to the end. After bad numbers, save the tensors that led to them, and go back if the config says so.

    All processes do this together, whichever has met the bad numbers.

    `before` is the first evaluation, which controls take from the run itself: same checkpoint, same seeds.
    """
    distributed = post.distributed
    for n_back in itertools.count(1):
        try:
            with distributed.together():
                return post.run(before)
        except BadNumbers as error:
            folder.keep(BAD_NUMBERS, save({name: value.contiguous() for name, value in error.tensors.items()}))
            # A control that has not been saved yet finds the state of the run before it, which has no `post`.
            state = load_state(folder.path) if distributed.is_first else None
            saved = distributed.from_first(state and state.get("post"))
            if post.config.on_bad_numbers == "stop" or saved is None or n_back > MOST_BACK:
                raise BadNumbers(f"{error}; what led to it is in {folder.path / BAD_NUMBERS}") from error
            post.say(f"{error}; going back to the last saved state, for the {n_back}. time of {MOST_BACK}")
            post.load_state_dict(saved)
            if state is not None:
                folder.go_back(state["mark"])  # what was logged since then is logged again
            post.sim.begun = False
            # With the same random numbers, the same bad numbers would come again.
            for generator in (post.ppo.generator, post.sim.generator):
                generator.manual_seed(distributed.seed(post.config.seed + GO_BACK * n_back))
    raise AssertionError


class _Saver:
    """Save a run at safe points: at the end of each phase, and within a phase every `save_minutes`."""

    def __init__(self, post: PostTraining, folder: RunFolder, kept: dict[str, Any], minutes: float) -> None:
        self.post, self.folder, self.kept = post, folder, kept
        self._begun, self._saved = time.monotonic() - 60 * minutes, time.monotonic()

    @property
    def minutes(self) -> float:
        """Return the minutes that this run has taken so far, including those before an interruption."""
        return (time.monotonic() - self._begun) / 60

    def __call__(self, ended: bool) -> None:
        """Save at a safe point if it is due; `ended`: a phase has ended, which is always saved."""
        post = self.post
        due = time.monotonic() - self._saved >= 60 * post.config.save_minutes
        if not ended and not post.distributed.any(due):
            return
        state = {"minutes": self.minutes, **post.state_dict()}
        if post.distributed.is_first:
            self._write(state, ended)
        self._saved = time.monotonic()

    def _write(self, state: dict[str, Any], ended: bool) -> None:
        post, path = self.post, self.folder.path
        if ended and not self.kept["runs"]:
            n_updates = post.state.n_updates
            readme = f"# {post.config.name}\n\nThe best after {n_updates:,} updates; not evaluated yet.\n"
            post.save(path / "checkpoints" / "last", readme)
        save_state(path, {**self.kept, "mark": self.folder.mark(), "post": state})


class _Shown:
    """The figures of the live panel: success of the champion and in the dream (exploring), their gap, and the KL.

    The champion's success is called `sim`, and in a run without a simulator `recorded`: a dream of what was recorded.
    """

    def __init__(self, simulated: bool) -> None:
        self.values: dict[str, float] = {}
        self.simulated, self.judge = simulated, "sim" if simulated else "recorded"

    def steps(self, n: int) -> dict[str, int]:
        """Return the executed simulator steps `n` under their name; {} without a simulator."""
        return {"simulator_steps": n} if self.simulated else {}

    def add(self, logged: dict[str, float]) -> None:
        """Update the figures from logged values."""
        if "eval/success" in logged:
            self.values.setdefault("before", logged["eval/success"])
            self.values[self.judge] = logged["eval/success"]
        elif "eval/reward" in logged:  # an environment without success
            self.values.setdefault("reward before", logged["eval/reward"])
            self.values["reward"] = logged["eval/reward"]
        elif "gate/accepted" in logged and "reward" not in self.values:
            self.values[self.judge] = logged["gate/challenger" if logged["gate/accepted"] else "gate/champion"]
        if "rollout/dream_success" in logged:
            self.values["dream"] = logged["rollout/dream_success"]
        if {self.judge, "dream"} <= self.values.keys():
            self.values["gap"] = self.values["dream"] - self.values[self.judge]
        if "train/approx_kl" in logged:
            self.values["KL"] = logged["train/approx_kl"]


def _load_champion(post: PostTraining, outcome: Outcome, path: Path) -> None:
    """Load the saved champion and its world model into `post`, for the report; without dreams there is no pair."""
    if post.model is None:
        return
    apart = post.world_model_apart
    load_world_model_weights(post.model, path if apart is None else world_model_of(path))
    if apart is not None and outcome.results:
        load_policy_state(post.policy, outcome.results[-1].champion)


def _terms(post: PostTraining) -> str:
    assert post.sim.rewards is not None
    return ", ".join(f"{weight:g} x {name}" for name, _, weight, _ in post.sim.rewards.describe()) or "none"


def _readme(config: TrainConfig, run: Run) -> str:
    before, after = describe(run.outcome.before), describe(run.outcome.after)
    tasks = ", ".join(dict.fromkeys(result.task for result in run.outcome.after))
    start = config.starts_from if config.actor.func == "gaussian" else f"`{config.starts_from}`"
    stopped_by = run.outcome.stopped_by
    ended = f" The callback `{stopped_by}` ended the training." if stopped_by else ""
    steps = f"{run.outcome.sim_steps:,} simulator steps of training and {run.outcome.gate_steps:,} of gates"
    if not has_simulator(config):
        steps = f"{run.outcome.n_updates:,} updates, without a simulator"
    noise = ""
    if run.outcome.with_noise:
        noise = (
            f"\nWith white noise of a standard deviation of {config.evaluated_noise:g} (units of the state) on every "
            f"feature and step: {describe(run.outcome.with_noise)}.\n"
        )
    measured = (
        f"Success in {judged_in(config)} on {tasks}, seeds from {config.eval.seed} on:\n\n"
        f"| before | after |\n|---|---|\n| {before} | {after} |\n"
    )
    if not _has_success(run):
        measured, noise = f"{reward_in_words(run.outcome.before, run.outcome.after)}.\n", ""
    return (
        f"# {config.name}\n\nGrown from {start} by PPO (env.kind={config.env.kind}), seed {config.seed}, "
        f"{steps}.{ended}\n\n"
        f"{measured}{by_task.markdown(task_rows(run.outcome.before, run.outcome.after))}{noise}{_gates(run.outcome)}"
    )


def _gates(outcome: Outcome) -> str:
    """Return the verdict of every gate as a list in Markdown; "" without gates."""
    lines = [f"- {result.phase}: {result.verdict}\n" for result in outcome.results if result.verdict is not None]
    return f"\nGates, champion -> challenger:\n\n{''.join(lines)}" if lines else ""


def _table(runs: list[Run], config: TrainConfig) -> Table:
    """Return a table with one column per run and one row per figure."""
    obs_noise = config.evaluated_noise
    title = f"success in {judged_in(config)} on fresh episodes"
    if not _has_success(runs[0]):
        title = "reward of fresh episodes; no is_success"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    figures = [_figures(run, obs_noise, has_simulator(config)) for run in runs]
    for row in figures[0]:
        table.add_row(row, *(f[row] for f in figures))
    return table


def _figures(run: Run, obs_noise: float, simulated: bool) -> dict[str, str]:
    outcome, (result,) = run.outcome, results_of([run])
    if not _has_success(run):
        old, new = result["reward"]
        return {
            "before": f"{old:.4g}",
            "after": f"{new:.4g}",
            "gain": describe_reward_gain(outcome.before, outcome.after),
            "episodes": str(len(outcome.after)),
            **costs(result, simulated),
        }
    return {
        "before": _share(outcome.before),
        "after": _share(outcome.after),
        **with_noise(result, obs_noise),
        "gain, points": describe_gain(outcome.before, outcome.after),
        **decomposition(result, simulated),
        "episodes": str(len(outcome.after)),
        **reward(result, simulated),
        **costs(result, simulated),
    }


def _has_success(run: Run) -> bool:
    return have_success(run.outcome.before, run.outcome.after)


def _share(results: list[EpisodeResult]) -> str:
    return describe(results).partition(" of ")[0]
