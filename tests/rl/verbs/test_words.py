"""Help and typos: answered without torch, and with the word that was meant."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl import cli
from rl.verbs.help import HELP
from world_model.extras import pip_line

ROOT = Path(cli.__file__).resolve().parent.parent

HEAVY = ("torch", "metaworld", "mujoco", "scipy", "matplotlib", "stable_baselines3", "tensorboard", "rich")
"""None of these is needed to answer help or a typo; each takes a tenth of a second or more to import."""

RUN = f"""
import sys, json
from rl.cli import main
code = main(sys.argv[1:])
print("LOADED", json.dumps([name for name in {(*HEAVY, "omegaconf")!r} if name in sys.modules]), code)
"""


def run(*words: str) -> tuple[int, str, list[str]]:
    """Exit code, everything that is printed, and which of the heavy packages were loaded, in a new process."""
    done = subprocess.run([sys.executable, "-c", RUN, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    text, _, last = done.stdout.rpartition("LOADED ")
    loaded, _, code = last.strip().rpartition(" ")
    return int(code), text + done.stderr, json.loads(loaded)


@pytest.mark.parametrize("words", [("--help",), *((verb, "--help") for verb in cli.VERBS)])
def test_help_imports_no_torch(words: tuple[str, ...]) -> None:
    code, text, loaded = run(*words)
    assert code == 0 and text.startswith("wamtune") and loaded == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("tarin", "unknown verb 'tarin'; did you mean 'train'?"),
        ("train demo --seed 3", "unexpected '--seed'; options are written as key=value: seed=3"),
    ],
)
def test_a_mistyped_verb_or_option_imports_nothing(words: str, line: str) -> None:
    assert run(*words.split()) == (2, f"wamtune: {line}\n", [])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train demo sed=3", "unknown key 'sed' on the command line; did you mean 'seed'?"),
        ("train demo seed", "unexpected 'seed'; write overrides as key=value, for example seed=1"),
        ("train", "train needs a preset or a run folder: see `wamtune ls presets`"),
        ("train dmeo", "unknown preset 'dmeo'; did you mean 'demo'?"),
        ("eval metaworld-tuned n_episode=3", "unknown key 'n_episode' on the command line; did you mean 'n_episodes'?"),
        ("eval", "eval needs a checkpoint or a run folder: wamtune eval metaworld-tuned; see `wamtune ls`"),
        ("rank metaworld-tuned n_real=3", "rank needs two checkpoints or run folders at least: wamtune rank "
         "metaworld-tuned runs/demo; see `wamtune ls`"),
        ("rank metaworld-tuned runs/a n_real=3 n_start=4", "unknown key 'n_start' on the command line; did you mean "
         "'n_starts'?"),
        ("deploy metaworld-tuned run robot-sim hzz=3", "unknown key 'hzz' on the command line; did you mean 'hz'?"),
        ("train push", "train push: expected a preset of wamtune train, and push is a task; name a preset before it: "
         "wamtune train mix env.tasks=push"),
        ("tune demo", "tune demo: expected a preset of wamtune tune, and demo is a preset of another verb: "
         "wamtune train demo"),
        ("train robot-sim", "train robot-sim: expected a preset of wamtune train, and robot-sim is a preset of another "
         "verb: wamtune deploy metaworld-tuned run robot-sim"),
        ("train metaworld-tuned", "train metaworld-tuned: expected a preset of wamtune train, and metaworld-tuned is a "
         "checkpoint; train it with wamtune train mix checkpoint=metaworld-tuned, measure it with wamtune eval "
         "metaworld-tuned"),
        ("train metaworld-pixels-tuned", "train metaworld-pixels-tuned: expected a preset of wamtune train, and "
         "metaworld-pixels-tuned is a checkpoint; train it with wamtune train pixels "
         "checkpoint=metaworld-pixels-tuned, measure it with wamtune eval metaworld-pixels-tuned"),
        ("train metaworld-pixels-pretrained", "train metaworld-pixels-pretrained: expected a preset of wamtune train, "
         "and metaworld-pixels-pretrained is a checkpoint that only predicts; wamtune tune metaworld-pixels-tuned "
         "checkpoint=metaworld-pixels-pretrained teaches it to act"),
        ("train metaworld-pretrained", "train metaworld-pretrained: expected a preset of wamtune train, and "
         "metaworld-pretrained is a checkpoint that only predicts; wamtune tune metaworld-tuned "
         "checkpoint=metaworld-pretrained teaches it to act"),
        ("eval demo", "eval demo: demo is a preset; expected a checkpoint or a run, such as metaworld-tuned"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_words_is_answered_without_torch(words: str, line: str) -> None:
    assert run(*words.split()) == (2, f"wamtune: {line}\n", ["omegaconf"])


def test_output_that_nobody_reads_is_no_bug() -> None:
    command = [sys.executable, "-c", RUN.replace("print(", "0 and print("), "train", "--help"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_help_shows_lists_as_every_shell_takes_them() -> None:
    assert "  stage.atoms=0.1,0.0,0.65,0.15,0.1 " in HELP["pretrain"]
    assert "  gate.places=imitation,sim,dream " in HELP["train"]


def test_the_line_that_installs_an_extra_from_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    assert pip_line("data").endswith("pip install -e '.[data]'")
    monkeypatch.chdir(tmp_path)
    assert pip_line("data").endswith(f"pip install -e '{ROOT}[data]'")


def test_the_line_that_installs_an_extra_from_a_wheel(tmp_path: Path) -> None:
    (tmp_path / "world_model").mkdir()
    shutil.copy(ROOT / "world_model" / "extras.py", tmp_path / "world_model")
    for name, text in (("METADATA", "Metadata-Version: 2.1\nName: wamtune\nVersion: 7.8.9\n"), ("RECORD", "")):
        (tmp_path / "wamtune-7.8.9.dist-info").mkdir(exist_ok=True)
        (tmp_path / "wamtune-7.8.9.dist-info" / name).write_text(text)
    (tmp_path / "world_model" / "__init__.py").touch()
    code = "from world_model.extras import pip_line; print(pip_line('data'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("pip install 'wamtune-7.8.9-py3-none-any.whl[data]'")


def test_messages_name_no_package_that_an_index_lacks() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{i}"
        for package in ("rewards", "world_model", "rl")
        for path in (ROOT / package).rglob("*.py")
        for i, line in enumerate(path.read_text().splitlines(), 1)
        if "install 'wamtune[" in line
    ]
    assert not wrong
