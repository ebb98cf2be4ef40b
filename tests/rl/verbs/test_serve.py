"""`wamtune serve` as a user meets it, and a robot that is run by it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl import cli
from rl.build import make_denoiser
from rl.compose import compose
from rl.config import PolicyConfig
from rl.deploy.remote_client import Client
from rl.policies.saving import save_denoiser
from rl.policies.wam import ModelPilot
from rl.verbs import serve
from rl.verbs.options import ServeOptions
from rl.verbs.serve import load_served
from world_model.checkpoint import MODEL
from world_model.extras import pip_line
from world_model.files import sha256
from world_model.flow import seeded_noise
from world_model.wam.store import load_model

ROOT = Path(cli.__file__).resolve().parent.parent
OWN = ["policy={func: examples/own_policy.py:OwnPolicy, params: {state_dim: 4, action_dim: 2}}", "task=reach", "hz=10"]
OWN += ["low=-1,-1", "high=1,1"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").mkdir()
    shutil.copy(ROOT / "examples" / "own_policy.py", tmp_path / "examples")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command; while it waits for Ctrl-C, call `during` with the url, then press it. Return code and output."""

    def run(*words: str, during: Callable[[str], Any] = lambda url: None) -> tuple[int, str]:
        said: list[str] = []

        def wait() -> None:
            said.append(capsys.readouterr().out)
            found = re.search(r"listening at (\S+),", said[0])
            assert found is not None
            during(found[1])
            raise KeyboardInterrupt

        monkeypatch.setattr(serve, "_wait", wait)
        code = cli.main(["serve", *words, "port=0"])
        out, err = capsys.readouterr()
        return code, "".join(said) + out + err

    return run


def test_a_checkpoint_is_served_with_its_dream(checkpoint: Path, call: Callable[..., tuple[int, str]]) -> None:
    model = load_model(checkpoint)

    def ask(url: str) -> None:
        with Client(url, sha256=sha256(checkpoint / MODEL)) as client:
            obs, task = torch.randn(1, 2, model.spec.state_dim), torch.tensor([1])
            pilot = ModelPilot(model, 2)
            noise = seeded_noise(torch.tensor([3]), torch.tensor([4]), pilot.noise_shape)
            here = pilot.act({"state": obs, "task": task}, noise, torch.zeros(1, 8, 4), torch.tensor([0]))
            there = client.act({"state": obs.numpy()}, [model.spec.tasks[1]], noise.numpy())
            assert there.tobytes() == here.numpy().tobytes()
            found = client.reset(3, seed=1)
            assert found["state"].shape == (3, 2, model.spec.state_dim)
            assert client.step_chunk(np.zeros((3, 8, 4))).executed.all()

    code, out = call(str(checkpoint), "dream=true", during=ask)
    assert code == 0, out
    assert out.startswith(f"{checkpoint}: sha256 ") and "token" not in out and "messages of at most 0.1 MB" in out


def test_beyond_this_computer_a_token_is_made(checkpoint: Path, call: Callable[..., tuple[int, str]]) -> None:
    served = load_served(str(checkpoint), ServeOptions())
    assert served.dream is None
    code, out = call(str(checkpoint), "host=0.0.0.0")
    assert code == 0 and "not encrypted: whoever reads the line has the token" in out
    token = re.search(
        r"^token: (\S{32}); wamtune deploy reads it from the environment variable WAMTUNE_TOKEN$", out, re.M
    )
    assert token is not None and token[1] not in call(str(checkpoint), "host=0.0.0.0")[1]  # another one each time


def test_the_token_of_the_environment_is_not_printed(
    checkpoint: Path, call: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAMTUNE_TOKEN", "secret")
    code, out = call(str(checkpoint), during=lambda url: Client(url, "secret").close())
    assert code == 0 and "token: the one in this environment" in out and "secret" not in out


def test_a_robot_is_run_by_it(checkpoint: Path, call: Callable[..., tuple[int, str]]) -> None:
    """`wamtune deploy URL run` on a fake robot, in a dry run."""
    codes: list[int] = []

    def deploy(url: str) -> None:
        words = "robot=fake task=push limits.low=-1,-1,-1,-1 limits.high=1,1,1,1 limits.max_change=2,2,2,2".split()
        words += "limits.still=0,0,0,0 limits.max_age_s=60 dry_run=true max_steps=3 max_late=1000".split()
        spec = load_model(checkpoint).spec
        words.append(f"params={{state: {names(spec)}, action: [action.0, action.1, action.2, action.3]}}")
        codes.append(cli.main(["deploy", url, "run", *words]))

    code, out = call(str(checkpoint), during=deploy)
    assert (code, codes) == (0, [0]), out
    assert re.search(r"^ws://\S+: \S+, sha256 \w{12}; a plan takes \d+ ms, the budget is 50 ms$", out, re.M), out
    assert "would send" in out


def names(spec: Any) -> str:
    from rl.robots.api import names_of

    return f"[{', '.join(names_of(spec)[0])}]"


def test_a_policy_of_your_own_is_served(call: Callable[..., tuple[int, str]]) -> None:
    def ask(url: str) -> None:
        with Client(url) as client:
            assert client.tasks == ("reach",) and client.server["sha256"] == ""
            assert client.act({"state": np.zeros((2, 1, 4))}, ["reach"] * 2).shape == (2, 8, 2)

    code, out = call("new", *OWN, during=ask)
    assert code == 0 and out.startswith("new: sha256 unknown")


def test_a_class_of_your_own_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """What `wamtune train` saved of it says so, but a file must not choose the code that runs."""
    actor = PolicyConfig("examples/own_policy.py:OwnPolicy", {"state_dim": 4, "action_dim": 2})
    denoiser = make_denoiser(actor, "cpu")
    assert denoiser is not None
    save_denoiser(Path("mine/checkpoints/last"), denoiser, actor, {}, "")
    assert cli.main(["serve", "mine", "port=0"]) == 2
    line = "mine: it was trained from a class of your own; name that with policy=FILE.py:Class"
    assert capsys.readouterr().err == f"wamtune: {line}\n"
    served = load_served("mine", compose(None, OWN, ServeOptions))
    assert served.sha256 == sha256(Path("mine/checkpoints/last") / MODEL)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "serve needs a checkpoint or a run folder: wamtune serve metaworld-tuned; see `wamtune ls`"),
        (["metaworld-tuned", "prot=1"], "unknown key 'prot' on the command line; did you mean 'port'?"),
        (["metaworld-tuned", "port=70000"], "port=70000: expected 0 to 65535"),
        (["metaworld-tuned", "max_rows=0"], "max_rows=0: expected at least 1"),
        (["metaworld-tuned", "key=x"], "key=x: there is no certificate to it; name one with certificate=FILE"),
        (["metaworld-tuned", "certificate=x"], "certificate=x key=: cannot use them ("),
        (["metaworld-tuned", "host=nowhere.invalid"], "host=nowhere.invalid port=8000: cannot listen there ("),
        (["metaworld-tuned", "hz=10"], "hz: metaworld-tuned knows this itself; leave it out"),
        (["metaworld-tuned", "dream=true", "images=front"], "images=front: expected cameras of the world model: none"),
        (["metaworld-tuned", "dream=true", "episodes=none"], "none: "),
        (["metaworld-pretrained"], "metaworld-pretrained cannot act, it only predicts"),
        (["ws://localhost:1"], "serve ws://localhost:1: it is a server already; name a checkpoint or a run folder"),
        (["new", *OWN[:1]], "task=: new does not say it; set it to that of its training, such as task=push"),
        (["new", *OWN[:3]], "low=: new does not say it; set it to that of its training, such as low=-1.0,-1.0"),
        (["new", *OWN[:3], "low=1", "high=-1"], "spec.action_low, action_high: "),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert cli.main(["serve", *words]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"wamtune: {line}") and err.count("\n") == 1 and out == ""


def test_ctrl_c_ends_it(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "rl.cli", "serve", str(checkpoint), "port=0"]

    def listen() -> None:  # a shell without job control starts the tests in the background with SIGINT ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, preexec_fn=listen
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline(), process.stdout.readline()]
        assert said[1].startswith("listening at ws://127.0.0.1:"), said
        Client(said[1].split()[2].rstrip(",")).close()
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "" and process.wait() == 0


@pytest.mark.parametrize("name", ["msgpack", "websockets"])
def test_what_is_missing_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    for loaded in [module for module in sys.modules if module.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    assert cli.main(["serve", "metaworld-tuned"]) == 2
    assert capsys.readouterr().err == f"wamtune: wamtune serve needs {name}; install it with {pip_line('serve')}\n"
    assert cli.main(["deploy", "ws://127.0.0.1:1", "run", "robot-sim"]) == 2
    line = "there is no server" if name == "msgpack" else "a policy on a server needs websockets; "
    assert capsys.readouterr().err.startswith(f"wamtune: ws://127.0.0.1:1: {line}")
