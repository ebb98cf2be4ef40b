"""The commands of docs/lerobot.md, run as they are written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lerobot", reason="lerobot is not installed")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "lerobot.md"


def blocks(end: str) -> list[str]:
    """Return the blocks of commands of the page up to the heading `end`, without the installation."""
    text = PAGE.read_text().partition(end)[0]
    return [block for block in re.findall(r"```bash\n(.*?)```", text, re.S) if "pip install" not in block]


def test_every_key_of_the_page_exists() -> None:
    from rl.compose import compose
    from rl.config import TrainConfig
    from rl.verbs.options import EvalOptions

    text = "\n".join(blocks("## In a dream")).replace("\\\n", " ")
    words = [shlex.split(line, comments=True) for line in text.splitlines()]
    for verb, *rest in (line[1:] for line in words if line[:1] == ["wamtune"]):
        if verb in ("train", "check"):
            compose(rest[0], rest[1:], TrainConfig)
        elif verb == "eval":
            compose(None, rest[1:], EvalOptions)


@pytest.mark.slow
def test_the_commands_run_as_written(tmp_path: Path) -> None:
    """From episodes to a better policy; the champion is loaded by LeRobot's own functions."""
    bin = tmp_path / "bin"
    bin.mkdir()
    program = f"#!/bin/sh\nexec {sys.executable} -c 'import sys; from rl.cli import main; sys.exit(main())' \"$@\"\n"
    (bin / "wamtune").write_text(program)
    (bin / "wamtune").chmod(0o755)
    paths = [str(bin), str(Path(sys.executable).parent), os.environ["PATH"]]
    env = os.environ | {"PATH": os.pathsep.join(paths), "PYTHONPATH": str(ROOT)}
    for block in blocks("## What PPO gave"):
        done = subprocess.run(["sh", "-e", "-c", block], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    config = json.loads((tmp_path / "policies" / "button-better" / "config.json").read_text())
    assert config["type"] == "act" and config["n_action_steps"] == 8
