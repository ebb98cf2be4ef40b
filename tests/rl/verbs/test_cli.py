"""The command line: what it lists, what it refuses, and with which exit code."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from rewards.plugins import load
from rl import cli
from rl.config import TrainConfig
from rl.stages.config import PretrainConfig
from rl.verbs import cp, doctor, ls
from rl.verbs.help import ESSENTIAL, key_names, keys_of
from tests.rl.conftest import Call
from world_model import checkpoint
from world_model.spec import Feature, Spec
from world_model.wam.config import ModelConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model_and_config, save_model

torch.set_num_threads(1)
SPEC = Spec({"state": Feature((3,), "m", {"object_pos": (0, 3)})}, (-1.0,), (1.0,), ("push", "reach"), 80.0)


def make_model() -> WorldActionModel:
    model = WorldActionModel(ModelConfig(width=8, world_width=8, action_width=8, n_layers=1, n_heads=1), SPEC)
    model.codec.fit(torch.randn(16, 2, 3), torch.randn(16, 8, 3))
    model.action_codec.action.fit(torch.randn(16, 1))
    return model


@pytest.fixture
def built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One built-in checkpoint, named like a preset."""
    folder = tmp_path / "builtin"
    metrics = {"success": {"push": {"rate": 0.5}, "mean": {"rate": 0.475}}}
    save_model(folder / "metaworld-tuned", make_model(), "tune", about={"metrics": metrics})
    monkeypatch.setattr(checkpoint, "BUILTIN", folder)
    return folder / "metaworld-tuned"


def test_overview_names_every_verb(call: Call) -> None:
    for words in (("--help",), ("help",)):
        code, out, _ = call(*words)
        assert code == 0
        assert all(f"\n  {verb} " in out for verb in cli.VERBS)


def test_overview_needs_the_standard_library_alone() -> None:
    code = "import rl.cli, sys; rl.cli._overview(); assert not {'torch', 'rewards', 'omegaconf'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(cli.__file__).parent.parent)


@pytest.mark.parametrize("verb", [v for v, (module, _) in cli.VERBS.items() if importlib.util.find_spec(module)])
def test_help_ends_with_two_examples(call: Call, verb: str) -> None:
    code, out, _ = call(verb, "--help")
    assert code == 0 and out.startswith(f"wamtune {verb}")
    examples = out.partition("Examples:\n")[2].splitlines()
    assert len(examples) == 2 and all(line.startswith(f"  wamtune {verb}") for line in examples)


@pytest.mark.parametrize("words", ["", "--help", "train --help", "ls", "completion bash"])
def test_what_only_answers_needs_no_torch(words: str, tmp_path: Path) -> None:
    """It takes seconds to import, and these must answer at once."""
    code = "import sys; from rl.cli import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    root = str(Path(cli.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", code, *words.split()], check=True, cwd=tmp_path, env=env, capture_output=True)


def test_help_shows_the_essential_keys_first_and_every_key_once() -> None:
    text = keys_of(TrainConfig)
    first, *groups = text.split("\n\n")
    assert [line.split("=")[0].strip() for line in first.splitlines()] == list(ESSENTIAL[TrainConfig])
    assert [group.partition(":")[0] for group in groups] == [" others", " env", " dream", " ppo", " gate", " eval"]
    assert "  policy=flow " in first and "flow: the checkpoint's action side" in first  # a comment above its line
    keys = re.findall(r"^  ([\w.]+)=", text, flags=re.MULTILINE)
    assert len(keys) == len(set(keys)) and set(keys) == set(key_names(TrainConfig)) and "ppo.clip_range" in keys


def test_help_lists_keys_with_default_and_comment() -> None:
    lines = keys_of(PretrainConfig).splitlines()
    assert lines[0].split(None, 1) == ["name=", "folder below runs/"]
    assert any(line.startswith("  n_noisy=60 ") and "noise on its actions" in line for line in lines)
    assert any(line.strip().startswith("stage.atoms=0.1,0.0,") for line in lines)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tarin"], "wamtune: unknown verb 'tarin'; did you mean 'train'?\n"),
        (["pretrain", "x", "--seed=3"], "wamtune: unexpected '--seed=3'; options are written as key=value: seed=3\n"),
        (["pretrain", "x", "--seed", "3"], "wamtune: unexpected '--seed'; options are written as key=value: seed=3\n"),
        (["cp", "demo"], "wamtune: cp needs a name and a destination, for example `wamtune cp demo mine.yaml`\n"),
        (["ls", "prests"], "wamtune: ls 'prests': expected one of checkpoints, presets, rewards, tasks\n"),
    ],
)
def test_mistakes_are_one_line(call: Call, words: list[str], line: str) -> None:
    assert call(*words) == (2, "", line)


def test_preset_comes_first(call: Call) -> None:
    for words in ((), ("seed=3",)):
        code, _, err = call("pretrain", *words)
        assert code == 2 and "needs a preset or a run folder" in err
    assert "unknown key 'sed'" in call("pretrain", "metaworld-pretrained", "sed=1")[2]


def test_debug_shows_the_traceback(call: Call) -> None:
    code, _, err = call("--debug", "ls", "prests")
    assert code == 2 and err.startswith("Traceback") and "UserError: ls 'prests'" in err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [(KeyboardInterrupt(), 130, "interrupted"), (KeyError("x"), 1, "--debug"), (UserError("a\nb"), 2, "a b")],
)
def test_exit_codes(call: Call, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str) -> None:
    def fail(words: list[str]) -> None:
        raise error

    monkeypatch.setattr(ls, "run", fail)
    got, _, err = call("ls")
    assert got == code and says in err and err.count("\n") == 1


def test_an_exception_in_a_plug_in_names_its_line(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def broken(words):\n    raise KeyError('state')\n")
    monkeypatch.setattr(ls, "run", load("policy", f"{tmp_path}/mine.py:broken", {}))
    says = "raised KeyError: 'state'; correct it there; --debug shows the whole traceback"
    assert call("ls") == (2, "", f"wamtune: {tmp_path}/mine.py:2 {says}\n")


def test_foreign_package_is_named_before_anything_else(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "foreign_package", lambda: "the package 'rewards' hides ours")
    assert call("ls") == (2, "", "wamtune: the package 'rewards' hides ours\n")


def test_ls(call: Call, built_in: Path) -> None:
    code, out, _ = call("ls")
    assert code == 0
    assert "  metaworld-tuned  tune, 2 tasks, 0." in out and "MB, success 48 %" in out
    assert re.search("\n  metaworld-pretrained +The built-in world model", out)
    assert "1 at every step whose state solves the task, else 0.\n" in out
    assert "50 tasks: assembly" in out
    assert call("ls", "rewards")[1].splitlines()[0] == "rewards"


def test_ls_goes_on_beside_a_damaged_checkpoint(call: Call, built_in: Path) -> None:
    (built_in / "model.safetensors").write_bytes(b"")
    code, out, _ = call("ls", "checkpoints")
    assert code == 0 and "truncated" in out


def test_headline_of_foreign_metrics_is_empty() -> None:
    assert ls.headline({"success": 0.5}) == ls.headline({}) == ""
    assert ls.headline({"prediction": {"mean": {"error_ratio": 0.123}}}) == "prediction error 0.12 of standing still"


def test_cp_preset_and_checkpoint_of_one_name(tmp_path: Path, built_in: Path) -> None:
    cp.run(["metaworld-tuned", str(tmp_path / "mine.yaml")])
    assert (tmp_path / "mine.yaml").read_text().startswith("# The built-in start")
    cp.run(["metaworld-tuned", str(tmp_path / "mine")])
    assert load_model_and_config(tmp_path / "mine")[1]["stage"] == "tune"
    (tmp_path / "there").mkdir()
    cp.run(["metaworld-pretrained", str(tmp_path / "there")])
    assert (tmp_path / "there" / "metaworld-pretrained.yaml").is_file()


def test_cp_never_overwrites(tmp_path: Path, built_in: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match="not touched"):
        cp.run(["metaworld-tuned", str(tmp_path / "mine.yaml")])
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    cp.run(["metaworld-tuned", str(tmp_path / "hub")])
    with pytest.raises(UserError, match="not touched"):  # it would lie inside the first, and go with it everywhere
        cp.run(["metaworld-tuned", str(tmp_path / "hub")])
    assert not (tmp_path / "hub" / "metaworld-tuned").exists()
    with pytest.raises(UserError, match="unknown name"):
        cp.run(["metaworld-tuna", str(tmp_path / "other")])


def test_cp_refuses_a_damaged_checkpoint(tmp_path: Path, built_in: Path) -> None:
    (built_in / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="truncated"):
        cp.run(["metaworld-tuned", str(tmp_path / "mine")])
    assert not (tmp_path / "mine").exists()


def test_doctor_says_ok(call: Call, built_in: Path) -> None:
    code, out, err = call("doctor")
    assert code == 0, out + err
    assert {line.split()[0] for line in out.splitlines()} <= {"ok", "optional"}
    assert "ok       meta-world: one step of push" in out and "metaworld-tuned loaded and verified" in out


def test_doctor_says_what_a_training_takes(call: Call) -> None:
    tiny = [f"model.{name}=8" for name in ("width", "world_width", "action_width")]
    words = [*tiny, "model.n_heads=1", "model.n_layers=3", "stage.batch_size=4", "env.tasks=[push]"]
    code, out, err = call("doctor", *words)
    assert code == 0, err
    for expected in (
        r"weights, 3 layers\n",
        r"Adam +0.00 GB",
        r"cpu has \d+\.\d GB: enough",
        r"s of 4 windows; 6,000 steps: ",
    ):
        assert re.search(expected, out), out
    code, out, err = call("doctor", "size=q")
    assert code == 2 and "size='q': expected one of xs, s, m, l, xl" in err


def test_doctor_says_what_is_missing_and_looks_at_the_rest(
    call: Call, monkeypatch: pytest.MonkeyPatch, built_in: Path
) -> None:
    (built_in / "model.safetensors").write_bytes(b"")
    for check in ("_opengl", "_metaworld"):
        monkeypatch.setattr(doctor, check, lambda: 1 / 0)
    code, out, err = call("doctor")
    assert code == 2 and "missing: meta-world, checkpoints" in err
    assert "missing  meta-world: division by zero; pip install" in out
    assert "optional OpenGL: division by zero; needed for images of the simulator only" in out


@pytest.mark.parametrize("in_background", [False, True])
def test_a_termination_is_an_interruption(
    in_background: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever ends it, it ends alike: with the last saved state, and a line that says so.

    What a shell without job control starts in the background begins with SIGINT ignored.
    """
    before, interrupt = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    if in_background:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    monkeypatch.setattr(cli, "_dispatch", lambda words: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5)))
    try:
        assert cli.main(["ls"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
    assert capsys.readouterr().err == "wamtune: interrupted\n"
