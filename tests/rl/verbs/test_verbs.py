"""The verbs train, eval, dream and check, from the command line to what they leave behind."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rl.compose import compose, find_preset
from rl.config import CONTROLS, TrainConfig
from rl.envs.metaworld.tasks import MetaWorldTask
from rl.rounds.loop import PostTraining
from rl.runs.folder import read_rows
from rl.verbs import eval as evaluation
from rl.verbs import train
from rl.verbs.prepare import control_config, prepare
from rl.verbs.train import _Shown
from tests.rl.conftest import Call
from world_model.data.episodes import EpisodeStore
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, load_model_and_config, save_model

pytestmark = pytest.mark.usefixtures("elsewhere")  # runs/ is made where one stands

PNG = b"\x89PNG"


def refused(call: Call, *words: str) -> str:
    """The one line of a command that must fail and leave nothing."""
    code, _, err = call(*words)
    assert code == 2 and err.count("\n") == 1, err
    assert not Path("runs").exists()
    return err


def test_train_with_controls_leaves_everything(tiny: list[str], checkpoint: Path, call: Call) -> None:
    code, out, err = call("train", "mix", *tiny, "controls=[anchor,filtered_bc]")
    assert code == 0, err
    (folder,) = Path("runs/mix").iterdir()
    for word in ("before", "after", "gain, points", "from imitation", "from the dream", "episodes", "minutes"):
        assert f"│ {word}" in out
    assert "round 1, dream: " in out and "rewards: 1 x success" in out
    assert compose(folder, [], TrainConfig) == compose("mix", [*tiny, "controls=[anchor,filtered_bc]"], TrainConfig)

    rows = read_rows(folder / "eval.jsonl")
    assert {(r["run"], r["phase"], r["place"]) for r in rows} == {
        (run, phase, "sim") for run in ("mix", "anchor", "filtered_bc") for phase in ("before", "after")
    }
    assert len(rows) == 3 * 2 * 4
    before = [[r["reward"] for r in rows if r["run"] == run and r["phase"] == "before"] for run in ("mix", "anchor")]
    assert before[0] == before[1]  # a control begins from the same checkpoint, not from the champion

    tags = set().union(*read_rows(folder / "metrics.jsonl"))
    assert {"train/approx_kl", "anchor/train/bc_loss", "filtered_bc/gate/accepted", "reward/success_raw"} <= tags
    assert (folder / "before_after.png").read_bytes().startswith(PNG)

    config = load_model_and_config(folder)[1]
    assert (config["stage"], config["parent"]) == ("rl", str(checkpoint))
    numbered = [path.name for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(numbered) == 1 and int(numbered[0]) >= 256
    last = folder / "checkpoints" / "last"
    assert "| before | after |" in (last / "README.md").read_text()
    assert len(EpisodeStore(last).load()) == len(EpisodeStore(checkpoint).load()) > 0


def test_the_live_panel_shows_simulator_dream_and_gap() -> None:
    shown = _Shown(simulated=True)
    shown.add({"eval/success": 0.5})
    assert shown.values == {"before": 0.5, "sim": 0.5}
    shown.add({"rollout/dream_success": 0.75, "train/approx_kl": 0.1})
    assert shown.values == {"before": 0.5, "sim": 0.5, "dream": 0.75, "gap": 0.25, "KL": 0.1}
    shown.add({"gate/accepted": 1.0, "gate/champion": 0.5, "gate/challenger": 0.625})
    assert (shown.values["sim"], shown.values["gap"]) == (0.625, 0.125)
    shown.add({"gate/accepted": 0.0, "gate/champion": 0.5, "gate/challenger": 0.25})
    assert (shown.values["before"], shown.values["sim"]) == (0.5, 0.5)
    assert shown.steps(7) == {"simulator_steps": 7}


def test_the_live_panel_shows_the_reward_where_there_is_no_success() -> None:
    shown = _Shown(simulated=True)
    shown.add({"eval/reward": -3.0})
    shown.add({"gate/accepted": 1.0, "gate/champion": 0.25, "gate/challenger": 0.75})  # shares of won pairs
    shown.add({"eval/reward": -2.0})
    assert shown.values == {"reward before": -3.0, "reward": -2.0}


def test_the_live_panel_of_recorded_episodes_names_no_simulator() -> None:
    shown = _Shown(simulated=False)
    shown.add({"eval/success": 0.5})
    shown.add({"rollout/dream_success": 0.75})
    assert shown.values == {"before": 0.5, "recorded": 0.5, "dream": 0.75, "gap": 0.25} and shown.steps(7) == {}


def test_an_interrupted_run_leaves_its_champion(
    tiny: list[str], checkpoint: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted:
        def __init__(self, model: WorldActionModel) -> None:
            self.model = model

        def train(self, round_index: int) -> None:
            with torch.no_grad():
                next(self.model.action.parameters()).add_(1.0)  # half an update, which no gate has seen
            raise KeyboardInterrupt

    def prepared(*given: Any, **named: Any) -> PostTraining:
        post = prepare(*given, **named)
        assert post.model is not None
        post.phases["dream"] = Interrupted(post.model)
        return post

    monkeypatch.setattr(train, "prepare", prepared)
    code, out, _ = call("train", "dream", *tiny, "ppo.imitation_steps=0")
    assert code == 130
    (last,) = Path("runs/dream").glob("*/checkpoints/last")
    assert f"to go on: wamtune train {last.parents[1]}" in out and "not evaluated" in (last / "README.md").read_text()
    saved, start = load_model(last).action.state_dict(), load_model(checkpoint).action.state_dict()
    assert all(torch.equal(saved[name], start[name]) for name in start)


def test_a_new_run_from_the_config_of_an_old_one(tiny: list[str], call: Call) -> None:
    few = ["name=again", "gate.enabled=false", "env.max_steps=8", "total_timesteps=128"]
    assert call("train", "sim", *tiny, *few)[0] == 0
    (folder,) = Path("runs/again").iterdir()
    assert call("train", str(folder / "config.yaml"), "seed=1")[0] == 0
    assert len(list(Path("runs/again").iterdir())) == 2


def test_gaussian_trains_on_a_gymnasium_id(call: Call) -> None:
    few = ["total_timesteps=512", "env.n_envs=4", "eval.n_episodes=4", "threads=1", "env.max_steps=20"]
    code, out, err = call("train", "gaussian", *few)
    assert code == 0, err
    assert "reward of fresh episodes; no is_success" in out and "0.0 %" not in out
    assert "No success in this environment. The environment has no is_success in its info" in out
    (last,) = Path("runs/gaussian").glob("*/checkpoints/last")
    assert json.loads((last / "config.json").read_text())["policy"] == "gaussian"
    card, page = (last / "README.md").read_text(), (last.parents[1] / "report.html").read_text()
    assert "Grown from a Gaussian MLP by PPO" in card and "there is no success rate" in card
    assert "a Gaussian MLP on Pendulum-v1, env.kind=sim" in page
    assert "No success in this environment" in page and "No episode succeeded" not in page
    assert not any("eval/success" in row for row in read_rows(last.parents[1] / "metrics.jsonl"))

    run = str(last.parents[1])
    code, out, err = call("eval", run, "n_episodes=4", "n_envs=2", "out=found.html")
    assert code == 0 and Path("found.html").stat().st_size > 1000, err
    after = [row for row in read_rows(last.parents[1] / "eval.jsonl") if row["phase"] == "after"]
    mean = sum(row["reward"] for row in after) / len(after)
    assert f"Pendulum-v1: the simulator's reward is {mean:.4g} an episode" in out  # the same seeds
    assert "no is_success in it (4 episodes)" in out and " % [" not in out
    assert "place=both: a policy has no dream of its own; name" in call("eval", run, "place=both")[2]
    assert "max_steps: a Gaussian policy is evaluated where it was" in call("eval", run, "max_steps=9")[2]
    shutil.copytree(last, "alone")
    assert "alone: a Gaussian policy is evaluated by its run folder" in call("eval", "alone")[2]
    for words in (["deploy", run, "run", "robot-sim"], ["dream", run]):
        code, _, err = call(*words)
        assert code == 2 and f"{run}: it holds a Gaussian policy and no world model; `wamtune eval` measures it" in err


@pytest.mark.parametrize(
    "name",
    ["sim", "mix", "dream", "pixels", "anchor", "filtered_bc", "unsafe_dream", "gaussian", "demo", "demo-pixels"],
)
def test_presets_compose(name: str) -> None:
    config = compose(name, [], TrainConfig)
    assert config.name == name
    assert find_preset(name).read_text().startswith("# ")


@pytest.mark.parametrize("name", list(CONTROLS))
def test_presets_of_controls_are_the_controls(name: str) -> None:
    base = "dream" if name == "unsafe_dream" else "mix"
    assert compose(name, [f"name={base}"], TrainConfig) == control_config(compose(base, [], TrainConfig), name)


def test_eval_prints_both_places(checkpoint: Path, call: Call) -> None:
    words = ["eval", str(checkpoint), "n_episodes=2", "n_envs=2", "max_steps=16", "place=both", "n_dreams=0"]
    code, out, err = call(*words)
    assert code == 0, err
    table = [line for line in out.splitlines() if line.startswith(("│", "┃"))]
    assert [line.split()[1] for line in table] == ["task", "button-press-topdown", "push", "all"]
    assert all(word in table[0] for word in ("sim, %", "dream, %", "gap, %"))
    assert "of 4" in table[-1] and "of 2" in table[1]
    again = call(*words)[1]
    assert [line for line in again.splitlines() if line.startswith("│")] == table[1:]


def test_eval_estimates_true_success_from_both_places(checkpoint: Path, tmp_path: Path, call: Call) -> None:
    words = ["eval", str(checkpoint), "n_episodes=3", "n_envs=2", "max_steps=16", "place=both", "n_dreams=2"]
    code, out, err = call(*words, f"out={tmp_path / 'figures.json'}")
    assert code == 0, err
    page = call(*words, f"out={tmp_path / 'page.html'}")
    assert page[0] == 0 and "real episodes</h2>" in (tmp_path / "page.html").read_text()
    assert "true success, with the dream as a control variate" in out and "worth real" in out
    rows = json.loads((tmp_path / "figures.json").read_text())["success"]
    for name, n in (("button-press-topdown", 3), ("push", 3), ("all", 6)):
        found = rows[name]["with_twins"]
        assert (found["n"], found["n_dreams"]) == (n, 3 * n)
        assert 0 <= found["low"] <= found["high"] <= 1 and found["plain_mean"] == rows[name]["sim"]["rate"]
    code, out, err = call(*words[:-1], "n_dreams=0", f"out={tmp_path / 'page.html'}")
    assert code == 0 and "true success" not in out and f"page: {tmp_path / 'page.html'}" in out
    assert "of 6 episodes ended alike in both" in (tmp_path / "page.html").read_text()


def test_eval_looks_at_every_task_before_it_runs_one(
    checkpoint: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        evaluation,
        "evaluate_task",
        lambda *given: seen.append(given[2]) or evaluation.Evaluated([], [], np.zeros((0, 0))),
    )
    line = refused(call, "eval", str(checkpoint), "tasks=[push,door-open]")
    assert "task 'door-open' is unknown to the checkpoint" in line
    line = refused(call, "eval", str(checkpoint), "id=Pendulum-v1", "tasks=[push]")
    assert "'Pendulum-v1' is its own task, tasks=['push'] does not fit; leave it out" in line
    assert seen == []
    assert call("eval", str(checkpoint), "tasks=[push,push]")[0] == 0
    assert seen == ["push"]  # once, however often it is named


def test_eval_refuses_more_actions_than_a_chunk_has(checkpoint: Path, call: Call) -> None:
    line = refused(call, "eval", str(checkpoint), "n_action_steps=20", "n_episodes=2", "tasks=[push]")
    assert "n_action_steps=20 exceeds the chunk of 8 actions" in line


def test_dream_draws_and_prints(checkpoint: Path, call: Call) -> None:
    said = {
        "expert": "16 steps of the expert, dreamed again",
        "policy": "16 steps of the policy, dreamed again",
        "joint": "16 steps of joint mode, imagined before they happened",
    }
    for source, heading in said.items():
        words = ["task=button-press-topdown", "n_chunks=2", f"source={source}", f"out={source}.png"]
        code, out, err = call("dream", str(checkpoint), *words)
        assert code == 0, err
        assert heading in out
        assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == ["8", "16"]
        assert Path(f"{source}.png").read_bytes().startswith(PNG)


def test_check_prints_a_table(tiny: list[str], call: Call) -> None:
    terms = ["rewards.time_cost.weight=-0.5", "rewards.action_l2.weight=0", "rewards.progress.weight=1"]
    code, out, err = call("check", "mix", *tiny, *terms)
    assert code == 0, err
    rows = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in out.splitlines()
        if "│" in line
    }
    assert rows["time_cost"] == ["time_cost", "-0.5", "", "1 … 1", "1 … 1", "1 … 1"]
    assert rows["action_l2"][3:] == ["off", "off", "off"]
    assert rows["success"][-1] == "0 … 1"  # the demonstration succeeds
    assert rows["progress"][2] == "progress"


def test_check_of_a_term_that_the_dream_lacks(tiny: list[str], call: Call) -> None:
    term = "rewards.task_reward.weight=1"
    assert call("check", "sim", *tiny, term)[0] == 0
    for verb in ("check", "train"):
        line = refused(call, verb, "mix", *tiny, term)
        assert "reward term 'task_reward' requires 'task_reward', which the dream cannot provide" in line


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("t.action", r"returned shape (8, 4), expected (8,)"),
        ("t.action[:, 0] * float('nan')", "returned nan in environment 0 at step 1"),
        ("1.0", "returned a float, expected a tensor"),
    ],
)
def test_broken_terms_are_one_line(body: str, complaint: str, tiny: list[str], call: Call) -> None:
    Path("mine.py").write_text(f"def term(t):\n    return {body}\n")
    override = "rewards.mine={func: mine.py:term, weight: 1.0}"
    line = refused(call, "check", "sim", *tiny, override)
    assert "reward term 'mine'" in line
    assert complaint.split("(")[0] in line
    code, _, err = call("train", "sim", *tiny, override)
    assert code == 2 and err.count("\n") == 1 and "reward term 'mine'" in err


def test_check_shows_what_a_plug_in_raises(tiny: list[str], call: Call) -> None:
    Path("mine.py").write_text("def term(t):\n    return t.nothing\n")
    line = refused(call, "check", "sim", *tiny, "rewards.mine={func: mine.py:term, weight: 1.0}")
    assert "reward term 'mine' raised AttributeError: 'Transition' object has no attribute 'nothing'" in line


def test_a_plug_in_outside_the_project_trains(tiny: list[str], call: Call) -> None:
    Path("mine.py").write_text("def gentle(t):\n    return t.action.square().sum(-1)\n")
    few = ["gate.enabled=false", "env.max_steps=16", "total_timesteps=128"]
    override = "rewards.gentle={func: mine.py:gentle, weight: -0.1}"
    code, _, err = call("train", "sim", *tiny, *few, override)
    assert code == 0, err
    (metrics,) = Path("runs/sim").glob("*/metrics.jsonl")
    paid = [row for row in read_rows(metrics) if "reward/gentle" in row]
    assert paid and paid[0]["reward/gentle"] == pytest.approx(-0.1 * paid[0]["reward/gentle_raw"], rel=1e-5)


def test_missing_checkpoint(tiny: list[str], call: Call) -> None:
    for words in (["train", "sim", *tiny, "checkpoint=nowhere"], ["eval", "nowhere"], ["dream", "nowhere"]):
        assert "no checkpoint at nowhere" in refused(call, *words)
    assert "needs a checkpoint" in refused(call, "eval", "place=sim")


def test_altered_weights(tiny: list[str], checkpoint: Path, call: Call) -> None:
    shutil.copytree(checkpoint, "altered")
    weights = load_file("altered/model.safetensors")
    save_file({name: value + 1 if value.is_floating_point() else value for name, value in weights.items()},
              "altered/model.safetensors")  # fmt: skip
    for words in (["train", "sim", *tiny, "checkpoint=altered"], ["eval", "altered"]):
        line = refused(call, *words)
        assert "model.safetensors" in line and "sha256" in line


def test_sizes_that_do_not_fit(tiny: list[str], call: Call) -> None:
    line = refused(call, "train", "sim", *tiny, "env.id=Pendulum-v1", "env.tasks=[]")
    assert "observation size 21" in line and "observation size 3" in line


def test_another_environment_leaves_the_tasks_of_a_preset_behind(checkpoint: Path, call: Call) -> None:
    line = refused(call, "train", "demo", f"checkpoint={checkpoint}", "env.id=Pendulum-v1")
    assert "observation size 21" in line and "observation size 3" in line and "hammer" not in line


def test_unknown_task(tiny: list[str], checkpoint: Path, call: Call) -> None:
    line = refused(call, "train", "sim", *tiny, "env.tasks=[pusch]")
    assert "'pusch'" in line and "push" in line
    line = refused(call, "eval", str(checkpoint), "tasks=[door-open]")
    assert "'door-open'" in line and "button-press-topdown, push" in line


def test_no_demonstrations(tiny: list[str], checkpoint: Path, call: Call) -> None:
    save_model("bare", load_model(checkpoint), "tune")
    line = refused(call, "train", "sim", *tiny, "checkpoint=bare")
    assert "ppo.bc_coef=0.1: bare holds no demonstrations of button-press-topdown" in line


def test_unknown_control(tiny: list[str], call: Call) -> None:
    assert "unknown 'luck', expected any of anchor, filtered_bc" in refused(
        call, "train", "mix", *tiny, "controls=[luck]"
    )


def break_steps(monkeypatch: pytest.MonkeyPatch, *bad: int) -> None:
    """Let these steps of Meta-World return no numbers, counted over all environments."""
    step, n = MetaWorldTask.step, itertools.count()

    def broken(task: MetaWorldTask, action: Any) -> Any:
        frame, *rest = step(task, action)
        return frame * (math.nan if next(n) in bad else 1.0), *rest

    monkeypatch.setattr(MetaWorldTask, "step", broken)


def test_bad_numbers_stop_a_run_before_the_update_and_are_kept(
    tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, 0)
    code, _, err = call("train", "sim", *tiny)
    assert code == 2 and err.count("\n") == 1
    (kept,) = Path("runs/sim").glob("*/bad_numbers.safetensors")
    line = (
        "sim: environment 0 (task button-press-topdown) returned a state that is not finite or beyond ±1e+09 at step 1"
    )
    assert line in err and err.endswith(f"what led to it is in {kept}\n")
    assert torch.isnan(load_file(kept)["frames"][0, 0]).all()
    assert not list(Path("runs").glob("*/*/checkpoints/*"))


def test_a_run_goes_back_from_bad_numbers_if_it_is_told_to(
    tiny: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_evaluated = 4 * 64  # steps of the first evaluation at most; there is a state to go back to after it
    n_learned = 4 * 4 * 8  # steps of the first rollout; its update is logged
    break_steps(monkeypatch, n_evaluated + n_learned + 10)
    code, out, err = call("train", "sim", *tiny, "on_bad_numbers=go_back", "ppo.imitation_steps=0")
    assert code == 0, err
    assert "returned a state that is not finite" in out and "going back to the last saved state, for the 1. time" in out
    (report,) = Path("runs/sim").glob("*/report.html")
    steps = [row["step"] for row in read_rows(report.parent / "metrics.jsonl") if "train/value_loss" in row]
    assert steps == [1, 2, 3]  # what was logged since the saved state, before the bad numbers, is not in it twice
    break_steps(monkeypatch, *range(n_evaluated + 10, 10_000))
    code, out, err = call("train", "sim", *tiny, "on_bad_numbers=go_back", "name=hopeless")
    assert code == 2 and out.count("going back") == 3


def test_recorded_episodes_are_learned_from_as_if_they_were_collected_now(
    tiny: list[str], checkpoint: Path, call: Call
) -> None:
    folder = checkpoint.parent / "episodes"
    few = ["gate.enabled=false", "ppo.imitation_steps=0", "ppo.success_bc_coef=1", f"episodes={folder}"]
    post = prepare(compose("dream", [*tiny, *few], TrainConfig))
    recorded = EpisodeStore(folder).load(tasks=["button-press-topdown"])
    assert post.dreams is not None and post.imitation is not None
    assert [e.seed for e in post.dreams.episodes] == [e.seed for e in recorded] and len(recorded) > 0
    assert "sim" in post.imitation.examples  # the successes among them
    post.close()
    code, _, err = call("train", "dream", *tiny, *few)
    assert code == 0, err
    rows = read_rows(next(Path("runs/dream").glob("*/metrics.jsonl")))
    assert any("dream/error" in row for row in rows)  # measured on them, before the refit
    shutil.rmtree("runs")
    assert "env.kind=sim has none; use dream or mix" in refused(call, "train", "sim", *tiny, f"episodes={folder}")
    Path("empty").mkdir()
    assert "there are none of button-press-topdown" in refused(call, "train", "dream", *tiny, "episodes=empty")


def test_the_example_of_a_trust_signal_weighs_dreams(tiny: list[str], call: Call) -> None:
    """A file outside of ours is all that it takes; what it said is in the log, its source in the run folder."""
    example = Path(__file__).parents[3] / "examples" / "own_trust_signal.py"
    trust = f"dream.trust={{reach: {{func: {example}:within_reach, params: {{radius: 0.5}}}}}}"
    code, _, err = call("train", "dream", *tiny, trust)
    assert code == 0, err
    (folder,) = Path("runs/dream").iterdir()
    values = [row["dream/trust/reach"] for row in read_rows(folder / "metrics.jsonl") if "dream/trust/reach" in row]
    # 16 chunks in 8 branches: the first of each is at the start, the second some centimetres away.
    assert values and all(0.5 < value < 1 for value in values)
    assert [file.read_bytes() for file in (folder / "plugins").iterdir()] == [example.read_bytes()]
    assert len(example.read_text().splitlines()) <= 40
