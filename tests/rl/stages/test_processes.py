"""`torchrun -m rl.cli pretrain` and `tune`: processes that train together repeat to the bit, also after a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rl import cli
from rl.ppo.distributed import Distributed
from rl.runs.folder import read_rows
from rl.stages.run import load_state, own_state
from tests.rl.stages.test_run import PRETRAIN, TUNE
from world_model.checkpoint import load_checkpoint

FAULT = '''
"""wamtune, where process 1 is killed at a step of the optimizer, once."""
import os, signal, sys
from pathlib import Path
from rl import cli
from world_model.wam import training

steps, step = [], training._step

def faulty(*args):
    steps.append(1)
    if os.environ["RANK"] == "1" and len(steps) == int(os.environ["AT"]) and not Path("done").exists():
        Path("done").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    step(*args)

training._step = faulty
sys.exit(cli.main(sys.argv[1:]))
'''


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with presets."""
    monkeypatch.chdir(tmp_path)
    Path("pretrain.yaml").write_text(PRETRAIN)
    Path("tune.yaml").write_text(TUNE)
    Path("faulty.py").write_text(FAULT)


def folder_of(name: str) -> Path:
    (folder,) = Path("runs", name).iterdir()
    return folder


def weights(name: str) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder_of(name) / "checkpoints" / "last")[1]


def same(one: str, other: str) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_two_processes_pretrain_one_model(torchrun: Any) -> None:
    done = torchrun("-m", "rl.cli", "pretrain", "pretrain.yaml", "name=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("checkpoint: ") == 1  # process 0 alone prints
    assert cli.main(["pretrain", "pretrain.yaml", "name=one"]) == 0
    # The same first weights and the same data; other random numbers, and half a batch each.
    losses = {name: read_rows(folder_of(name) / "metrics.jsonl")[0]["pretrain/video"] for name in ("one", "two")}
    assert losses["two"] == pytest.approx(losses["one"], rel=0.3) and losses["two"] != losses["one"]
    assert not same("one", "two")
    assert load_state(folder_of("two")) == {}  # finished


@pytest.mark.slow  # six runs, each of which imports torch twice
def test_stages_repeat_to_the_bit_also_after_a_fault(torchrun: Any) -> None:
    for name in ("a", "b"):
        assert torchrun("-m", "rl.cli", "pretrain", "pretrain.yaml", f"name={name}").returncode == 0
    assert same("a", "b")
    # Step 15: a state of step 10 was saved.
    done = torchrun("faulty.py", "pretrain", "pretrain.yaml", "name=c", restarts=1, AT="15")
    assert done.returncode == 0, done.stderr
    assert Path("done").exists() and same("a", "c")
    for name, at in (("d", "0"), ("e", "35")):  # 35: in the refit
        Path("done").unlink(missing_ok=True)
        words = "faulty.py", "tune", "tune.yaml", f"name={name}", f"checkpoint={folder_of('a')}"
        done = torchrun(*words, restarts=1, AT=at)
        assert done.returncode == 0, done.stderr
    assert Path("done").exists() and same("d", "e")


class Second(Distributed):
    """Process 1 of `n`."""

    rank = 1

    def __init__(self, n: int) -> None:
        self.world_size = n


def test_a_process_goes_on_with_its_own_random_numbers() -> None:
    first, second = torch.Generator().manual_seed(1).get_state(), torch.Generator().manual_seed(2).get_state()
    new = torch.Generator().manual_seed(3)
    state = {"step": 5, "generator": first, "other_generators": [second]}
    assert torch.equal(own_state(state, new, Distributed())["generator"], first)
    assert torch.equal(own_state(state, new, Second(2))["generator"], second)
    # Another number of processes than before.
    assert torch.equal(own_state(state, new, Second(3))["generator"], new.get_state())
    alone = {"step": 5, "generator": first}  # saved by a single process
    assert torch.equal(own_state(alone, new, Second(2))["generator"], new.get_state())
