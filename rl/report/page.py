"""`report.html` of a run: the verdict first, then one question a section. One file, no script, no network access."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rl.compose import overrides_of
from rl.config import TrainConfig
from rl.envs.names import task_of_id
from rl.report import by_task, dreaming, look, training
from rl.report.data import PAIRS, RunData, read_run
from rl.report.verdict import verdict_of
from rl.runs.verdict import Kind, RunVerdict, save_verdict
from world_model.files import write_atomically

__all__ = ["PAIRS", "write_report"]

LIBRARIES = ("wamtune", "torch", "stable-baselines3", "metaworld", "mujoco", "isaaclab")

TONES: dict[Kind, str] = {
    "gain": "good",
    "control": "open",
    "loss": "bad",
    "dream": "dream",
    "unchanged": "open",
    "unclear": "open",
    "unsolved": "open",
    "no_success": "open",
    "unfinished": "none",
    "stopped": "bad",
}
"""Verdict -> its colour in `look.STYLE`."""

SECTIONS: tuple[Callable[[RunData], look.Section | None], ...] = (
    dreaming.film,
    training.success,
    by_task.section,
    training.origin,
    training.rounds,
    training.gates,
    dreaming.agreement,
    dreaming.places,
    dreaming.errors,
    dreaming.correlation,
    dreaming.trust,
    dreaming.examples,
    training.ppo,
    training.rewards,
    training.price,
)
"""The sections of the page in order; each returns None if the run has nothing to show for it."""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into a run folder of `wamtune train` from the files in it, and the verdict; return its path.

    Raises:
        UserError: the folder holds no finished or running training.
    """
    run = read_run(folder)
    verdict = verdict_of(run)
    head = _head(run.config, verdict)
    sections = [section for make in SECTIONS if (section := make(run)) is not None]
    page = look.page(run.config.name, head, [*sections, _repeat(run)])
    path = run.folder / "report.html"
    write_atomically(path, page.encode("utf-8", errors="replace"))
    save_verdict(run.folder, verdict)
    return path


def _head(config: TrainConfig, verdict: RunVerdict) -> str:
    """Return name, verdict and what was trained."""
    tasks = ", ".join(config.env.tasks) or task_of_id(config.env.id) or "all tasks of the checkpoint"
    about = f"{config.starts_from} on {tasks}, env.kind={config.env.kind}, seed {config.seed}"
    box = look.verdict(verdict.label, verdict.sentence, TONES[verdict.kind])
    following = f"<p class=quiet>Next: <code>{look.text(verdict.next_command)}</code></p>"
    return f"<h1>{look.text(config.name)}</h1>{look.note(about)}{box}{following}"


def _repeat(run: RunData) -> look.Section:
    """Return the command that repeats the run, the config's differences from the defaults, and library versions."""
    changed = "\n".join(word for word in overrides_of(run.config) if not word.startswith("name="))
    versions = ", ".join(f"{name} {number}" for name in LIBRARIES if (number := _version(name)))
    body = (
        f"<pre>wamtune train {look.text(str(run.folder / 'config.yaml'))}</pre><p>It differs from the defaults in</p>"
        f"<pre>{look.text(changed) or 'nothing'}</pre>{look.note(versions)}"
    )
    return look.Section("How is it repeated?", "With its config, to the same numbers", body)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # an optional package, such as Isaac Lab
        return ""
