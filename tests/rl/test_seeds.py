"""Ranges of seeds: none overlaps another, the table names them all, and each use begins where it always did."""

from __future__ import annotations

import itertools

import torch

from rl import seeds
from rl.config import EvalConfig, GateConfig, TrainConfig
from rl.verbs.options import DreamOptions, EvalOptions
from world_model.seeds import NOISE_SEED, PROCESS_SEED

RANGES = {name: value for name, value in vars(seeds).items() if isinstance(value, range)}


def test_no_two_ranges_overlap() -> None:
    in_order = sorted(RANGES.items(), key=lambda pair: pair[1].start)
    assert len(in_order) == 14
    for (name, before), (other, after) in itertools.pairwise(in_order):
        assert len(before) > 0 and before.stop <= after.start, f"{name} runs into {other}"
    assert in_order[-1][1].stop <= NOISE_SEED  # or the noise on an observation would be that of some policy


def test_the_table_names_every_range() -> None:
    rows = [line.split("|")[1].strip() for line in (seeds.__doc__ or "").splitlines() if line.startswith("| `")]
    assert rows == [f"`{name}`" for name in RANGES]


def test_each_use_begins_where_it_always_did() -> None:
    first = {name: its.start for name, its in RANGES.items()}
    assert first == {
        "EXPERT": 0,
        "NOISY": 100_000,
        "RANDOM": 200_000,
        "POLICY": 300_000,
        "HELDOUT": 500_000,
        "HELDOUT_POLICY": 501_000,
        "STAGE_EVAL": 700_000,
        "GUARD": 800_000,
        "GATE": 1_000_000,
        "EVAL": 2_000_000,
        "EXPLORE": 50_000_000,
        "TWIN": 60_000_000,
        "TWIN_EVAL": 80_000_000,
        "START": 100_000_000,
    }
    assert (seeds.COMPARE, seeds.JUDGE_REFIT, seeds.GO_BACK, seeds.CAMERA) == (1_000_000, 1_000_003, 1_000, 0)
    assert (GateConfig().seed, EvalConfig().seed) == (1_000_000, 2_000_000)
    assert EvalOptions().seed == DreamOptions().seed == 2_000_000


def test_torch_tells_the_seeds_of_processes_and_callbacks_apart() -> None:
    ours = [seed + rank * PROCESS_SEED for seed in (0, 1, 2**31 - 1) for rank in range(8)] + [seeds.CALLBACK_EVAL]
    draws = {tuple(torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in ours}
    assert len(draws) == len(ours)


def test_the_default_gates_and_evaluation_stay_in_their_ranges() -> None:
    config = TrainConfig(name="x")
    assert config.n_gates(True) * config.gate.max_episodes <= len(seeds.GATE)
    assert config.n_gates(True) * config.gate.n_guard <= len(seeds.GUARD)
    assert config.eval.seeds.stop <= seeds.EVAL.stop
