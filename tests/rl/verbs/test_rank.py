"""`wamtune rank` on a checkpoint and a copy of it whose policy was spoilt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.rl.conftest import Call
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model, save_model

WORDS = "env.tasks=button-press-topdown max_steps=64 n_envs=4 n_starts=8".split()


@pytest.fixture
def spoilt(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint with another policy in it, and the same world model."""
    model = load_model(checkpoint)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.action_parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    save_model(tmp_path / "spoilt", model, "tune", extra=EpisodeStore(checkpoint).files())
    return tmp_path / "spoilt"


def test_the_dream_orders_checkpoints(checkpoint: Path, spoilt: Path, tmp_path: Path, call: Call) -> None:
    words = [str(spoilt), str(checkpoint), *WORDS]
    code, out, err = call("rank", *words)
    assert code == 0, err
    assert "the whole order is right with probability " in out and "run next" not in out
    again = call("rank", *words, f"out={tmp_path / 'page.html'}")[1]
    assert again == f"{out}page: {tmp_path / 'page.html'}\n"
    assert "with probability" in (tmp_path / "page.html").read_text()
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert [row.split()[1] for row in rows if row.split()[1].isdigit()] == ["1", "2"]


def test_real_episodes_correct_the_order_and_say_what_to_run_next(
    checkpoint: Path, spoilt: Path, tmp_path: Path, call: Call
) -> None:
    out_file = tmp_path / "rank.json"
    words = [str(spoilt), str(checkpoint), *WORDS, "n_real=2", f"world_model={checkpoint}", f"out={out_file}"]
    code, out, err = call("rank", *words)
    assert code == 0, err
    assert "run next: a real episode of " in out and f"figures: {out_file}" in out
    found = json.loads(out_file.read_text())
    assert [row["checkpoint"] for row in found["checkpoints"]] == [str(spoilt), str(checkpoint)]
    for row in found["checkpoints"]:
        assert len(row["dreamed"]) == 8 and len(row["real"]) == 2 and row["with_twins"]["n"] == 2
    assert found["next"] in (str(spoilt), str(checkpoint)) and sorted(found["ranking"]["order"]) == [0, 1]


def test_what_cannot_be_ranked_is_refused_in_one_line(checkpoint: Path, tmp_path: Path, call: Call) -> None:
    one = str(checkpoint)
    assert call("rank", one)[2] == (
        "wamtune: rank needs two checkpoints or run folders at least: wamtune rank metaworld-tuned runs/demo; see "
        "`wamtune ls`\n"
    )
    assert "a checkpoint is named twice; expected different ones" in call("rank", one, one)[2]
    code, _, err = call("rank", one, "metaworld-tuned", *WORDS)
    assert code == 2 and err == (
        "wamtune: metaworld-tuned: its features, tasks or action bounds are not those of the world model; rank "
        "checkpoints that were grown from one, or name another world model with world_model=...\n"
    )
    shutil.copytree(checkpoint, tmp_path / "copy")
    line = call("rank", one, str(tmp_path / "copy"), *WORDS, "n_real=5")[2]
    assert (
        "n_real=5: each real episode needs its own start and at least one fresh one; expected at most half of" in line
    )
