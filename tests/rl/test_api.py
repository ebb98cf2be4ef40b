"""The Python API: what it returns, that it agrees with the command line, and that its page tells the truth."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

import world_model
from rewards.errors import UserError
from rl import api, cli
from rl.envs.adapters import GymEnv, StepVecEnv
from world_model.wam.model import WorldActionModel

pytestmark = pytest.mark.usefixtures("elsewhere")

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "python_api.md"
BUTTON = ["button-press-topdown"]

OVERRIDES: dict[str, Any] = {
    "env": {"tasks": BUTTON, "n_envs": 4, "max_steps": 64},
    "dream": {"n_envs": 8, "n_updates": 1, "n_starts": 4, "horizon": 2, "refit_steps": 2},
    "ppo": {"n_steps": 4, "batch_size": 16, "n_epochs": 1, "bc_batch_size": 8} | {"imitation_steps": 0},
    "gate": {"n_episodes": 4, "max_episodes": 4},
    "eval": {"n_episodes": 4, "n_paired": 2},
    "n_rounds": 1,
    "threads": 1,
}


def line_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command fails."""
    assert cli.main(words) == 2
    return capsys.readouterr().err.removeprefix("wamtune: ").rstrip("\n")


def surface() -> list[str]:
    """One line for each name of the API, with its signature; classes with a line for each field and method."""
    lines = []
    for name in api.__all__:
        found = getattr(api, name)
        if inspect.isfunction(found):
            lines.append(f"rl.api.{name}{_signature(found)}")
        elif not issubclass(found, Exception):
            members = [f"{field.name}: {field.type}" for field in dataclasses.fields(found) if field.name not in HIDDEN]
            for member, of in vars(found).items():
                if member.startswith("_") or member in {field.name for field in dataclasses.fields(found)}:
                    continue
                if isinstance(getter := getattr(of, "fget", getattr(of, "func", None)), type(surface)):
                    members.append(f"{member}: {inspect.signature(getter).return_annotation}")
                elif inspect.isfunction(of):
                    members.append(f"{member}{_signature(of)}")
            lines += [f"rl.api.{name}", *(f"    .{member}" for member in members)]
        else:
            lines.append(f"rl.api.{name}(Exception)")
    return lines


HIDDEN = ("actor", "replayed")
"""Fields of which the page says that they are no part of the surface."""


def _signature(function: Any) -> str:
    """Return the signature with annotations as they are written in the source, without quotes."""
    signature, parts, bare = inspect.signature(function), [], False
    for name, of in signature.parameters.items():
        if of.kind is of.KEYWORD_ONLY and not bare:
            bare = True
            parts.append("*")
        if name != "self":
            star = "**" if of.kind is of.VAR_KEYWORD else ""
            default = "" if of.default is of.empty else f" = {of.default!r}"
            parts.append(f"{star}{name}: {of.annotation}{default}")
    return f"({', '.join(parts)}) -> {signature.return_annotation}"


def test_the_surface_is_what_the_page_says() -> None:
    block = PAGE.read_text().partition("```text\n")[2].partition("```")[0]
    written = [line for line in block.splitlines() if line]
    assert written == [f"world_model.load{_signature(world_model.load)}", *surface()]


def test_everything_public_has_types_and_a_docstring() -> None:
    for name in api.__all__:
        found = getattr(api, name)
        assert inspect.getdoc(found), name
        if inspect.isfunction(found):
            signature = inspect.signature(found)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(of.annotation is not inspect.Parameter.empty for of in signature.parameters.values()), name


def test_load_takes_what_the_command_takes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = api.load(checkpoint)
    assert isinstance(policy.world_model, WorldActionModel) and "push" in policy.tasks
    own = api.load(f"{ROOT / 'examples' / 'own_policy.py'}:OwnPolicy")
    assert own.world_model is None and own.tasks == ()
    for name in ("nowhere", "sim"):
        with pytest.raises(UserError) as error:
            api.load(name)
        assert str(error.value) == line_of(capsys, "eval", name)
    with pytest.raises(UserError, match="cannot act, it only predicts"):
        api.load("metaworld-pretrained")


def test_world_model_load(checkpoint: Path) -> None:
    model = world_model.load(checkpoint)
    assert isinstance(model, WorldActionModel) and not model.training
    with pytest.raises(UserError, match="nowhere"):
        world_model.load("nowhere")


def test_evaluate_gives_the_numbers_of_the_command(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = api.load(checkpoint)
    result = api.evaluate(policy, tasks=[*BUTTON, "push"], n_episodes=3, max_steps=64)
    assert (
        cli.main(["eval", str(checkpoint), "env.tasks=button-press-topdown,push", "n_episodes=3", "max_steps=64"]) == 0
    )
    assert f"│ all                  │ {result} │" in capsys.readouterr().out
    assert [episode.task for episode in result.episodes] == 3 * BUTTON + 3 * ["push"]
    assert list(result.per_task) == [*BUTTON, "push"] and len(result.per_task["push"].episodes) == 3
    assert result.interval[0] <= result.success <= result.interval[1]
    again = api.evaluate(policy, tasks=["push"], n_episodes=3, max_steps=64)
    assert again.episodes == result.per_task["push"].episodes
    assert again.gain_over(result.per_task["push"])[0] == 0.0
    with pytest.raises(UserError, match="other episodes"):
        again.gain_over(result)


def test_a_dreamed_evaluation_is_paired_with_the_real_one(checkpoint: Path) -> None:
    policy = api.load(checkpoint)
    real, dreamed = (
        api.evaluate(policy, tasks=BUTTON, n_episodes=4, max_steps=64, place=place) for place in ("sim", "dream")
    )
    gap, low, high = dreamed.gain_over(real)
    assert gap == pytest.approx(dreamed.success - real.success) and low <= gap <= high
    assert dreamed.describe_gain_over(real).startswith(f"{100 * gap:+.1f} [")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tasks": ["psuh"]}, ["env.tasks=psuh"]),
        ({"tasks": ["push"], "n_epsiodes": 3}, ["n_epsiodes=3"]),
        ({"tasks": ["push"], "n_episodes": 0}, ["n_episodes=0"]),
        ({"env": {"simulater": "metaworld"}}, ["env.simulater=metaworld"]),
    ],
)
def test_a_mistake_is_the_line_of_the_command(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        api.evaluate(str(checkpoint), **keys)
    assert str(error.value) == line_of(capsys, "eval", str(checkpoint), *words)


def test_what_cannot_be_written_in_a_config_is_named() -> None:
    with pytest.raises(UserError, match=r"rewards=.*code is named as FILE\.py:NAME"):
        api.post_train("sim", rewards={"near": {"func": line_of}})
    with pytest.raises(UserError, match=r"tasks='push': expected a list such as \['push'\]"):
        api.evaluate("metaworld-tuned", tasks="push")
    assert not Path("runs").exists()


def test_dream_returns_both_trajectories(checkpoint: Path) -> None:
    seen = api.dream(api.load(checkpoint), task=BUTTON[0], n_chunks=2)
    assert seen.real.shape == seen.dreamed.shape == (17, 21)
    torch.testing.assert_close(seen.real[0], seen.dreamed[0], atol=1e-5, rtol=0)
    part = slice(4, 7)  # object_pos
    torch.testing.assert_close(seen.errors["object_pos"], (seen.real - seen.dreamed)[:, part].norm(dim=1))
    assert seen.save("dream.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"take a \.png"):
        seen.save("dream.gif")


def test_post_train_returns_the_run(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = {"kept": {"func": "CheckpointCallback", "params": {"save_freq": 1, "save_path": "kept"}}}
    run = api.post_train("dream", checkpoint=checkpoint, controls=["anchor"], callbacks=callbacks, **OVERRIDES)
    assert run.folder.is_dir() and run.report.is_file() and (run.folder / "kept").is_dir()
    assert len(run.before.episodes) == len(run.after.episodes) == 4 and list(run.controls) == ["anchor"]
    assert str(run.verdict) in " ".join(capsys.readouterr().out.split())
    assert any("train/approx_kl" in row for row in run.metrics)
    again = api.evaluate(run.champion, tasks=BUTTON, n_episodes=4, n_envs=4, max_steps=64)
    assert [e.success for e in again.episodes] == [e.success for e in run.after.episodes]
    first = (run.folder / "config.yaml").read_text().splitlines()[0]
    assert first.startswith("# wamtune train dream ") and "'env={tasks: [button-press-topdown]" in first


def test_a_policy_acts_step_by_step_for_stable_baselines3_and_gymnasium(checkpoint: Path) -> None:
    policy = api.load(checkpoint)
    env = api.make_env(policy, tasks=BUTTON, n_envs=2, place="dream", dream={"n_starts": 2, "horizon": 1})
    assert env.place == "dream"
    _, lengths = evaluate_policy(
        policy.predictor(env), StepVecEnv(env), n_eval_episodes=2, return_episode_rewards=True, warn=False
    )
    assert lengths == [8, 8]
    single = GymEnv(api.make_env(policy, tasks=BUTTON, n_envs=1, env={"max_steps": 3}))
    obs, _ = single.reset(seed=0)
    action, _ = policy.predictor(single.batched).predict(obs, deterministic=True)
    assert single.action_space.contains(action)
    ends = [single.step(action)[3] for _ in range(3)]
    single.close()
    assert ends == [False, False, True]
    own = api.load(f"{ROOT / 'examples' / 'own_policy.py'}:OwnPolicy")
    with pytest.raises(UserError, match="has no dream of its own"):
        api.make_env(own, tasks=BUTTON, place="dream")


def test_the_examples_of_the_page_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As they stand there, one after another."""
    text = PAGE.read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["result"].episodes) == 8 and (tmp_path / "dream.png").is_file()
    assert names["losses"]  # a key that no run logs would give none
    error = capsys.readouterr().out.splitlines()[-1]
    assert "did you mean 'push'?" in error and f"# {error}" in text
