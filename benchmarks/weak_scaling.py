"""Measure weak scaling: how much slower the same work for each process becomes when there are more processes.

    python benchmarks/weak_scaling.py [--processes 2] [--turns 9] [--windows 256]

Each process has one thread and the same work, whatever their number: 256 dreams of four chunks, and 5 epochs of PPO on
them in batches of 512; twenty chunks in 32 simulators; 20 steps of pre-training on 256 windows each. These are the
numbers of dreams, epochs and rows in the presets, except that their dreams have 20 chunks. In each turn process 0 works
alone while the others wait, and then all work. Efficiency is the time of process 0 alone divided by the time of all,
the median over the turns with the lowest and the highest; 1 means that nothing is lost. It needs idle cores.
`of processor` is the same for the processor time that process 0 takes, waiting left out, and hardly depends on what
else the machine does. `exchange` is the share of the time that it spends in exchanges, where it also waits for the
slowest one; `calls` and `MB` are those of all_reduce in one job: gradients in shared memory are not among them.
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
EXCHANGES = "sum", "average_gradients"
"""Methods of `Distributed` that the parts use."""

Found = dict[str, float]
"""Of one job: `wall` and `processor` seconds, `exchange` (share of the wall time), `calls` and `megabytes`."""

Turn = dict[str, tuple[Found, Found]]
"""For each part what process 0 found alone, and with all processes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9, help="how often each part is measured alone and together")
    parser.add_argument("--windows", type=int, default=256, help="of a process in each step of pre-training")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # this is one of the processes
    options = parser.parse_args()
    if options.work:
        work(options.turns, options.windows)
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}"]
    command += [__file__, "--work", f"--turns={options.turns}", f"--windows={options.windows}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    print_table([json.loads(line) for line in done.stdout.splitlines()], options.processes)


def print_table(turns: list[Turn], n_processes: int) -> None:
    """Print a line for each part."""
    titles = "1 process, s", f"{n_processes} processes, s", "efficiency", "of processor", "exchange", "calls", "MB"
    print(f"{'part':>18}", *(f"{title:>18}" for title in titles))
    for part in turns[0]:
        ones, alls = zip(*(turn[part] for turn in turns), strict=True)

        def median(found: tuple[Found, ...], name: str) -> float:
            return statistics.median(one[name] for one in found)

        def efficiency(name: str, ones: tuple[Found, ...] = ones, alls: tuple[Found, ...] = alls) -> str:
            found = sorted(100 * one[name] / both[name] for one, both in zip(ones, alls, strict=True))
            return f"{statistics.median(found):.0f} % ({found[0]:.0f} to {found[-1]:.0f})"

        print(
            f"{part:>18} {median(ones, 'wall'):>18.2f} {median(alls, 'wall'):>18.2f} {efficiency('wall'):>18} "
            f"{efficiency('processor'):>18} {100 * median(alls, 'exchange'):>16.1f} % {median(alls, 'calls'):>18.0f} "
            f"{median(alls, 'megabytes'):>18.1f}"
        )


def work(n_turns: int, n_windows: int) -> None:
    """Do the work of one process; process 0 prints what it found in each turn, as JSON."""
    torch.set_num_threads(1)
    with Distributed.join() as group, group.together():
        of_one, of_all = jobs(Distributed(), group.rank, n_windows), jobs(group, group.rank, n_windows)
        for job in (*of_one.values(), *of_all.values()):  # warms up
            job()
        for _ in range(n_turns):
            turn = {}
            for part in of_one:
                alone = group.by_first(lambda part=part: timed(of_one[part], Distributed()))  # type: ignore[misc]
                turn[part] = alone, timed(of_all[part], group)
            print(json.dumps(turn), flush=True)


def jobs(distributed: Distributed, seed: int, n_windows: int) -> dict[str, Callable[[], None]]:
    """Return the job of each part, for a process of a group or for one that works alone."""
    model, pretrained = load_model(CHECKPOINT), load_model(CHECKPOINT)
    sim = SimEnv("metaworld", 32, [TASK], task_names=model.spec.tasks, seed=seed)
    ppo = PPO(flow_policy(model, sim), PPOConfig(n_steps=4, n_epochs=5), distributed=distributed)
    sim.record(True)
    ppo.collect(sim, 19)
    starts = StartStates.from_episodes(sim.record(False), model.spec.tasks, model.config.n_context_frames)
    dream = DreamEnv(model, 256, starts, horizon=4)
    windows = model.windows(collect_scripted("expert", [TASK], 10))
    stage = StageConfig(n_steps=20, batch_size=n_windows * distributed.world_size)

    def update() -> None:
        ppo.update(Samples.from_rollout(ppo.collect(dream, 4), 0.999, 0.95))

    def simulate() -> None:
        with torch.no_grad():
            for _ in range(20):
                sim.step_chunk(torch.rand(32, 8, 4) * 2 - 1)

    def pretrain() -> None:
        train_stage("pretrain", pretrained, windows, stage, share=distributed.share)

    return {"dream and update": update, "simulator": simulate, "pre-training": pretrain}


def timed(job: Callable[[], None], distributed: Distributed) -> Found:
    """Return what a job takes; all processes begin together, and the slowest one counts."""
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

    distributed.any(False)
    for name, exchange in exchanges.items():
        setattr(distributed, name, clocked(exchange))
    torch.distributed.all_reduce = counted
    begun, worked = time.perf_counter(), time.process_time()
    job()
    worked = time.process_time() - worked
    torch.distributed.all_reduce = all_reduce
    distributed.any(False)
    seconds = time.perf_counter() - begun
    for name in exchanges:
        delattr(distributed, name)
    return {
        "wall": seconds,
        "processor": worked,
        "exchange": inside / seconds,
        "calls": calls,
        "megabytes": n_bytes / 1e6,
    }


if __name__ == "__main__":
    main()
