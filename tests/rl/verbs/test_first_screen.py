"""`wamtune` without words, and the completion of a shell."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from rl import cli
from rl.runs.verdict import RunVerdict, save_verdict
from rl.verbs.completion import words_of

pytestmark = pytest.mark.usefixtures("elsewhere")


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0
    return capsys.readouterr().out


def make_run(verb: str, time: str, preset: str = "demo") -> Path:
    folder = Path("runs", verb, f"{time}-s0")
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"# wamtune {verb} {preset}\nname: {verb}\n")
    return folder


def test_a_fresh_folder_begins_with_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert "There are no runs in this folder yet" in (out := shown(capsys))
    assert "\n  wamtune train demo\n" in out and "wamtune --help" in out


def test_the_last_run_is_shown_with_its_verdict_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    make_run("train", "20250101-120000")
    run = make_run("other", "20250102-120000")
    assert f"{run} (wamtune train)" in (out := shown(capsys))
    assert f"It has not finished. To go on, or to see a report of what is there:\n\n  wamtune train {run}\n" in out
    save_verdict(run, RunVerdict("gain", "Success rose.", "wamtune train x.yaml seed=1"))
    (run / "report.html").write_text("")
    out = shown(capsys)
    assert "\nGain. Success rose.\n\nNext:\n\n  wamtune train x.yaml seed=1\n" in out
    assert f"{run / 'report.html'}\n" in out


@pytest.mark.parametrize(
    ("verb", "preset", "features", "after"),
    [
        ("pretrain", "mine.yaml", ["state"], "tune metaworld-tuned"),
        ("pretrain", "mine.yaml", ["state", "images.wrist"], "tune metaworld-pixels-tuned"),
        ("tune", "mine.yaml", ["state"], "train mix"),
        ("pretrain", "metaworld-mt50-pretrained name=a", ["state"], "tune metaworld-mt50-tuned"),
        ("tune", "metaworld-tuned", ["state"], "train mix"),
        ("tune", "metaworld-pixels-tuned", ["state", "images.front"], "train pixels"),
        ("pretrain", "own-pretrained dataset=a", ["state"], "tune own-tuned"),  # without a simulator, as the run before
        ("tune", "own-tuned", ["state", "images.front"], "train own"),
    ],
)
def test_after_a_stage_comes_the_next_one(
    verb: str, preset: str, features: list[str], after: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(verb, "20250101-120000", preset)
    last = run / "checkpoints" / "last"
    last.mkdir(parents=True)
    for config in ("{}", "[", None):  # under way, damaged, not there yet
        (last / "config.json").write_text(config) if config else (last / "config.json").unlink()
        assert f"It has not finished. To go on:\n\n  wamtune {verb} {run}\n" in shown(capsys)
    (last / "config.json").write_text(
        json.dumps({"metrics": {}, "spec": {"features": {name: {} for name in features}}})
    )
    assert f"It has finished. Next:\n\n  wamtune {after} checkpoint={run}\n" in shown(capsys)


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    line = " ".join(map(shlex.quote, words))
    code = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _wamtune; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "--norc", "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_verbs_presets_keys_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    script = shown(capsys, "completion", "bash")
    assert completed(script, "wamtune", "t") == ["tune", "train"]
    assert completed(script, "wamtune", "train", "demo") == ["demo", "demo-pixels", "demonstrations="]
    assert completed(script, "wamtune", "train", "demo", "ppo.clip") == ["ppo.clip_range="]
    assert completed(script, "wamtune", "eval", "metaworld-t") == ["metaworld-tuned"]
    make_run("train", "20250101-120000")
    assert completed(script, "wamtune", "train", "ru") == ["runs"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_reads_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    script = shown(capsys, "completion", "zsh")
    done = subprocess.run(
        ["zsh", "-f", "-c", f"{script}\nprint $_comps[wamtune]"], check=True, capture_output=True, text=True
    )
    assert "_wamtune" in done.stdout and done.stderr == ""


def test_every_verb_can_be_completed() -> None:
    assert {verb: bool(words_of(verb)) for verb in cli.VERBS} == {
        verb: verb not in ("report", "doctor") for verb in cli.VERBS
    }


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fish"]) == 2
    assert capsys.readouterr().err == (
        "wamtune: completion needs a shell: wamtune completion bash, or wamtune completion zsh\n"
    )
