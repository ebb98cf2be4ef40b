"""Measure what a refit teaches the read-out of success on a task that the checkpoint never saw; print a table.

    python benchmarks/read_out.py --out runs/read_out
    python benchmarks/read_out.py runs/metaworld-ml45-tuned --tasks box-close --out runs/read_out

For each task 20 episodes are recorded, 16 of a scripted expert with much noise and 4 of random motion, and as many
others to measure on. The first ones end at their first success, as those of PPO do. Rows:

    before      as the checkpoint is; one that knows tasks by index has its embedding for "no task"
    after       after a refit of the world decoder and that of `dream.refit_read_out=unseen`
    failures    the same with the failed episodes alone: the read-out may not change
    plain       read-out trained on true frames without balance and without the checkpoint's episodes, for comparison

All rows judge the dreams of the other episodes' actions against what these actions really led to. `auc` is that of all
frames. An episode counts as a dreamed one does: solved if two frames in a row reach 0.5. `false`:
of the failed episodes; `missed`: of the solved ones; `early`: of the solved ones, more than 5 steps before the truth.
`moved` is the mean change of the probability of a frame.
The rows of known tasks below `after` and `plain` are judged by the same read-out. The last tasks are known ones, where
`after` is the refit of `dream.refit_read_out=all`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rl.config import DreamConfig, SimulatorConfig
from rl.envs.sim import make_spec
from rl.instructions import tell_of
from rl.stages.collect import collect_scripted
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.dream_env import SURE, solved
from world_model.replays import dreamed_episodes
from world_model.wam.model import READ_OUT_STAGE, WorldActionModel
from world_model.wam.read_out import FrameBatch
from world_model.wam.store import load_model
from world_model.wam.training import train_stage

EPISODES = {"noisy": 16, "random": 4}
"""Episodes of a task from which the read-out learns, by source, and as many to measure on."""

EARLY = 5
"""Steps before the true success from which on a success counts as early."""

SEEDS = {"train": 100, "heldout": 5000}
"""Seed of the first episode."""


def main() -> None:
    options, dream = arguments(), DreamConfig()
    torch.set_num_threads(1)
    checkpoint = load_model(options.checkpoint)
    own = EpisodeStore(find_checkpoint(options.checkpoint)).load()
    tasks = (*options.tasks, *options.known)
    train, heldout = (collected(options.out, part, tasks) for part in ("train", "heldout"))
    print("task | read-out | auc | false | missed | early | moved | frames, of them successes")
    for task in tasks:
        seen = [until_success(episode) for episode in train if episode.task == task]
        failed = [episode for episode in seen if not episode.is_success]
        successes = [episode for episode in seen if episode.is_success]
        seen = failed + successes[: options.most_solved]
        print(f"{task}: {len(seen) - len(failed)} of {len(seen)} recorded episodes succeed", flush=True)
        for name in ("before", "after", "failures", "plain") if task in options.tasks else ("before", "after"):
            model = with_task(copy.deepcopy(checkpoint), task)
            if name == "plain":
                plain(model, seen)
            elif name != "before":
                model.refit(seen, dream.refit_steps, dream.refit_learning_rate, seed=0)
                learned = dreamed_episodes(model, seen if name == "after" else failed)
                model.refit_read_out(learned, own, (task,), seed=0)
            for other in (task, *options.known) if task in options.tasks and name in ("after", "plain") else (task,):
                judged = dreamed_episodes(model, [episode for episode in heldout if episode.task == other])
                print(row(model, name, judged, with_task(copy.deepcopy(checkpoint), task)), flush=True)


def with_task(model: WorldActionModel, task: str) -> WorldActionModel:
    """Give a model a task that it does not know: its sentence, or the index of the embedding for no task."""
    if task in model.spec.tasks:
        return model
    if model.reads_sentences:
        tell_of(model, SimulatorConfig(), (task,))
    else:
        model.spec = replace(model.spec, tasks=(*model.spec.tasks, task))
    return model


def plain(model: WorldActionModel, episodes: list[Episode]) -> None:
    """Train the read-outs on all true frames of some episodes equally often."""
    frames = FrameBatch.of(episodes, model.spec.tasks)

    class AllFrames:
        def sample(self, n: int, generator: torch.Generator) -> FrameBatch:
            return frames.at(torch.randint(len(frames.success), (n,), generator=generator))

    train_stage("read_out", model, AllFrames(), READ_OUT_STAGE)  # type: ignore[arg-type]


def collected(folder: Path, part: str, tasks: Sequence[str]) -> list[Episode]:
    """Return recorded episodes of each task, which are collected once and kept in a folder."""
    store = EpisodeStore(folder / part)
    have = {episode.task for episode in store.load()} if store.shards else set()
    for task in set(tasks) - have:
        found = [e for source, n in EPISODES.items() for e in collect_scripted(source, [task], n, seed=SEEDS[part])]
        store.append(found, make_spec("metaworld", [task]))
    return [episode for episode in store.load() if episode.task in tasks]


def until_success(episode: Episode) -> Episode:
    """Cut an episode at its first success."""
    hits = episode.success.nonzero()
    return episode.cut(0, int(hits[0]) + 1) if len(hits) else episode


@torch.no_grad()
def row(model: WorldActionModel, name: str, episodes: list[Episode], start: WorldActionModel) -> str:
    """Return a line of the table: how the read-out of a model, which was that of `start`, judges one task."""
    task, said, moved = torch.tensor([model.spec.tasks.index(episodes[0].task)]), [], []
    for episode in episodes:
        frames = {"state": episode.state[None, 1:]}
        said.append(model.success_and_progress(frames, task)[0][0])
        moved.append((said[-1] - start.success_and_progress(frames, task)[0][0]).abs())
    first = [first_success(p) for p in said]
    truth = [int(e.success.nonzero()[0]) if e.is_success else None for e in episodes]
    n_failed, n_solved = truth.count(None), len(truth) - truth.count(None)
    false = sum(f is not None and t is None for f, t in zip(first, truth, strict=True))
    missed = sum(f is None and t is not None for f, t in zip(first, truth, strict=True))
    early = sum(f is not None and t is not None and f < t - EARLY for f, t in zip(first, truth, strict=True))
    labels = torch.cat([episode.success for episode in episodes])
    errors = f"{false} of {n_failed} | {missed} of {n_solved} | {early} of {n_solved}"
    judged = f"{auc(torch.cat(said), labels):.3f} | {errors}"
    counts = f"{float(torch.cat(moved).mean()):.4f} | {len(labels)}, {int(labels.sum())}"
    return f"{episodes[0].task} | {name} | {judged} | {counts}"


def first_success(p: Tensor) -> int | None:
    """Return the first step at which a dream would end as a success, given the probabilities (n_steps,)."""
    hits = solved((p >= SURE)[None], torch.zeros(1, dtype=torch.bool))[0].nonzero()
    return int(hits[0]) if len(hits) else None


def auc(p: Tensor, labels: Tensor) -> float:
    """Return the share of pairs of a success and another frame in which the success has the larger probability."""
    larger = (p[labels][:, None] - p[~labels]).sign()
    return float((larger + 1).mean() / 2)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="metaworld-tuned")
    parser.add_argument("--tasks", nargs="+", default=["faucet-open", "plate-slide"], help="that it never saw")
    parser.add_argument("--known", nargs="+", default=["push", "hammer", "drawer-open"], help="that it was trained on")
    parser.add_argument("--most-solved", type=int, default=100, help="recorded successes of a task to learn from")
    parser.add_argument("--out", type=Path, required=True, help="folder for the recorded episodes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
