"""Run folders, of which a report is drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.crafted.spoil import MARK, VICTIM, with_value
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.report.data import PAIRS
from rl.report.results import RESULTS


def make_run(folder: Path) -> None:
    """Write the files of a finished `wamtune train` run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(compose("mix", ["env.tasks=[push]"], TrainConfig)))
    row = {"step": 1, "train/value_loss": 0.5, "train/ref_kl": 0.1, "train/approx_kl": 0.1, "eval/success": 0.5}
    row |= {"train/explained_variance": 0.2, "gate/accepted": 1, "gate/champion": 0.5, "gate/challenger": 0.6}
    row |= {"gate/gain": 0.1, "gate/gain_low": -0.1, "gate/gain_high": 0.3, "gate/phi": 0.4, "gate/n_episodes": 8}
    row |= {"gate/won": 1, "gate/lost": 0, "rollout/dream_success": 0.3, "dream/error": 0.1, "reward/success": 1.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row | {"step": i}) + "\n" for i in range(3)))
    result = {"task": "push", "seed": 1, "success": True, "n_steps": 5, "reward": 0.0, "run": "mix", "place": "sim"}
    lines = [json.dumps(result | {"phase": phase, "seed": i}) for phase in ("before", "after") for i in range(3)]
    (folder / "eval.jsonl").write_text("\n".join(lines) + "\n")
    found = {"rho": 0.1, "low": 0.0, "high": 0.2}
    counts = dict.fromkeys(("n", "n_compared", "both", "sim_only", "dream_only", "neither"), 1)
    shares = dict.fromkeys(("sim", "dream", "retold_recall", "retold_false_success"), 0.5)
    summary = {
        **counts,
        **shares,
        "error_and_success": found,
        "movement_and_success": found,
        "error_by_step": [0.1, 0.2],
    }
    curve = {"simulator": [[0.1, 0.2, 0.3]] * 4, "dream of its actions": [[0.1, 0.2, 0.3]] * 4}
    example = {"title": "A success", "seed": 1, "chunk_size": 2, "parts": {"hand_pos": curve}, "film": ""}
    points = [{"task": "push", "seed": i, "sim": i == 1, "error": 0.1 + i, "movement": 0.2 + i} for i in range(2)]
    pairs = {"summary": summary, "gap": [0.1, 0.0, 0.2], "points": points, "examples": [example]}
    pairs["trust"] = {"n": 2, **found, "expected": [0.1, 0.2], "error": [0.1, 0.3]}
    pairs["film"] = {"title": "push, seed 1", "panels": ["before", "after", "dream"]}
    pairs["film"]["gif"] = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
    (folder / PAIRS).write_text(json.dumps(pairs))
    phases = [{"phase": phase, "accepted": True, "success": 0.5, "rounds": 1.0} for phase in ("imitation", "dream")]
    result = {"name": "mix", "before": 0.4, "phases": phases, "reward": [0.0, 1.0]}
    result |= {"sim_steps": 100, "gate_steps": 10, "minutes": 0.5}
    (folder / RESULTS).write_text(json.dumps([result]))


def hostile_rows(folder: Path, rng: random.Random) -> None:
    """Replace values in lines of metrics and episodes, or write very many lines."""
    path = folder / rng.choice(["metrics.jsonl", "eval.jsonl"])
    lines = path.read_text().splitlines()
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(lines))
        lines[i] = with_value(json.loads(lines[i]), rng) if lines[i].startswith('{"') else lines[i]
    if rng.random() < 0.1:
        lines *= rng.choice([3000, 30_000])
    if rng.random() < 0.1:
        lines = ["{}"] * 5_000_000
    path.write_text("\n".join([*lines, '{"reward/' + MARK + '": 1}', '{"reward/$x^$": 1, "train/value_loss": 2}']))


def linked_page(folder: Path, rng: random.Random) -> None:
    """Replace the page, or the file that it is first written to, by a link to another place."""
    (folder / rng.choice(["report.html", ".report.html.tmp"])).symlink_to(Path("..") / VICTIM)
    if rng.random() < 0.5:
        path = folder / PAIRS
        path.write_text(with_value(json.loads(path.read_text()), rng))


def hostile_name(folder: Path, rng: random.Random) -> None:
    """Give the run a name that is markup or a formula."""
    path = folder / "config.yaml"
    name = rng.choice([MARK, "$x^$", "x" * 5000, "\\u2028", "a\tb", "${oc.env:HOME}"])
    path.write_text(path.read_text().replace("name: mix", f"name: {json.dumps(name)}"))
