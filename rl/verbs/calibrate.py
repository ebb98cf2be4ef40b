"""`wamtune deploy CHECKPOINT calibrate EPISODES`: calibrate the read-out of success against the labels of episodes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from rewards.checks import named_or_only
from rewards.errors import UserError
from rl.compose import compose
from rl.deploy.calibrate import Calibrated, calibrate, score_of
from rl.deploy.calibration import Calibration, save_calibration
from rl.deploy.pilots import load_pilot
from rl.policies.wam import ModelPilot
from rl.runs.progress import show
from rl.statistics import wilson
from rl.verbs.acting import refuse_own_class
from rl.verbs.options import CalibrateOptions
from world_model.data.episodes import Episode, EpisodeStore
from world_model.dream_env import SURE

READ_OUT = "read_out.json"
BY_READ_OUT = "success by read_out"
"""End of the source of episodes whose labels are those of the read-out itself."""


def calibrate_read_out(name: str, words: list[str]) -> None:
    """Calibrate the read-out of the checkpoint `name`, print what that changes, and write the file for sessions.

    Args:
        name: of the checkpoint.
        words: those after `calibrate`: the folder of episodes, then keys.

    Raises:
        UserError: there is no read-out, or there are too few labelled episodes; nothing is written.
    """
    if not words or "=" in words[0]:
        raise UserError(
            f"deploy {name} calibrate needs a folder of labelled episodes: wamtune deploy {name} calibrate "
            "runs/robot/sim"
        )
    options = compose(None, words[1:], CalibrateOptions)
    refuse_own_class(name)
    pilot = load_pilot(name)
    if not isinstance(pilot, ModelPilot):
        raise UserError(
            f"deploy {name} calibrate: only the checkpoint of a world-action model has a read-out, no export and no "
            "policy on a server; name the checkpoint"
        )
    store = EpisodeStore(words[0])
    # Its judgement is of single frames, so episodes of a session with another rate (`hz=`) are as good.
    store.check_fits(replace(pilot.spec, control_hz=store.spec.control_hz), words[0])
    task = _task(options.task, store, pilot)
    episodes = store.load(tasks=[task], features=pilot.spec.features)
    labelled = [episode for episode in episodes if not episode.source.endswith(BY_READ_OUT)]
    print(_labels(labelled, len(episodes) - len(labelled)))
    scores = [score_of(episode, pilot.model) for episode in labelled]
    found = calibrate(scores, [episode.is_success for episode in labelled], f"{words[0]}, task {task}")
    show(_table(task, found))
    print(_verdict(found))
    path = Path(options.out) if options.out else store.folder / READ_OUT
    save_calibration(path, task, Calibration(found.threshold, pilot.read_out_id(task), found.n_solved, found.n_failed))
    print(f"calibration: {path}; wamtune deploy {name} run PRESET task={task} success=read_out calibration={path}")


def _task(wanted: str, store: EpisodeStore, pilot: ModelPilot) -> str:
    """Return the task to calibrate: the one that is wanted, or the only recorded one that the checkpoint knows."""
    known = [task for task in dict.fromkeys(task for task, _, _ in store.count()) if task in pilot.spec.tasks]
    if not known:
        raise UserError(f"{store.folder}: it has no episode of a task that the checkpoint knows")
    return named_or_only("task", wanted, known)


def _labels(episodes: list[Episode], n_own: int) -> str:
    """Say where the labels are from, and how many episodes are left out."""
    sources = Counter(episode.source for episode in episodes)
    said = "; ".join(f"{n} from {source}" for source, n in sources.items()) or "none"
    return f"labelled episodes: {said}{f'; {n_own} left out, labelled by a read-out itself' if n_own else ''}"


def _table(task: str, found: Calibrated) -> Table:
    table = Table(f"{task}: errors with 95 % interval", f"from {SURE} on", f"from {found.fitted:.3g} on")
    for what, n, before, after in (
        ("false successes", found.n_failed, found.before.false, found.after.false),
        ("missed successes", found.n_solved, found.before.missed, found.after.missed),
    ):
        table.add_row(what, _share(before, n), _share(after, n))
    return table


def _share(wrong: int, n: int) -> str:
    low, high = wilson(wrong, n)
    return f"{wrong} of {n}: {100 * wrong / n:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _verdict(found: Calibrated) -> str:
    """Say which threshold is used, and why."""
    how = "right column: each episode left out of the fit that judges it"
    if found.is_better:
        return f"threshold: {SURE} -> {found.fitted:.3g} ({how})"
    if not found.tells:
        return f"threshold: it stays {SURE}; the read-out does not tell the solved from the failed of these episodes"
    return f"threshold: it stays {SURE}; another one errs no less often ({how})"
