"""Measure weak scaling: how much slower the same work for each process becomes when there are more processes.

    python benchmarks/weak_scaling.py [--processes 2] [--turns 3] [--windows 256]

Each process has one thread and the same work, whatever their number: 256 dreams of four chunks, and 5 epochs of PPO on
them in batches of 512; twenty chunks in 32 simulators; 20 steps of pre-training on 256 windows each. These are the
numbers of dreams, epochs and rows in the presets, except that their dreams have 20 chunks. Both numbers of processes
take turns in one run. Efficiency is the time of one process divided by the time of several; 1 means that nothing is
lost. It needs idle cores. `of processor` is the same for the processor time that a process takes, waiting left out, and
hardly depends on what else the machine does. `exchange` is the share of the time that a process spends in exchanges,
where it also waits for the slowest one; `calls` and `MB` are those of all_reduce in one job.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from rl.config import PPOConfig
from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.ppo.buffer import Samples
from rl.ppo.distributed import Distributed
from rl.ppo.update import PPO
from rl.stages.collect import collect_scripted
from world_model.dream_env import DreamEnv, StartStates
from world_model.wam.store import load_model
from world_model.wam.training import train_stage
from world_model.wam.training_config import StageConfig

TASK, CHECKPOINT = "push", "metaworld-tuned"
PARTS = "dream and update", "simulator", "pre-training"
EXCHANGES = "sum", "average_gradients"
"""Methods of `Distributed` that the parts use."""

Found = dict[str, float]
"""Of one job: `wall` and `processor` seconds, `exchange` (share of the wall time), `calls` and `megabytes`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="how often each number of processes is measured")
    parser.add_argument("--windows", type=int, default=256, help="of a process in each step of pre-training")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # this is one of the processes
    options = parser.parse_args()
    if options.work:
        work(options.windows)
        return
    counts = (1, options.processes)
    found: dict[int, list[dict[str, Found]]] = {n: [] for n in counts}
    for _ in range(options.turns):
        for n in counts:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
            command += [__file__, "--work", f"--windows={options.windows}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[n].append(json.loads(done.stdout.splitlines()[-1]))
    several = counts[1]
    titles = "1 process, s", f"{several} processes, s", "efficiency", "of processor", "exchange", "calls", "MB"
    print(f"{'part':>18}", *(f"{title:>14}" for title in titles))
    for part in PARTS:

        def median(n: int, name: str, part: str = part) -> float:
            return statistics.median(turn[part][name] for turn in found[n])

        efficiency, of_processor = (100 * median(1, name) / median(several, name) for name in ("wall", "processor"))
        print(
            f"{part:>18} {median(1, 'wall'):>14.2f} {median(several, 'wall'):>14.2f} {efficiency:>12.0f} % "
            f"{of_processor:>12.0f} % {100 * median(several, 'exchange'):>12.1f} % {median(several, 'calls'):>14.0f} "
            f"{median(several, 'megabytes'):>14.1f}"
        )


def work(n_windows: int) -> None:
    """Do the work of one process; process 0 prints what it found for each part, as JSON."""
    torch.set_num_threads(1)
    with Distributed.join() as distributed, distributed.together():
        model = load_model(CHECKPOINT)
        sim = SimEnv("metaworld", 32, [TASK], task_names=model.spec.tasks, seed=distributed.rank)
        policy = flow_policy(model, sim)
        ppo = PPO(policy, PPOConfig(n_steps=4, n_epochs=5), distributed=distributed)
        sim.record(True)
        ppo.collect(sim, 19)
        starts = StartStates.from_episodes(sim.record(False), model.spec.tasks, model.config.n_context_frames)
        dream = DreamEnv(model, 256, starts, horizon=4)
        windows = model.windows(collect_scripted("expert", [TASK], 10))
        stage = StageConfig(n_steps=20, batch_size=n_windows * distributed.world_size)
        pretrained = load_model(CHECKPOINT)

        def update() -> None:
            ppo.update(Samples.from_rollout(ppo.collect(dream, 4), 0.999, 0.95))

        def simulate() -> None:
            with torch.no_grad():
                for _ in range(20):
                    sim.step_chunk(torch.rand(32, 8, 4) * 2 - 1)

        def pretrain() -> None:
            train_stage("pretrain", pretrained, windows, stage, share=distributed.share)

        rows = {name: timed(job, distributed) for name, job in zip(PARTS, (update, simulate, pretrain), strict=True)}
    print(json.dumps(rows))


def timed(job: Callable[[], None], distributed: Distributed) -> Found:
    """Return what three repeats of a job take, in the mean."""
    job()  # warms up
    inside, calls, n_bytes = 0.0, 0, 0
    exchanges = {name: getattr(distributed, name) for name in EXCHANGES}
    all_reduce = torch.distributed.all_reduce

    def clocked(exchange: Callable[..., Any]) -> Callable[..., Any]:
        def exchange_and_time(*values: Any) -> Any:
            nonlocal inside
            begun = time.perf_counter()
            result = exchange(*values)
            inside += time.perf_counter() - begun
            return result

        return exchange_and_time

    def counted(values: torch.Tensor, *words: Any) -> Any:
        nonlocal calls, n_bytes
        calls, n_bytes = calls + 1, n_bytes + values.nbytes
        return all_reduce(values, *words)

    distributed.any(False)  # all begin together
    for name, exchange in exchanges.items():
        setattr(distributed, name, clocked(exchange))
    torch.distributed.all_reduce = counted
    begun, worked = time.perf_counter(), time.process_time()
    for _ in range(3):
        job()
    worked = time.process_time() - worked
    torch.distributed.all_reduce = all_reduce
    distributed.any(False)  # the slowest one counts
    seconds = time.perf_counter() - begun
    for name, exchange in exchanges.items():
        setattr(distributed, name, exchange)
    return {
        "wall": seconds / 3,
        "processor": worked / 3,
        "exchange": inside / seconds,
        "calls": calls / 3,
        "megabytes": n_bytes / 3e6,
    }


if __name__ == "__main__":
    main()
