"""Presets, and words of the command line."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.crafted.spoil import VALUES
from rl.compose import compose
from rl.config import TrainConfig
from rl.stages.config import PretrainConfig


def make_config(folder: Path) -> None:
    """Write a preset."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(
        "name: x\nbase: mix\nenv: {tasks: [push], n_envs: 4}\nppo: {n_steps: 4, batch_size: 16}\n"
    )


def hostile_yaml(folder: Path, rng: random.Random) -> None:
    """Write keys of the schema with values of all kinds, and rare YAML syntax."""
    keys = "seed threads env.n_envs env.n_workers ppo.n_steps dream.horizon total_timesteps n_rounds name".split()
    keys += "env.tasks rewards.x env.isaac env.events.a.low base controls eval.seed gate.alpha ppo policy".split()
    values = [v for v in VALUES if len(v) < 50_000]
    odd = "!!binary aGk= | !!set {a} | 2020-01-01 | 0x1F | 1_000 | 0o17 | 1:30 | ~ | 'a | |-|&a b|*a|<<|? a|- a"
    value = rng.choice([*values, *odd.split("|"), "${oc.env:HOME}", "{a: {b: {c: 1}}}", "\x00", "\ufeff", "%TAG x"])
    key = rng.choice(keys)
    lines = "".join("  " * i + f"{part}:\n" for i, part in enumerate(key.split(".")))[:-1]
    texts = (
        f"name: x\n{lines} {value}\n",
        f"name: x\n{lines}\n{'  ' * 9}- {value}\n- b",
        f"{value}",
        f"name: x\n{key}: {value}\n{key}: 1\n",
        "name: x\nrewards: " + "{a: " * rng.choice([5, 19, 21, 500]) + "1" + "}" * rng.choice([5, 19, 21, 500]),
        "? {a: 1}\n: 2\n",
        f"name: x\nbase: {rng.choice(['mine.yaml', '../..', '/dev/zero', 'nowhere', '[mix]', '.'])}\n",
        "\n".join(f"k{i}: [" + "x, " * 50 + "]" for i in range(400)),
        "".join(rng.choice("[]{}:,&*!|>'\"%@`-?#\n \tab1") for _ in range(200)),
    )
    (folder / "mine.yaml").write_text(rng.choice(texts), encoding="utf-8", errors="surrogatepass")


def hostile_override(folder: Path, rng: random.Random) -> None:
    """Write a value for the command line; `read_config` takes it from the file."""
    keys = "seed threads env.n_envs ppo.n_steps model.n_layers model.width stage.seed env.tasks x " + "a." * 2000 + "b"
    value = rng.choice(
        [v for v in VALUES if len(v) < 50_000] + ["[a", "{", "\n", "a: b", "8192", "18446744073709551616"]
    )
    (folder / "override").write_text(f"{rng.choice(keys.split())}{rng.choice(['=', '==', '', '=='])}{value}")


def read_config(folder: Path) -> None:
    """Compose the file as a training config, and as a pre-training config."""
    override = folder / "override"
    if not override.exists():
        compose(folder / "mine.yaml", [], TrainConfig)
        return
    word = override.read_text(encoding="utf-8")
    schema = PretrainConfig if word.startswith(("model", "stage")) else TrainConfig
    compose(None, ["name=x", "tasks=[push]", word] if schema is PretrainConfig else ["name=x", word], schema)
