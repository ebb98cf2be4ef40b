"""Commands in the documentation can be pasted into any shell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rewards.builtin import BUILTIN
from rewards.plugins import load
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.ppo.update import PPO
from rl.robots.api import make_robot
from rl.rounds.trust_signals import make_signals
from rl.verbs.help import HELP
from tests.docs.pages import FENCED, SHELLS
from world_model.wam.model import WorldActionModel

ROOT = Path(__file__).resolve().parent.parent
PATTERNS = set("[]{}*?")
"""What a shell expands unless it is quoted; zsh then refuses a word that matches no file."""

COMMAND = r"(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:wamtune|python|pip|make|uv) "


def commands() -> Iterator[tuple[str, str]]:
    """Where a command stands, and the command: of fenced blocks, inline code, comments of presets, and examples."""
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*.md"),
        ROOT / "lerobot_policy_wamtune" / "README.md",
    ]
    for page in pages:
        text = page.read_text("utf-8")
        blocks = re.findall(FENCED, text, re.MULTILINE | re.DOTALL)
        lines = "\n".join(lines for language, lines in blocks if language in SHELLS).replace("\\\n", " ").splitlines()
        inline = re.findall(rf"`({COMMAND}[^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        yield from ((page.name, command) for command in (*inline, *lines) if re.match(COMMAND, command))
    for preset in (*ROOT.glob("configs/*.yaml"), *ROOT.glob("examples/*")):
        if preset.is_file():
            yield from ((preset.name, line) for line in re.findall(rf"^# +({COMMAND}.*)$", preset.read_text(), re.M))
    for verb, text in HELP.items():
        yield from ((f"{verb} --help", line) for line in text.partition("Examples:\n")[2].splitlines())
    for file in (path for package in ("rl", "world_model", "rewards") for path in (ROOT / package).rglob("*.py")):
        found = re.findall(r"wamtune (?:[a-z]+ )[^`\"'\n]*=\[[^`\"\n]*", file.read_text("utf-8"))
        yield from ((file.name, command) for command in found)


def unquoted(command: str) -> list[str]:
    """Words of a command that a shell would expand."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
    words = re.sub(r"(?:^|\s)#.*", "", bare).split()
    return [word for word in words if PATTERNS & set(word)]


@pytest.mark.parametrize("word", ["tasks=[push]", "--seeds=?", "a={b,c}"])
def test_what_a_shell_expands_is_found(word: str) -> None:
    assert unquoted(f"wamtune train {word} 'x=[y]'  # [z]") == [word]


def test_commands_need_no_quotes_that_are_missing() -> None:
    found = list(commands())
    assert len(found) > 60
    assert not [f"{where}: {command}" for where, command in found if unquoted(command)]


def test_the_reward_of_the_readme_is_the_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(
        r"^```python\n# my_rewards.py\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    (tmp_path / "my_rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    step = SimpleNamespace(action_history=torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 0.5]]]))
    mine = load("reward", "my_rewards.py:action_jerk", {})
    assert mine(step).tolist() == BUILTIN["action_jerk"](step).tolist() == [4.25]  # (0-2+0, .5-0+0) = (-2, .5)


def test_the_code_of_bring_your_own_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_point: Any, model: WorldActionModel
) -> None:
    """The files of the page, as they stand there, through the loader and with the params of its commands."""
    page = (ROOT / "docs" / "bring_your_own.md").read_text("utf-8")
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    effort = load("reward", "my_rewards.py:effort", {})
    action = torch.tensor([[0.5, -1.0], [0.0, 2.0]])
    assert effort(SimpleNamespace(action=action), power=2.0).tolist() == [1.25, 4.0]

    env = SimEnv("my_env.py:Reach", 2, n_context_frames=1, max_steps=40)
    point, goal = env.reset(seed=3)["state"][:, -1].split(2, dim=1)
    step = env.step_chunk((10 * (goal - point)).clamp(-1, 1)[:, None])
    torch.testing.assert_close(step.frames["state"][:, 0, :2], point + (goal - point).clamp(-0.1, 0.1))

    robot = make_robot("my_robot.py:MyRobot", {"port": "/dev/ttyUSB0"}, task="reach")
    robot.connect()
    assert robot.is_connected and robot.action_features.keys() == {"joint.0", "joint.1"}

    (signal,) = make_signals(
        compose("dream", ["dream.trust={early: {func: my_trust.py:early, params: {halves_after: 2}}}"], TrainConfig)
    )
    env = make_point(3)
    ppo = PPO(flow_policy(model, env, 2, 0.1), compose("sim", [], TrainConfig).ppo)
    trust = signal(ppo.collect(env, 3), model, seed=0)
    torch.testing.assert_close(trust, torch.tensor([1.0, 0.5**0.5, 0.5])[:, None].expand(3, 3))
