"""`torchrun -m rl.cli pretrain` and `tune`: processes that train together repeat to the bit, also after a fault."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl import cli
from rl.ppo.distributed import Distributed
from rl.runs.folder import read_rows
from rl.stages.run import load_state, own_state
from tests.rl.conftest import ROOT
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
    here = os.environ["RANK"] == os.environ.get("VICTIM", "1") and len(steps) == int(os.environ["AT"])
    if here and not Path("done").exists():
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
    one, two = (
        [row["pretrain/video"] for row in read_rows(folder_of(name) / "metrics.jsonl") if "pretrain/video" in row]
        for name in ("one", "two")
    )
    assert np.mean(two) == pytest.approx(np.mean(one), rel=0.3) and two != one
    assert not same("one", "two")
    assert load_state(folder_of("two")) == {}  # finished


@pytest.mark.slow
def test_two_machines_train_what_two_processes_of_one_train(torchrun: Any) -> None:
    """The machines are two calls of torchrun on this one, which talk over the loopback."""
    words = ["-m", "rl.cli", "pretrain", "pretrain.yaml", "threads=1"]
    assert torchrun(*words, "name=one").returncode == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen([*command, f"--node-rank={i}", *words, "name=two"], env=env, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outputs = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert "checkpoint: " in outputs[0] and not outputs[1]
    assert same("one", "two")


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


def test_processes_that_share_the_layers_learn_what_those_with_whole_layers_learn(torchrun: Any) -> None:
    """Each has half of the layers' weights and of the optimizer's state; a saved state fits any number of them."""
    words = "-m", "rl.cli", "pretrain", "pretrain.yaml"
    for name, share in (("whole", "false"), ("shared", "true")):
        done = torchrun(*words, f"name={name}", f"shard={share}")
        assert done.returncode == 0, done.stderr
    rows = {name: read_rows(folder_of(name) / "metrics.jsonl") for name in ("whole", "shared")}
    losses = {name: [row["pretrain/video"] for row in of if "pretrain/video" in row] for name, of in rows.items()}
    assert len(losses["whole"]) == 4
    assert losses["shared"] == pytest.approx(losses["whole"], rel=1e-4)
    whole, shared = weights("whole"), weights("shared")
    assert whole.keys() == shared.keys()
    for name, value in whole.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-3)


MEMORY = """
import torch
from torch.distributed.tensor import DTensor
from rl.ppo.distributed import Distributed
from rl.envs.sim import make_spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.sharding import shard

with Distributed.join() as distributed, distributed.together():
    config = ModelConfig(width=320, world_width=768, action_width=256)
    model = WorldActionModel(config, make_spec("metaworld", ["push"]))
    weights = list(model.parameters())
    n = sum(weight.numel() for weight in weights)
    shard(model, distributed.world_size)
    optimizer = torch.optim.AdamW(model.parameters(), fused=False)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    kept = [*model.parameters(), *(v for of in optimizer.state.values() for v in of.values())]
    kept = sum((v.to_local() if isinstance(v, DTensor) else v).numel() for v in kept)
    print(kept / (3 * n))
"""


@pytest.mark.slow
def test_a_process_keeps_half_of_a_model_and_its_optimizer(torchrun: Any) -> None:
    Path("memory.py").write_text(MEMORY)
    done = torchrun("memory.py")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.6


@pytest.mark.slow
def test_a_state_of_shared_layers_goes_on_in_one_process_and_back(torchrun: Any) -> None:
    # Two processes that share the layers are killed after step 10 of 20, and one process goes on.
    assert torchrun("faulty.py", "pretrain", "pretrain.yaml", "name=a", "shard=true", AT="15").returncode != 0
    state = load_state(folder_of("a"))
    assert state is not None and state["step"] == 10
    assert cli.main(["pretrain", str(folder_of("a"))]) == 0
    assert load_state(folder_of("a")) == {}
    # One process is killed after step 10, and two that share the layers go on.
    Path("done").unlink()
    assert cli.main(["pretrain", "pretrain.yaml", "name=b"]) == 0
    words = "faulty.py", "pretrain", "pretrain.yaml", "name=c", "shard=true"
    assert torchrun(*words, n=1, AT="15", VICTIM="0").returncode != 0
    state = load_state(folder_of("c"))
    assert state is not None and state["step"] == 10
    done = torchrun("-m", "rl.cli", "pretrain", str(folder_of("c")))
    assert done.returncode == 0, done.stderr
    for name, value in weights("b").items():  # other batches in the second half, so other weights, of the same size
        assert weights("c")[name].shape == value.shape
    rows = {name: read_rows(folder_of(name) / "metrics.jsonl") for name in ("b", "c")}
    losses = {name: [row["pretrain/video"] for row in of if "pretrain/video" in row] for name, of in rows.items()}
    assert losses["c"][:2] == losses["b"][:2] and losses["c"] == pytest.approx(losses["b"], rel=0.5)
