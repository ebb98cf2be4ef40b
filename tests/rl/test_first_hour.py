"""What a newcomer meets: names of runs, a checkpoint that cannot act, progress and figures of an evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rl.compose import compose
from rl.config import TrainConfig
from rl.robots.api import NumberRobot, RobotMap, differences
from rl.verbs import deploy
from rl.verbs.eval import figures
from tests.rl.conftest import Call
from world_model.runs import find_run
from world_model.spec import Feature, Spec
from world_model.wam.store import load_model, save_model

pytestmark = pytest.mark.usefixtures("elsewhere")

EVAL = ["n_episodes=4", "n_envs=2", "max_steps=16"]


def test_eval_says_how_far_it_is_and_writes_its_figures(checkpoint: Path, call: Call) -> None:
    code, out, err = call("eval", str(checkpoint), *EVAL, "place=both", "out=new/figures.json")
    assert code == 0, err
    assert "0/2 (0 %)" in out and "2/2 (100 %)  0:00 left" in out and "figures: new/figures.json" in out
    told = json.loads(Path("new/figures.json").read_text())
    assert told["checkpoint"] == str(checkpoint) and told["options"]["n_episodes"] == 4
    assert set(told["success"]) == {"button-press-topdown", "push", "all"}
    row = told["success"]["all"]
    assert row["sim"]["n_episodes"] == 8 and 0 <= row["sim"]["low"] <= row["sim"]["rate"] <= row["sim"]["high"] <= 1
    assert row["gap"]["mean"] == pytest.approx(row["dream"]["rate"] - row["sim"]["rate"])
    assert len(told["episodes"]) == 16 and {e["place"] for e in told["episodes"]} == {"sim", "dream"}
    code, _, err = call("eval", str(checkpoint), "out=figures.txt")
    assert (code, err) == (2, "wamtune: out='figures.txt': expected the name of a .json file or of an .html page\n")


def test_figures_of_one_task_have_no_row_over_all() -> None:
    assert figures({"push": []}, {"push": []}) == {"success": {"push": {}}, "episodes": []}


def test_a_checkpoint_that_predicts_alone_is_not_asked_to_act(checkpoint: Path, call: Call) -> None:
    save_model("predicts", load_model(checkpoint), "pretrain")
    for words in (["eval", "predicts"], ["dream", "predicts", "source=policy"]):
        code, _, err = call(*words)
        assert code == 2 and err.count("\n") == 1
        assert "predicts cannot act, it only predicts: teach it with wamtune tune" in err


def test_a_checkpoint_where_a_preset_is_expected_says_what_it_is_good_for(checkpoint: Path, call: Call) -> None:
    code, _, err = call("train", str(checkpoint))
    assert code == 2 and f"train it with wamtune train mix checkpoint={checkpoint}" in err


@pytest.mark.parametrize(
    "words", [["eval", "CHECKPOINT", "tasks=pushh"], ["train", "sim", "checkpoint=CHECKPOINT", "env.tasks=pushh"]]
)
def test_a_mistyped_task_gets_a_suggestion(words: list[str], checkpoint: Path, call: Call) -> None:
    code, _, err = call(*(word.replace("CHECKPOINT", str(checkpoint)) for word in words))
    assert code == 2 and "task 'pushh' is unknown to Meta-World; did you mean 'push'?" in err


def test_a_mistyped_checkpoint_gets_a_suggestion(call: Call) -> None:
    code, _, err = call("eval", "metaworld-tunde")
    assert code == 2 and "no checkpoint at metaworld-tunde; did you mean 'metaworld-tuned'?" in err


@pytest.fixture
def runs(checkpoint: Path, tiny: list[str], tmp_path: Path) -> list[Path]:
    """Three runs of two names, with a checkpoint each; the newest first."""
    folders = [tmp_path / "runs" / name / f"2026010{day}-120000-s0" for name, day in (("a", 3), ("b", 2), ("a", 1))]
    for i, folder in enumerate(folders):
        shutil.copytree(checkpoint, folder / "checkpoints" / "last")
        override = "\n".join(["base: sim", "name: a", f"seed: {i}", "env: {tasks: [push]}"])
        (folder / "config.yaml").write_text(override)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 0, "eval/success": 0.5}) + "\n")
    (tmp_path / "runs" / "episodes" / "a").mkdir(parents=True)
    return folders


def test_a_run_is_found_by_its_name_and_as_the_latest(runs: list[Path]) -> None:
    newest, other, oldest = (folder.relative_to(Path.cwd()) for folder in runs)
    assert find_run("latest") == find_run("runs/a") == find_run(str(newest)) == newest
    assert find_run("runs/b") == other and find_run(oldest) == oldest
    assert find_run("runs/c") is None and find_run("metaworld-tuned") is None
    Path("latest").mkdir()  # somebody's own folder
    assert find_run("latest") is None


@pytest.mark.parametrize("name", ["latest", "runs/a"])
def test_every_verb_takes_a_run_by_name(name: str, runs: list[Path], call: Call) -> None:
    newest = runs[0].relative_to(Path.cwd())
    assert call("report", name)[1].endswith(f"\nreport: {newest / 'report.html'}\n")
    assert compose(name, [], TrainConfig).seed == 0  # so do check and train
    code, _, err = call("train", name, "seed=3")
    assert code == 2 and f"begin anew: wamtune train {newest / 'config.yaml'} seed=3" in err
    assert deploy.default_folder(name) == newest / "exported"
    assert call("eval", name, *EVAL, "tasks=push")[0] == 0
    assert call("cp", name, "copied")[0] == 0 and Path("copied/manifest.json").is_file()


class Arm(NumberRobot):
    state, action, control_hz = ("hand_pos.0",), ("action.0",), 80.0


def test_a_feature_of_many_numbers_is_one_line() -> None:
    slices = {"hand_pos": (0, 1), "touch": (1, 513)}
    spec = Spec({"state": Feature((513,), "", slices)}, (-1.0,), (1.0,), ("push",), 80.0)
    (row,) = differences(Arm(), spec, RobotMap(), 80.0)  # type: ignore[arg-type]
    assert row == ("touch.0 ... touch.511", "a number", "no such; it has hand_pos.0")
