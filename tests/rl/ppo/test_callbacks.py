"""Callbacks of a run: called at the points of Stable-Baselines3, kept over an interruption, and checked first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rewards.errors import UserError
from rl import cli
from rl.config import PPOConfig
from rl.envs.sim import SimEnv
from rl.policies.gaussian import GaussianPolicy
from rl.ppo.callbacks import RunCallbacks, callback_files
from rl.ppo.update import PPO
from world_model.wam.store import load_model_and_config

COUNT = '''
import json
from stable_baselines3.common.callbacks import BaseCallback


class Count(BaseCallback):
    """Counts its calls, logs them, and stops after `most` chunks."""

    def __init__(self, most=None):
        super().__init__()
        self.most, self.calls, self.places = most, {}, []

    def count(self, name):
        self.calls[name] = self.calls.get(name, 0) + 1

    def _on_training_start(self):
        self.count("training_start")

    def _on_rollout_start(self):
        self.count("rollout_start")

    def _on_step(self):
        self.count("step")
        self.places.append(self.locals["place"])
        self.logger.record("mine/steps", self.n_calls)
        self.logger.record("mine/text", "left out")
        return self.n_calls != self.most

    def _on_rollout_end(self):
        self.count("rollout_end")

    def _on_training_end(self):
        self.count("training_end")
        found = {"calls": self.calls, "places": self.places, "num_timesteps": self.num_timesteps}
        found |= {"n_updates": self.model.n_updates, "in_model": self.model.num_timesteps}
        open("count.json", "w").write(json.dumps(found))
'''

WORDS = "ppo.imitation_steps=0 env.terminate_on_success=false gate.enabled=false eval.n_paired=0".split()
"""Episodes of 64 steps, so that a rollout of 4 chunks of 8 steps in 4 environments always executes 128."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(COUNT)


def trained(kind: str, tiny: list[str], *words: str) -> Path:
    """Train, and return the run folder."""
    assert cli.main(["train", kind, *tiny, *WORDS, f"name={kind}", *words]) == 0
    (folder,) = Path("runs", kind).iterdir()
    return folder


def rows(folder: Path, key: str) -> list[tuple[int, float]]:
    """Step and value of each line of metrics.jsonl that has `key`."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[key]) for line in lines if key in line]


@pytest.mark.usefixtures("no_report")
def test_an_own_callback_is_called_in_the_simulator(tiny: list[str]) -> None:
    """320 steps are 2 rollouts to the nearest, of 4 chunks each."""
    folder = trained("sim", tiny, "callbacks.count.func=mine.py:Count")
    found = json.loads(Path("count.json").read_text())
    starts = {"training_start": 1, "rollout_start": 2, "step": 8, "rollout_end": 2, "training_end": 1}
    assert found["calls"] == starts and found["places"] == ["sim"] * 8
    assert found["num_timesteps"] == found["in_model"] == 256 and found["n_updates"] == 1  # when the last one began
    assert rows(folder, "mine/steps") == [(1, 4), (2, 8)] and not rows(folder, "mine/text")
    assert [step for step, _ in rows(folder, "train/value_loss")] == [1, 2]
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("mine/steps")] == [(1, 4.0), (2, 8.0)]
    assert [path.name.partition("-")[2] for path in (folder / "plugins").iterdir()] == ["mine.py"]


@pytest.mark.usefixtures("no_report")
def test_an_own_callback_is_called_in_the_dream(tiny: list[str]) -> None:
    """A warm-up of the critic and 2 updates, on rollouts of 2 chunks in 8 dreams."""
    words = ["dream.n_updates=2", "ppo.critic_warmup_steps=1", "dream.n_episodes=4", "callbacks.c.func=mine.py:Count"]
    folder = trained("dream", tiny, *words)
    found = json.loads(Path("count.json").read_text())
    starts = {"training_start": 1, "rollout_start": 3, "step": 6, "rollout_end": 3, "training_end": 1}
    assert found["calls"] == starts and found["places"] == ["dream"] * 6
    assert found["num_timesteps"] == 3 * 2 * 8 * 8 and found["n_updates"] == 1
    assert rows(folder, "mine/steps") == [(0, 2), (1, 4), (2, 6)]


def test_a_callback_ends_the_training(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In its 6th chunk, the 2nd of the second rollout: that one teaches nothing, and there is no second round."""
    words = ["n_rounds=2", "total_timesteps=640", "callbacks.enough={func: mine.py:Count, params: {most: 6}}"]
    folder = trained("sim", tiny, *words)
    assert "callback 'enough' ended the training after 1 updates" in capsys.readouterr().out
    found = json.loads(Path("count.json").read_text())
    starts = {"training_start": 1, "rollout_start": 2, "step": 6, "rollout_end": 1, "training_end": 1}
    assert found["calls"] == starts and found["num_timesteps"] == 6 * 32
    assert rows(folder, "train/value_loss")[-1][0] == 1 and len(rows(folder, "eval/success")) == 2
    assert rows(folder, "eval/total_timesteps")[-1] == (1, 6 * 32)
    assert "The callback `enough` ended the training." in (folder / "checkpoints/last/README.md").read_text()
    assert (folder / "report.html").is_file()
    # It is over: to go on only shows it again.
    Path("count.json").unlink()
    assert cli.main(["train", str(folder)]) == 0 and not Path("count.json").exists()


@pytest.mark.usefixtures("no_report")
def test_callbacks_of_sb3_evaluate_and_save(tiny: list[str]) -> None:
    """Every 4 chunks, so once a rollout; a control has files of its own."""
    evaluation = "{eval_freq: 4, n_eval_episodes: 2, best_model_save_path: best, log_path: logs, verbose: 0}"
    words = [f"callbacks.judge={{func: EvalCallback, params: {evaluation}}}", "controls=[anchor]"]
    words += ["callbacks.CheckpointCallback.params={save_freq: 4, save_path: kept}"]
    folder = trained("sim", tiny, *words)
    for of in (folder, folder / "controls/anchor"):
        assert sorted(path.name for path in (of / "kept").iterdir()) == ["rl_model_128_steps", "rl_model_256_steps"]
        assert (of / "best/best_model/manifest.json").is_file() and (of / "logs/evaluations.npz").is_file()
    for key in ("eval/mean_reward", "anchor/eval/mean_reward"):
        assert [step for step, _ in rows(folder, key)] == [0, 1]  # updates so far, where it was evaluated
    assert [length for _, length in rows(folder, "eval/mean_ep_length")] == [64, 64]
    steps = rows(folder, "time/total_timesteps")
    assert steps == sorted(steps)  # those of the run, and not what callbacks count
    model, about = load_model_and_config(folder / "kept/rl_model_256_steps")
    last, _ = load_model_and_config(folder / "checkpoints/last")
    assert about["stage"] == "rl"
    assert not all(torch.equal(a, b) for a, b in zip(model.parameters(), last.parameters(), strict=True))


@pytest.mark.usefixtures("no_report")
def test_an_evaluation_of_sb3_changes_no_number_of_the_run(tiny: list[str]) -> None:
    plain = (trained("sim", tiny) / "metrics.jsonl").read_text()
    judge = "{func: EvalCallback, params: {eval_freq: 3, n_eval_episodes: 2, verbose: 0}}"
    folder = trained("sim", tiny, f"callbacks.judge={judge}", "name=judged")
    (folder,) = Path("runs/judged").iterdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert "".join(line for line in lines if "eval/mean_reward" not in line) == plain


@pytest.mark.usefixtures("no_report")
def test_a_schedule_gives_the_rates_that_are_computed_by_hand(tiny: list[str]) -> None:
    """Of 320 steps 0 and 128 are done when the rollouts begin: 1 - 0 and 1 - 0.4 of the training remain."""
    rate = "ppo.learning_rate={func: linear, params: {start: 1.0e-3, end: 0.0}}"
    clip = "ppo.clip_range={func: mine.py:halved, params: {value: 0.2}}"
    Path("mine.py").write_text("def halved(value):\n    return lambda remaining: value * (1 + remaining) / 2\n")
    folder = trained("sim", tiny, rate, clip)
    assert rows(folder, "train/learning_rate") == [(1, pytest.approx(1e-3)), (2, pytest.approx(6e-4))]
    assert rows(folder, "train/clip_range") == [(1, pytest.approx(0.2)), (2, pytest.approx(0.16))]
    assert [path.name.partition("-")[2] for path in (folder / "plugins").iterdir()] == ["mine.py"]


@pytest.mark.usefixtures("no_report")
def test_the_example_runs(tiny: list[str]) -> None:
    example = Path(__file__).parents[3] / "examples/my_callback.py"
    term = f"callbacks.enough={{func: {example}:EnoughSuccesses, params: {{n: 1000}}}}"
    assert [step for step, _ in rows(trained("sim", tiny, term), "rollout/successes_in_a_row")] == [1, 2]


# --- what is refused ---


@pytest.fixture
def make(make_point: Callable[..., Any]) -> Callable[..., RunCallbacks]:
    def make(terms: dict[str, Any], log: Any = None) -> RunCallbacks:
        env = make_point(2, seed=1, max_steps=6, terminate_on_success=False)
        torch.manual_seed(0)
        ppo = PPO(GaussianPolicy(env, chunk_size=4), PPOConfig(n_steps=2, batch_size=4))
        made = RunCallbacks(
            terms,
            ppo=ppo,
            env=env,
            make_eval_env=lambda n: make_point(n, seed=2),
            folder=Path(),
            log=log or (lambda values: None),
            save=lambda path: path.mkdir(),
        )
        made.env = env  # type: ignore[attr-defined] # where these tests collect
        return made

    return make


BASE = "stable_baselines3.common.callbacks.BaseCallback"
KNOWN = (
    "CheckpointCallback, EvalCallback, EveryNTimesteps, LogEveryNTimesteps, StopTrainingOnMaxEpisodes, "
    "StopTrainingOnNoModelImprovement, StopTrainingOnRewardThreshold"
)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (3, "callback 'a': expected func and params, got 3; write {func: ..., params: {...}}"),
        ({"func": 3}, "callback 'a': func is 3, expected a name, module:Class or path.py:Class"),
        ({"parms": {}}, "callback 'a': unknown key 'parms', expected func or params; did you mean 'params'?"),
        (
            {"func": "EvalCalback"},
            f"callback 'a': unknown func 'EvalCalback'; did you mean 'EvalCallback'?; known: {KNOWN}; "
            "for your own write func: path.py:name or module:name",
        ),
        ({"func": "mine.py:Cont"}, "callback 'a': mine.py has no 'Cont'; did you mean 'Count'?"),
        ({"func": "json:dumps"}, f"callback 'a': json:dumps is no callback; expected a class that extends {BASE}"),
        (
            {"func": "mine.py:Count", "params": {"n": 1}},
            "callback 'a': params of mine.py:Count: got an unexpected keyword argument 'n'; it takes most",
        ),
        (
            {"func": "mine.py:Count", "params": 1},
            "callback 'a': params are 1, expected names and values; write {name: value}",
        ),
        (
            {"func": "EvalCallback", "params": {"callback_after_eval": {"func": "StopTrainingOnRewardThreshold"}}},
            "callback 'a.callback_after_eval': params of StopTrainingOnRewardThreshold: "
            "missing a required argument: 'reward_threshold'; it takes reward_threshold, verbose",
        ),
    ],
)
def test_what_no_callback_can_be(make: Callable[..., RunCallbacks], term: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make({"a": term})
    assert str(caught.value) == message


def test_a_bad_callback_leaves_no_run_behind(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "sim", *tiny, "callbacks.a.func=mine.py:Cont"]) == 2
    assert capsys.readouterr().err == "wamtune: callback 'a': mine.py has no 'Cont'; did you mean 'Count'?\n"
    assert not Path("runs").exists()


def test_where_there_is_one_simulator_no_callback_evaluates(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SimEnv, "alone", True)
    assert cli.main(["train", "sim", *tiny, "callbacks.EvalCallback.params.eval_freq=4"]) == 2
    assert capsys.readouterr().err == (
        "wamtune: callback 'EvalCallback': env.simulator=metaworld: there can be only one simulator in a process, "
        "and PPO trains in it; leave callbacks that evaluate out\n"
    )


def test_an_exception_of_a_callback_is_told_with_file_and_line(make: Callable[..., Any]) -> None:
    Path("bad.py").write_text(COUNT.replace('self.count("step")', "1 / 0"))
    callbacks = make({"a": {"func": "bad.py:Count"}, "off": None})
    line = 1 + next(i for i, text in enumerate(Path("bad.py").read_text().splitlines()) if "1 / 0" in text)
    with pytest.raises(UserError) as caught:
        callbacks.collect(callbacks.env, 2, fresh=False, n_updates=0)
    expected = f"callback 'a' raised ZeroDivisionError: division by zero; see {Path('bad.py').resolve()}:{line}"
    assert str(caught.value) == expected


# --- what is kept ---


def test_what_a_callback_has_counted_is_kept(make: Callable[..., Any]) -> None:
    """Also of one inside another; what no file can hold is made anew."""
    inner = {"func": "mine.py:Count"}
    terms = {"count": {"func": "mine.py:Count"}, "every": {"func": "EveryNTimesteps", "params": {"n_steps": 10}}}
    terms["every"]["params"]["callback"] = inner  # type: ignore[index]
    one, other = make(terms), make(terms)
    one.begin()
    one.collect(one.env, 3, fresh=False, n_updates=0)  # chunks of 4, 2 and 4 steps in 2 environments
    state = one.state_dict()
    assert state["num_timesteps"] == 20
    assert state["callbacks"]["count"]["calls"] == {
        "training_start": 1,
        "rollout_start": 1,
        "step": 3,
        "rollout_end": 1,
    }
    # After 8, 12 and 20 steps: at 12 it is due, at 20 not yet again.
    assert state["callbacks"]["every"]["last_time_trigger"] == 12
    assert state["callbacks"]["every"]["callback"]["n_calls"] == 1
    other.load_state_dict(state)
    other.begin()
    assert other.state_dict() == state
    other.collect(other.env, 1, fresh=False, n_updates=0)
    again = other.state_dict()["callbacks"]
    assert again["count"]["n_calls"] == 4 and again["every"]["callback"]["n_calls"] == 2


def test_sources_are_found_in_callbacks_within_callbacks() -> None:
    inner = {"func": "mine.py:Count"}
    terms = {"every": {"func": "EveryNTimesteps", "params": {"n_steps": 1, "callback": inner}}, "off": None}
    assert callback_files(terms) == {"callbacks.every.callback": Path("mine.py").resolve()}


def test_without_callbacks_nothing_is_between(make: Callable[..., Any]) -> None:
    callbacks = make({"off": None})
    callbacks.begin()
    assert callbacks.collect(callbacks.env, 2, fresh=False, n_updates=0).value.shape == (2, 2)
    callbacks.end()
    assert callbacks.state_dict() is None and callbacks.stopped_by == ""
