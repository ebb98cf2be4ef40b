"""`wamtune train`: post-training, beside its controls, with everything it found in one run folder."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from rewards.errors import UserError
from rl.build import tasks_of
from rl.cli import keys_of
from rl.compose import compose, to_yaml
from rl.config import CONTROLS, TrainConfig
from rl.evaluate import EpisodeResult, describe, paired_gain
from rl.imitation import Imitation
from rl.outcome import Outcome
from rl.pictures import draw_before_after
from rl.policy import load_policy_state, policy_state
from rl.report import PAIRS, write_report
from rl.report_pairs import champion_pairs
from rl.rounds import Log, PostTraining
from rl.verbs.progress import Progress, show
from rl.verbs.run_folder import RunFolder
from world_model.checkpoint import find_checkpoint, save_checkpoint
from world_model.episodes import EpisodeStore
from world_model.model import WorldActionModel
from world_model.store import load_model, save_model

HELP = f"""wamtune train PRESET | FILE | RUN_FOLDER [key=value ...]

Improve a checkpoint by PPO in the simulator, in its own dream, or in both by turns. A gate after each part of a round
compares the new policy with the best so far on fresh episodes and rolls a loss back. At the end stands success before
and after, on seeds that no gate saw; with `controls=[anchor,filtered_bc]` beside the same run without RL.

Keys:
{keys_of(TrainConfig)}

Examples:
  wamtune train mix env.tasks=[peg-insert-side] controls=[anchor,filtered_bc]
  wamtune train sim env.tasks=[push] total_timesteps=50_000 rewards.action_jerk.weight=-0.01
"""


@dataclass
class Run:
    """One run, of RL or of a control, and what it gave."""

    name: str
    outcome: Outcome
    minutes: float


def run(words: list[str]) -> None:
    """Train, evaluate, save the champion, and print the table of before and after."""
    preset = words[0] if words and "=" not in words[0] else None
    config = compose(preset, words[1:] if preset else words, TrainConfig)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    first = prepare(config)  # what is wrong with the input shows before a folder is made
    with RunFolder.create("runs", config.name, config.seed, to_yaml(config)) as folder:
        print(f"run folder: {folder.path}\nrewards: {_terms(first)}")
        runs = [_train(config.name, config, first, folder, folder.log)]
        for step in ("last", str(runs[0].outcome.sim_steps)):
            _save(folder.path / "checkpoints" / step, config, first, _readme(config, runs[0]))
        for name in config.controls:
            control = control_config(config, name)
            before = runs[0].outcome.before  # the same checkpoint on the same seeds
            runs.append(_train(name, control, prepare(control), folder, _prefixed(folder, name), before))
        if first.model is not None and config.eval.n_paired > 0:
            pairs = champion_pairs(config, first.policy, first.model)
            (folder.path / PAIRS).write_text(json.dumps(pairs), encoding="utf-8")
        draw_before_after({r.name: (r.outcome.before, r.outcome.after) for r in runs}, folder.path / "before_after.png")
        report = write_report(folder.path)
        show(_table(runs))
        print(f"\nchampion: {folder.path / 'checkpoints' / 'last'}\nreport: {report}")
        print(f"picture: {folder.path / 'before_after.png'}\ncurves: tensorboard --logdir {folder.path}")


def control_config(config: TrainConfig, name: str) -> TrainConfig:
    """Return the config of a control: the same run with its changes."""
    parts = {part: replace(getattr(config, part), **changes) for part, changes in CONTROLS[name].items()}
    return replace(config, **parts, controls=())


def prepare(config: TrainConfig) -> PostTraining:
    """Build a run from a freshly loaded checkpoint, with its demonstrations to imitate; it logs nothing yet."""
    model = load_model(config.checkpoint) if config.policy == "flow" else None
    post = PostTraining(config, model, None, log=lambda step, values: None)
    if model is not None:
        post.imitation = _imitation(config, model)
    return post


def _imitation(config: TrainConfig, model: WorldActionModel) -> Imitation | None:
    ppo = config.ppo
    if not any((ppo.bc_coef, ppo.success_bc_coef, config.dream.success_bc_coef)):
        return None
    demonstrations = []
    if ppo.bc_coef > 0:
        tasks = tasks_of(config, model) or model.spec.tasks
        demonstrations = EpisodeStore(find_checkpoint(config.checkpoint)).load(tasks=tasks)
        if not demonstrations:
            raise UserError(
                f"ppo.bc_coef={ppo.bc_coef}: {config.checkpoint} holds no demonstrations of {', '.join(tasks)}; "
                f"set ppo.bc_coef=0 or tune a checkpoint on some"
            )
    coefs = ppo.bc_coef, ppo.success_bc_coef, config.dream.success_bc_coef
    return Imitation(model, demonstrations, *coefs, ppo.bc_batch_size)


def _train(
    name: str,
    config: TrainConfig,
    post: PostTraining,
    folder: RunFolder,
    log: Log,
    before: list[EpisodeResult] | None = None,
) -> Run:
    begun, shown = time.monotonic(), _Shown()

    def hear(step: int, values: dict[str, float]) -> None:
        log(step, values)
        shown.hear(values)

    with Progress(f"train {name}") as progress:
        post.log, post.say = hear, progress.note
        post.tick = lambda done, total, doing: progress.update(
            round(100 * done / total), 100, **shown.values, doing=doing, simulator_steps=post.sim_steps
        )
        try:
            outcome = post.run(before)
        except KeyboardInterrupt:
            if name == config.name:
                _save_interrupted(folder.path / "checkpoints" / "last", config, post)
            raise
        finally:
            post.close()
    for phase, step, results in (("before", 0, outcome.before), ("after", outcome.sim_steps, outcome.after)):
        for result in results:
            folder.eval_row({"step": step, "run": name, "phase": phase, "place": "sim", **result.to_row()})
    return Run(name, outcome, (time.monotonic() - begun) / 60)


class _Shown:
    """The figures of the live panel: success so far in simulator (champion) and dream (exploring), and the gap."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def hear(self, logged: dict[str, float]) -> None:
        """Pick what people watch out of what is logged."""
        if "eval/success" in logged:
            self.values.setdefault("before", logged["eval/success"])
            self.values["sim"] = logged["eval/success"]
        elif "gate/accepted" in logged:
            self.values["sim"] = logged["gate/challenger" if logged["gate/accepted"] else "gate/champion"]
        if "rollout/dream_success" in logged:
            self.values["dream"] = logged["rollout/dream_success"]
        if {"sim", "dream"} <= self.values.keys():
            self.values["gap"] = self.values["dream"] - self.values["sim"]
        if "train/approx_kl" in logged:
            self.values["KL"] = logged["train/approx_kl"]


def _save(path: Path, config: TrainConfig, post: PostTraining, readme: str) -> None:
    about = {"config": to_yaml(config)}
    if post.model is None:
        spec = {"spec": post.sim.spec.to_dict(), "stage": "rl", "policy": "gaussian"}
        save_checkpoint(path, spec | about, policy_state(post.policy), readme)
        return
    demonstrations = {
        shard.name: shard.read_bytes() for shard in EpisodeStore(find_checkpoint(config.checkpoint)).shards
    }
    save_model(path, post.model, "rl", config.checkpoint, about, readme, demonstrations)


def _save_interrupted(path: Path, config: TrainConfig, post: PostTraining) -> None:
    load_policy_state(post.policy, post.champion)
    _save(
        path, config, post, f"# {config.name}\n\nInterrupted after {post.sim_steps:,} simulator steps; not evaluated.\n"
    )
    print(f"interrupted: the best policy so far is saved as {path}")


def _terms(post: PostTraining) -> str:
    assert post.sim.rewards is not None
    return ", ".join(f"{weight:g} x {name}" for name, _, weight, _ in post.sim.rewards.describe()) or "none"


def _readme(config: TrainConfig, run: Run) -> str:
    before, after = describe(run.outcome.before), describe(run.outcome.after)
    tasks = ", ".join(dict.fromkeys(result.task for result in run.outcome.after))
    return (
        f"# {config.name}\n\nGrown from `{config.checkpoint}` by PPO (env.kind={config.env.kind}), seed {config.seed}, "
        f"{run.outcome.sim_steps:,} simulator steps.\n\n"
        f"Success in the simulator on {tasks}, seeds from {config.eval.seed} on:\n\n"
        f"| before | after |\n|---|---|\n| {before} | {after} |\n"
    )


def _table(runs: list[Run]) -> Table:
    """One column for each run, one row for each figure."""
    table = Table(title="success in the simulator on fresh episodes", title_justify="left")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    figures = [_figures(run) for run in runs]
    for row in figures[0]:
        table.add_row(row, *(f[row] for f in figures))
    return table


def _figures(run: Run) -> dict[str, str]:
    outcome = run.outcome
    gain, low, high = (100 * value for value in paired_gain(outcome.before, outcome.after))
    paid = [sum(r.reward for r in results) / len(results) for results in (outcome.before, outcome.after)]
    return {
        "before": _share(outcome.before),
        "after": _share(outcome.after),
        "gain, points": f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]",
        "from imitation": f"{100 * outcome.gain_of('imitation'):+.1f}",
        "from the dream": f"{100 * outcome.gain_of('dream'):+.1f}",
        "from the simulator": f"{100 * outcome.gain_of('sim'):+.1f}",
        "episodes": str(len(outcome.after)),
        "simulator's reward": f"{paid[0]:.4g} → {paid[1]:.4g}",
        "simulator steps": f"{outcome.sim_steps:,}",
        "steps of gates": f"{outcome.gate_steps:,}",
        "minutes": f"{run.minutes:.1f}",
    }


def _share(results: list[EpisodeResult]) -> str:
    return describe(results).partition(" of ")[0]


def _prefixed(folder: RunFolder, name: str) -> Log:
    return lambda step, values: folder.log(step, {f"{name}/{tag}": value for tag, value in values.items()})
