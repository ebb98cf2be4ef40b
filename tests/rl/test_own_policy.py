"""An own policy from a file: imitation, PPO, evaluation and resume of it, with no file of ours changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rewards.errors import UserError
from rl import cli
from rl.build import build_simulator, make_denoiser
from rl.config import PolicyConfig, SimulatorConfig
from rl.report.data import read_results
from rl.stages.collect import collect_from
from rl.statistics import success_rate
from rl.verbs import train
from rl.verbs.acting import load_policy
from world_model.data.episodes import EpisodeStore

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIMULATOR = "examples/own_simulator.py:PointSim"
ACTOR = PolicyConfig("examples/own_policy.py:OwnPolicy", {"state_dim": 4, "action_dim": 2})
POLICY = f"policy={{func: {ACTOR.func}, params: {{state_dim: 4, action_dim: 2}}}}"
WORDS = [POLICY, f"env.simulator={SIMULATOR}", "env.tasks=reach", "env.max_steps=40", "demonstrations=expert"]
SMALL = "threads=1 n_rounds=1 env.n_envs=8 eval.n_episodes=20 gate.enabled=false total_timesteps=512".split()
SMALL += "ppo.n_steps=4 ppo.batch_size=32 ppo.critic_warmup_steps=5 ppo.bc_batch_size=64".split()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds the examples, and demonstrations of the simulator's expert."""
    (tmp_path / "examples").mkdir()
    for name in ("own_policy.py", "own_simulator.py"):
        shutil.copy(EXAMPLES / name, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    config = SimulatorConfig(SIMULATOR)
    env = build_simulator(config, ["reach"], 16, model=None, known_tasks=(), n_context_frames=1, max_steps=40)
    EpisodeStore("expert").append(collect_from(env, 1, "expert", 64, seed=5), env.spec)


def folder_of(name: str) -> Path:
    (folder,) = Path("runs", name).iterdir()
    return folder


def test_it_learns_by_imitation_and_is_saved_and_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "sim", *WORDS, *SMALL, "ppo.imitation_steps=400"]) == 0, capsys.readouterr().err
    run = folder_of("sim")
    results = read_results(run, "sim")
    assert success_rate(results["before"]) < 0.3 and success_rate(results["after"]) > 0.4
    assert next((run / "plugins").glob("*own_policy.py")).read_bytes() == (EXAMPLES / "own_policy.py").read_bytes()

    last = run / "checkpoints" / "last"
    assert {"model.safetensors", "manifest.json", "README.md", "wamtune.json"} <= {path.name for path in last.iterdir()}
    about = json.loads((last / "wamtune.json").read_text())
    assert about["policy"] == {"func": ACTOR.func, "params": ACTOR.params}
    denoiser = make_denoiser(ACTOR, "cpu")
    assert denoiser is not None
    denoiser.load_weights(last)
    assert load_file(last / "model.safetensors").keys() == denoiser.state_dict().keys()

    # The same episodes as after the training, by the saved weights.
    capsys.readouterr()
    words = [POLICY, *WORDS[1:3], "max_steps=40", "n_episodes=20", "n_envs=4", "n_action_steps=8", "out=found.json"]
    assert cli.main(["eval", str(run), *words]) == 0, capsys.readouterr().err
    found = json.loads(Path("found.json").read_text())["episodes"]
    assert [(e["seed"], e["success"], e["n_steps"]) for e in found] == [
        (r.seed, r.success, r.n_steps) for r in results["after"]
    ]
    wrong = POLICY.replace("state_dim: 4", "state_dim: 4, width: 8")
    assert cli.main(["eval", str(run), wrong, *words[1:]]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"wamtune: {last}/model.safetensors: its weights do not fit this network: ")
    for nameless in (
        ["eval", str(run), *words[1:]],
        ["dream", str(run), "env.tasks=reach"],
        ["rank", "metaworld-tuned", str(run)],
    ):
        assert cli.main(nameless) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and ("name that with policy=FILE.py:Class" in line or "name one of our" in line)


def test_it_is_named_in_place_of_a_checkpoint_and_its_mistakes_are_one_line() -> None:
    actor = load_policy(ACTOR.func, "", "cpu", 0)
    assert actor.denoiser is not None and actor.denoiser.reads["state"].shape == (21,)
    with pytest.raises(UserError, match=r"unexpected keyword argument 'widht'; it takes state_dim, action_dim"):
        make_denoiser(PolicyConfig(ACTOR.func, {"widht": 8}), "cpu")
    Path("plain.py").write_text("import torch\n\n\ndef plain():\n    return torch.nn.Linear(2, 2)\n")
    with pytest.raises(UserError, match=r"expected a rl.policies.api.Denoiser, got Linear.*; write one around your"):
        make_denoiser(PolicyConfig("plain.py:plain"), "cpu")


@pytest.mark.parametrize("name", ["runs/none", "latest", "mine"])
def test_a_name_without_weights_is_not_evaluated_with_new_ones(name: str) -> None:
    """Else a typing error shows the figures of an untrained policy as those of a run."""
    policy = {"func": ACTOR.func, "params": ACTOR.params}
    with pytest.raises(UserError, match=rf"^no checkpoint at {name}; .*; new in its place means {ACTOR.func} as it is"):
        load_policy(name, policy, "cpu", 0)
    with pytest.raises(UserError, match=r"its weights do not fit this network"):
        load_policy("metaworld-tuned", policy, "cpu", 0)
    assert load_policy("new", policy, "cpu", 0).denoiser is not None
    Path("new").mkdir()
    with pytest.raises(UserError, match=r"^no checkpoint at new; "):
        load_policy("new", policy, "cpu", 0)


def stop_after_a_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next saved state of a phase be the last thing that a process does."""
    save_state = train.save_state

    def save(folder: Path, state: dict[str, Any]) -> None:
        save_state(folder, state)
        if "post" in state:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_state", save)


def check_in_pieces(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_least: int
) -> None:
    """A run that is stopped at each saved state and continued ends with the weights and lines of a run in one piece."""
    assert cli.main([*words, "name=whole"]) == 0, capsys.readouterr().err
    first, n_stops = [*words, "name=pieces"], 0
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        while (code := cli.main(first)) == 130:
            n_stops, first = n_stops + 1, ["train", str(folder_of("pieces"))]
    assert code == 0 and n_stops >= at_least, capsys.readouterr().err
    whole, pieces = (load_file(folder_of(n) / "checkpoints/last/model.safetensors") for n in ("whole", "pieces"))
    assert whole.keys() == pieces.keys() and all(torch.equal(value, pieces[name]) for name, value in whole.items())
    one, other = ((folder_of(n) / "metrics.jsonl").read_text() for n in ("whole", "pieces"))
    assert one == other


@pytest.mark.usefixtures("no_report")
def test_a_run_stopped_at_every_safe_point_ends_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "sim", *WORDS, *SMALL, "ppo.imitation_steps=20", "save_minutes=0", "ppo.ref_kl_coef=0.01"]
    check_in_pieces(words, monkeypatch, capsys, at_least=3)


def test_it_is_trained_in_the_dream_of_a_checkpoint(
    tiny: list[str], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its default sizes, in Meta-World; a refit changes the dream, a control follows, and each goes on exactly."""
    policy = f"policy={ACTOR.func}"
    words = ["train", "mix", *tiny, policy, f"demonstrations={checkpoint}", "env.max_steps=32", "eval.n_paired=2"]
    check_in_pieces([*words, "ppo.imitation_steps=5", "controls=[filtered_bc]"], monkeypatch, capsys, at_least=6)
    assert "rollout/dream_success" in (folder_of("whole") / "metrics.jsonl").read_text()
    capsys.readouterr()
    task = ["env.tasks=button-press-topdown", "n_episodes=2", "max_steps=16", "place=both"]
    assert cli.main(["eval", str(folder_of("whole")), policy, *task, f"world_model={checkpoint}"]) == 0
    assert "button-press-topdown" in capsys.readouterr().out
    assert cli.main(["eval", str(folder_of("whole")), policy, *task]) == 2
    assert capsys.readouterr().err == (
        "wamtune: place=both: a policy has no dream of its own; name a checkpoint with world_model=..., such as "
        "metaworld-pixels-tuned, or a world model of your own (FILE.py:Class)\n"
    )


def test_a_run_does_not_go_on_with_another_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_after_a_save(patch)
        assert cli.main(["train", "sim", *WORDS, *SMALL]) == 130
    file = Path("examples/own_policy.py")
    file.write_text(file.read_text() + "# another\n")
    capsys.readouterr()
    assert cli.main(["train", str(folder_of("sim"))]) == 2
    assert f"policy: {file.resolve()} has changed since the run began; restore it from" in capsys.readouterr().err
