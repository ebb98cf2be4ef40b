"""Which simulator a config means, in the words of now and of older versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rl.compose import compose, to_yaml
from rl.config import SimulatorConfig, TrainConfig
from rl.envs.metaworld.task_sets import ML45, ML45_TEST, MT50
from rl.envs.metaworld.tasks import TASKS
from rl.envs.names import (
    IsaacOptions,
    check_builtin_options,
    check_has_simulator,
    env_of_tasks,
    simulator_name,
    task_of_id,
    typed_options,
    with_task_sets,
)
from rl.stages.config import PretrainConfig, TuneConfig
from rl.verbs.options import DreamOptions, EvalOptions, FitOptions

OLD_ISAAC = "isaac: {groups: [policy], success: success, action_bound: 1.0, overrides: [], device: auto}"


@pytest.mark.parametrize(
    ("simulator", "id", "name"),
    [
        ("", "", "metaworld"),
        ("", "Pendulum-v1", "gymnasium"),
        ("", "Isaac-Cartpole", "isaac"),
        ("gymnasium", "Isaac-Like-v0", "gymnasium"),
        ("mine.py:Sim", "Pendulum-v1", "mine.py:Sim"),
    ],
)
def test_the_simulator_is_the_one_that_is_named_or_that_of_the_id(simulator: str, id: str, name: str) -> None:
    assert simulator_name(SimulatorConfig(simulator, id)) == name


@pytest.mark.parametrize(
    ("schema", "words", "expected"),
    [
        (TrainConfig, ["name=a", "env.id=metaworld", "env.tasks=push"], SimulatorConfig(tasks=("push",))),
        (TrainConfig, ["name=a", "env.id=recorded"], SimulatorConfig("recorded")),
        (TrainConfig, ["name=a", "env.isaac.success=null"], SimulatorConfig(options={"success": None})),
        (TrainConfig, ["name=a", "env.events.m.low=2"], SimulatorConfig(options={"events": {"m": {"low": 2}}})),
        (PretrainConfig, ["name=a", "id=recorded", "tasks=a,b"], SimulatorConfig("recorded", tasks=("a", "b"))),
        (
            PretrainConfig,
            ["name=a", "isaac.device=cpu", "n_workers=3"],
            SimulatorConfig(options={"device": "cpu"}, n_workers=3),
        ),
        (TuneConfig, ["name=a", "episodes=e", "id=Walk-v0"], SimulatorConfig(id="Walk-v0")),
        (EvalOptions, ["id=Walk-v0", "n_workers=2"], SimulatorConfig(id="Walk-v0", n_workers=2)),
        (EvalOptions, ["id=metaworld", "tasks=push,hammer"], SimulatorConfig(tasks=("push", "hammer"))),
        (DreamOptions, ["task=push"], SimulatorConfig(tasks=("push",))),
        (FitOptions, ["env.tasks=push"], SimulatorConfig(tasks=("push",))),
    ],
)
def test_words_of_older_versions_mean_what_they_did(schema: Any, words: list[str], expected: SimulatorConfig) -> None:
    env = compose(None, words, schema).env
    assert {name: getattr(env, name) for name in vars(expected)} == vars(expected)


def test_the_config_of_an_old_run_folder_is_read(tmp_path: Path) -> None:
    """They hold every key of their version, the defaults of Isaac Lab among them."""
    old = tmp_path / "config.yaml"
    events = "events: {m: {func: mass, mode: reset, low: 0.5, high: 2.0, every: 50}}"
    for lines, expected in (
        (f"id: metaworld, tasks: [push], {OLD_ISAAC}, events: {{}}", SimulatorConfig(tasks=("push",))),
        (f"id: Pendulum-v1, tasks: [], {OLD_ISAAC}, events: {{}}", SimulatorConfig(id="Pendulum-v1")),
    ):
        old.write_text(f"name: old\nenv: {{kind: sim, n_workers: 0, {lines}}}\n")
        config = compose(old, [], TrainConfig)
        check_builtin_options(config.env)
        assert {name: getattr(config.env, name) for name in vars(expected)} == vars(expected)
        (tmp_path / "new.yaml").write_text(to_yaml(config))
        assert compose(tmp_path / "new.yaml", [], TrainConfig) == config
    old.write_text(f"name: old\nenv: {{id: metaworld, {OLD_ISAAC}, {events}}}\n")
    config = compose(old, [], TrainConfig)
    check_builtin_options(config.env)
    assert config.env.options["events"]["m"]["low"] == 0.5


def test_options_and_id_of_a_preset_belong_to_its_simulator() -> None:
    env = compose("isaac", [], TrainConfig).env
    assert typed_options("isaac", env.options, IsaacOptions) == IsaacOptions(success="time_out")
    other = compose("isaac", ["env.simulator=mine.py:Sim"], TrainConfig).env
    assert (other.id, other.options) == ("", {})
    assert compose("gaussian", ["env.simulator=mine.py:Sim", "env.id=hard"], TrainConfig).env.id == "hard"


@pytest.mark.parametrize(
    ("env", "line"),
    [
        (SimulatorConfig(options={"event": {}}), "unknown key 'env.options.event' of simulator metaworld; did"),
        (SimulatorConfig(options={"events": {"m": 3}}), "env.options.events.m=3 of simulator metaworld: expected"),
        (SimulatorConfig("isaac", options={"action_bound": 0}), "env.options.action_bound=0.0: expected more than 0"),
        (SimulatorConfig("isaac", options={"device": 1}), "env.options.device=1 of simulator isaac: expected text"),
        (
            SimulatorConfig("recorded", "my.py:Reach"),
            "env.id=my.py:Reach: env.simulator=recorded runs none; leave it out, or add env.simulator=gymnasium",
        ),
        (SimulatorConfig(id="Walk-v0", options={"x": 1}), "unknown key 'env.options.x' of simulator gymnasium; known"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_fit_is_one_line(env: SimulatorConfig, line: str) -> None:
    with pytest.raises(UserError) as error:
        check_builtin_options(env)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_simulator_is_found_beside_the_preset_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "p.yaml").write_text("name: x\nenv: {simulator: mine.py:Sim}\n")
    assert compose(tmp_path / "p.yaml", [], TrainConfig).env.simulator == f"{tmp_path / 'mine.py'}:Sim"


def test_a_task_that_is_named_like_an_id_is_one() -> None:
    assert env_of_tasks(SimulatorConfig(), ["Isaac-Push-Puck"]).id == "Isaac-Push-Puck"
    assert env_of_tasks(SimulatorConfig(), ["gym_pusht/PushT-v0"]).id == "gym_pusht/PushT-v0"
    # a checkpoint must not choose what code runs
    for tasks in (["push"], ["a-v1", "b-v1"], ["mine/env.py:Reach"], ["mine/env-v1.py:Reach"]):
        assert env_of_tasks(SimulatorConfig(), tasks) == SimulatorConfig()
    assert env_of_tasks(SimulatorConfig("mine.py:Sim"), ["a-v1"]) == SimulatorConfig("mine.py:Sim")


def test_a_task_of_a_file_has_the_name_of_its_class() -> None:
    assert task_of_id("/far/away/env.py:Reach") == "Reach" and task_of_id("Pendulum-v1") == "Pendulum-v1"
    assert task_of_id("") == "" and task_of_id("package:Walk-v0") == "package:Walk-v0"
    assert task_of_id("env.py:Reach", ["env.py:Reach"]) == "env.py:Reach"  # as a checkpoint of an older version has it


@pytest.mark.parametrize("env", [SimulatorConfig("mine.py:Sim"), SimulatorConfig(id="mine.py:Reach")])
def test_tasks_of_no_simulator_of_ours_need_one_that_is_named(env: SimulatorConfig) -> None:
    check_has_simulator(env, ["Reach"], "runs/own")
    check_has_simulator(SimulatorConfig(), ["push", "a new one"], "runs/own")
    with pytest.raises(UserError) as error:
        check_has_simulator(SimulatorConfig(), ["Reach the block.", "b"], "runs/own")
    line = (
        "runs/own: its task 'Reach the block.' is none of Meta-World's; name the simulator that has it, env.simulator="
    )
    assert str(error.value).startswith(line)


def test_sets_of_tasks_are_those_of_metaworld() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML45_V3

    assert TASKS == MT50 and len(MT50) == 50 == len(ALL_V3_ENVIRONMENTS)
    for part, ours in (("train", ML45), ("test", ML45_TEST)):
        assert {f"{task}-v3" for task in ours} == set(ML45_V3[part])


def test_a_set_stands_for_its_tasks_and_all_for_those_of_the_checkpoint() -> None:
    assert with_task_sets(SimulatorConfig(tasks=("ml45-test",))).tasks == ML45_TEST
    assert with_task_sets(SimulatorConfig(tasks=("push", "mt50"))).tasks == ("push", *(t for t in MT50 if t != "push"))
    assert with_task_sets(SimulatorConfig(tasks=("all",))).tasks == ()
    for env in (SimulatorConfig(tasks=("push",)), SimulatorConfig("mine.py:Sim", tasks=("mt50",))):
        assert with_task_sets(env) is env
    with pytest.raises(UserError, match="all means all tasks of the checkpoint"):
        with_task_sets(SimulatorConfig(tasks=("all", "push")))
