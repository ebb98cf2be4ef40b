"""`torchrun -m rl.cli train`: two processes judge as one does, repeat to the bit, and survive faults together."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rl import cli
from world_model.checkpoint import load_checkpoint

FAULTS = '''
"""A reward term that is 0; in process 1 its n-th call goes wrong, once."""
import os
import signal
import torch
from pathlib import Path

calls = 0

def term(t):
    global calls
    calls += 1
    nothing = torch.zeros(len(t.action))
    if os.environ.get("RANK") != "1" or calls != int(os.environ.get("AT", "0")) or Path("done").exists():
        return nothing
    Path("done").touch()
    if os.environ["FAULT"] == "nan":
        return nothing * float("nan")
    os.kill(os.getpid(), signal.SIGKILL)
'''

AT = "8"
"""The call in the second rollout in the simulator, after which a first state was saved."""


@pytest.fixture
def words(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those of a small run with all phases and a term that can go wrong; a state is saved after every rollout."""
    monkeypatch.chdir(tmp_path)
    Path("faults.py").write_text(FAULTS)
    words = [*tiny, "total_timesteps=1024", "ppo.imitation_steps=3", "ppo.critic_warmup_steps=2", "dream.n_episodes=3"]
    words += ["env.n_envs=8", "dream.refit_steps=3", "gate.n_dreams=1", "eval.n_paired=0", "save_minutes=0"]
    return [*words, "rewards.faults={func: faults.py:term, weight: 1.0}"]


def folder_of(name: str) -> Path:
    (folder,) = Path("runs", name).iterdir()
    return folder


def everything(folder: Path) -> dict[str, Any]:
    """What a finished run leaves, but for clocks and the name."""
    _, weights = load_checkpoint(folder / "checkpoints" / "last")
    texts = {name: (folder / name).read_text() for name in ("metrics.jsonl", "eval.jsonl")}
    return {name: text.replace(folder.parent.name, "NAME") for name, text in texts.items()} | {"weights": weights}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["metrics.jsonl"] == other["metrics.jsonl"] and one["eval.jsonl"] == other["eval.jsonl"]
    assert all(torch.equal(value, other["weights"][name]) for name, value in one["weights"].items())


def before(folder: Path) -> list[dict[str, Any]]:
    """The episodes of the first evaluation."""
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return [row | {"run": ""} for row in rows if row["phase"] == "before"]


def own_lines(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("wamtune:")]


@pytest.mark.slow  # five runs, each of which imports torch several times
def test_a_run_in_two_processes(torchrun: Any, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It repeats to the bit, also if a process is killed: torchrun starts them again, or the user does."""
    train = ["-m", "rl.cli", "train", "mix", *words]
    whole = torchrun(*train, "name=whole")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count("run folder: ") == whole.stdout.count("champion: ") == 1 and not own_lines(whole.stderr)
    expected = everything(folder_of("whole"))

    # The first evaluation is the one of a single process.
    assert cli.main(["train", "mix", *words, "total_timesteps=256", "name=one"]) == 0, capsys.readouterr()
    assert before(folder_of("one")) == before(folder_of("whole"))

    # Process 1 is killed in a rollout, and torchrun starts both again.
    again = torchrun(*train, "name=again", restarts=1, FAULT="kill", AT=AT)
    assert again.returncode == 0 and Path("done").exists(), again.stderr
    assert re.search(r"^wamtune: process 1 does not answer any more", again.stderr, re.M), again.stderr
    same(everything(folder_of("again")), expected)

    # Without restarts it ends with one line, and the same command goes on with the folder.
    Path("done").unlink()
    ended = torchrun(*train, "name=pieces", FAULT="kill", AT=AT)
    assert ended.returncode != 0 and len(own_lines(ended.stderr)) == 1, ended.stderr
    assert "wamtune: process 1 does not answer any more: it was killed" in ended.stderr
    shutil.copytree(folder_of("pieces"), "runs/fewer/20250101-000000-s0")
    rest = torchrun("-m", "rl.cli", "train", str(folder_of("pieces")))
    assert rest.returncode == 0, rest.stderr
    same(everything(folder_of("pieces")), expected)

    # One process goes on from the champion.
    capsys.readouterr()
    assert cli.main(["train", str(folder_of("fewer"))]) == 0
    out = capsys.readouterr().out
    assert "the saved state is that of 2 processes, and there are 1 now: the run goes on from its champion" in out
    shutil.rmtree("runs")


def test_a_bad_number_in_one_process_ends_all_with_one_line(torchrun: Any, words: list[str]) -> None:
    done = torchrun("-m", "rl.cli", "train", "sim", *words, "name=bad", FAULT="nan", AT=AT)
    assert done.returncode != 0 and len(own_lines(done.stderr)) == 1, done.stderr
    (line,) = own_lines(done.stderr)
    assert line.startswith("wamtune: process 1: ") and "'faults'" in line, line
    assert (folder_of("bad") / "bad_numbers.safetensors").is_file()


def test_all_processes_go_back_after_a_bad_number_in_one(torchrun: Any, words: list[str]) -> None:
    done = torchrun("-m", "rl.cli", "train", "sim", *words, "name=back", "on_bad_numbers=go_back", FAULT="nan", AT=AT)
    assert done.returncode == 0, done.stderr
    assert "going back to the last saved state, for the 1. time of 3" in done.stdout and not own_lines(done.stderr)


def test_a_mistake_is_told_in_one_line(torchrun: Any, words: list[str]) -> None:
    for word, line in {
        "env.n_envs=7": "env.n_envs=7: expected a multiple of the 2 processes, which share it equally; try 6 or 8",
        "env.n_env=8": "unknown key 'env.n_env'",
    }.items():
        done = torchrun("-m", "rl.cli", "train", "sim", *words, "name=wrong", word)
        assert done.returncode != 0 and len(own_lines(done.stderr)) == 1, done.stderr
        assert line in done.stderr
        assert not list(Path("runs").glob("wrong/*"))


GATE = """
import json
import sys
from pathlib import Path

import torch

from rl.compose import compose
from rl.config import TrainConfig
from rl.ppo.distributed import Distributed
from rl.seeds import START
from rl.verbs.prepare import prepare

with Distributed.join() as distributed, distributed.together():
    config = compose("mix", sys.argv[1:], TrainConfig)
    post = prepare(config, distributed=distributed)
    results = post.evaluate()
    starts = post.eval_envs.starts(range(START.start, START.start + 5))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a challenger
        for parameter in post.policy.actor_parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    verdict = post.gate("dream", 0).verdict
    found = [result.to_row() for result in results], vars(verdict), starts.seed.tolist(), starts.task.tolist()
    state = starts.context["state"].tolist()
    if distributed.is_first:
        Path(f"{distributed.world_size}.json").write_text(json.dumps([*found, state, post.state.gate_steps]))
    seeds = [episode.seed for episode in post.dreams.episodes]  # those of champion and challenger, in all processes
    assert sorted(seeds) == sorted(2 * [*range(config.gate.seed, config.gate.seed + 12)])
    post.close()
"""


def test_evaluation_gate_and_starts_are_those_of_one_process(torchrun: Any, words: list[str]) -> None:
    """Also of two tasks, whose episodes take turns, and with numbers of episodes that are not shared equally."""
    words = [word for word in words if not word.startswith(("env.tasks", "gate.", "eval.", "rewards."))]
    words += ["env.tasks=[button-press-topdown, push]", "eval.n_episodes=7", "eval.n_paired=0"]
    words += ["gate.n_episodes=6", "gate.max_episodes=12", "gate.alpha=0.001", "gate.n_dreams=2"]
    Path("program.py").write_text(GATE)
    for n in (1, 2):
        done = torchrun("program.py", *words, n=n)
        assert done.returncode == 0, done.stderr
    assert json.loads(Path("1.json").read_text()) == json.loads(Path("2.json").read_text())
