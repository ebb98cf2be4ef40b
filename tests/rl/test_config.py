"""Composition of configs: what wins over what, and one clear line for everything that is wrong."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import UserError
from rewards.plugins import load_term
from rl.compose import MAX_CHARACTERS, compose, diff_from_defaults, find_preset, list_presets, overrides_of, to_yaml
from rl.config import EnvConfig, TrainConfig
from rl.deploy.robot_config import RobotConfig
from rl.envs.names import IsaacOptions, typed_options
from rl.robots.api import NumberRobot, make_robot
from rl.stages.config import PretrainConfig, TuneConfig


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    """A preset over a base."""
    base = "# Base of the tests.\nname: base\nseed: 3\nenv: {tasks: [push, drawer-open], n_envs: 8}\n"
    base += "ppo: {learning_rate: 3e-4, batch_size: 64}\n"
    (tmp_path / "base.yaml").write_text(base)
    child = "base: base.yaml\nname: child\nenv: {tasks: [push]}\nrewards: {smooth: {func: a:b, weight: -1.0}}\n"
    (tmp_path / "child.yaml").write_text(child)
    return tmp_path / "child.yaml"


def write(folder: Path, text: str) -> Path:
    path = folder / "written.yaml"
    path.write_text(text)
    return path


def message(preset: Path | None, *overrides: str) -> str:
    """The one line that composing must fail with."""
    with pytest.raises(UserError) as error:
        compose(preset, overrides, TrainConfig)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_layers_win_in_order(preset: Path) -> None:
    config = compose(preset, ["ppo.n_epochs=2", "ppo.n_epochs=7", "rewards.smooth.weight=-0.05"], TrainConfig)
    assert (config.name, config.seed, config.env.n_envs) == ("child", 3, 8)
    assert config.env.tasks == ("push",)  # lists are replaced, not joined
    assert (config.ppo.learning_rate, config.ppo.n_epochs, config.ppo.gamma) == (3e-4, 7, 0.999)
    assert config.rewards == {"success": {"weight": 1.0}, "smooth": {"func": "a:b", "weight": -0.05}}


def test_overrides_are_yaml_values() -> None:
    config = compose(
        None,
        ["name=x", "env.tasks=[push, hammer]", "ppo.learning_rate=3e-5", "ppo.target_kl=null", "gate.enabled=false"]
        + ["rewards={smooth: {func: my_rewards.py:jerk, params: {low: [-1, 2.5]}}}", "rewards.success=null"],
        TrainConfig,
    )
    assert config.env.tasks == ("push", "hammer")
    assert config.ppo.learning_rate == 3e-5 and config.ppo.target_kl is None and config.gate.enabled is False
    assert config.rewards["smooth"] == {"func": "my_rewards.py:jerk", "params": {"low": [-1, 2.5]}}
    assert config.rewards["success"] is None


def test_integer_becomes_float() -> None:
    gamma = compose(None, ["name=x", "ppo.gamma=1"], TrainConfig).ppo.gamma
    assert gamma == 1.0 and isinstance(gamma, float)


def test_config_is_read_only(preset: Path) -> None:
    config = compose(preset, [], TrainConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.ppo.n_epochs = 1  # type: ignore[misc]


def test_yaml_round_trip(preset: Path, tmp_path: Path) -> None:
    config = compose(preset, ["ppo.learning_rate=1e-5", "ppo.target_kl=null"], TrainConfig)
    assert compose(write(tmp_path, to_yaml(config)), [], TrainConfig) == config


def test_run_folder_is_a_preset(preset: Path, tmp_path: Path) -> None:
    config = compose(preset, [], TrainConfig)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    assert compose(tmp_path / "run", ["seed=9"], TrainConfig) == dataclasses.replace(config, seed=9)


def test_difference_from_defaults(preset: Path) -> None:
    config = compose(preset, ["rewards.smooth=null", "ppo.gamma=0.999"], TrainConfig)
    assert diff_from_defaults(config) == {
        "name": "child",
        "seed": 3,
        "env.tasks": ("push",),
        "env.n_envs": 8,
        "ppo.batch_size": 64,
        "ppo.learning_rate": 3e-4,
        "rewards": {"success": {"weight": 1.0}, "smooth": None},
    }


@pytest.mark.parametrize("schema", [TrainConfig, PretrainConfig, TuneConfig])
def test_the_difference_as_words_of_a_shell_gives_the_config_again(schema: type) -> None:
    for name, _ in list_presets():
        try:
            config = compose(name, [], schema)
        except UserError:
            continue  # a preset of another verb
        assert compose(None, shlex.split(" ".join(overrides_of(config))), schema) == config


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("env.tasks=push,drawer-open", "env.tasks=push,drawer-open"),
        ("env.tasks=['a, b', 'c']", """'env.tasks=['"'"'a, b'"'"', c]'"""),
        ("gate.places=[]", "'gate.places=[]'"),
        ("dream.max_expected_error=0.05", "dream.max_expected_error=0.05"),
        ("dream.max_widenings=null", "dream.max_widenings=null"),
        ("rewards.success.weight=2.0", "'rewards={success: {weight: 2.0}}'"),
    ],
)
def test_a_difference_is_written_as_it_is_typed(override: str, word: str) -> None:
    config = compose(None, ["name=x", override], TrainConfig)
    assert overrides_of(config) == ["name=x", word]
    assert compose(None, shlex.split(" ".join(overrides_of(config))), TrainConfig) == config


def test_unknown_key_names_file_and_suggestion(preset: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nppo: {learning_rat: 1e-4}\n")
    expected = f"unknown key 'ppo.learning_rat' in {path}; did you mean 'ppo.learning_rate'?"
    assert message(path) == expected
    assert message(preset, "n_epochs=3") == "unknown key 'n_epochs' on the command line; did you mean 'ppo.n_epochs'?"
    assert "known: simulator, id, tasks" in message(preset, "env.zzz=3")


def test_error_names_the_base_it_stands_in(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("ppo: {n_epochs: many}\n")
    path = write(tmp_path, "base: low.yaml\nname: x\n")
    assert message(path) == f"ppo.n_epochs='many' in {tmp_path / 'low.yaml'}: expected an integer"


@pytest.mark.parametrize(
    ("value", "tasks"),
    [
        ("push", ("push",)),
        ("push,hammer", ("push", "hammer")),
        ("push, hammer", ("push", "hammer")),
        ("[push]", ("push",)),
        ("[push,hammer]", ("push", "hammer")),
        ("gym_pusht/PushT-v0", ("gym_pusht/PushT-v0",)),
        ("[]", ()),
        ("", ()),
    ],
)
def test_a_list_needs_no_brackets_on_the_command_line(value: str, tasks: tuple[str, ...]) -> None:
    """Unquoted brackets are a pattern for zsh, which then runs nothing at all."""
    assert compose(None, ["name=x", f"env.tasks={value}"], TrainConfig).env.tasks == tasks


def test_every_kind_of_list_is_taken_without_brackets() -> None:
    config = compose(None, ["name=x", "tasks=a", "stage.atoms=1,0,.5,0,0", "isaac.groups=a,b"], PretrainConfig)
    assert (config.stage.atoms, config.env.tasks) == ((1.0, 0.0, 0.5, 0.0, 0.0), ("a",))
    groups = typed_options("isaac", config.env.options, IsaacOptions).groups
    assert groups == ("a", "b")
    words = ["robot=fake", "limits.low=-1,-0.5", "limits.boxes.hand.low=-1,2", "map.state=a,b"]
    words += ["limits.boxes.hand.high=1,2", "limits.boxes.hand.actions=0,1"]
    robot = compose(None, words, RobotConfig)
    assert (robot.limits.low, robot.limits.boxes["hand"].low, robot.map.state) == ((-1, -0.5), (-1, 2), ("a", "b"))


def test_a_list_in_a_file_is_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nenv: {tasks: push}\n")
    assert message(path) == f"env.tasks='push' in {path}: expected a list such as [push]"


def test_a_plug_in_is_found_beside_the_preset_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "terms.py").write_text("def term(t):\n    return t.success.float()\n")
    (tmp_path / "terms.py").write_text("")
    path = write(tmp_path / "mine", "name: x\nrewards: {a: {func: terms.py:term, weight: 1}, b: {func: other.py:f}}\n")
    config = compose(path, ["rewards.c={func: terms.py:term, weight: 1}"], TrainConfig)
    func = config.rewards["a"]["func"]
    assert func == f"{tmp_path / 'mine' / 'terms.py'}:term" and load_term("a", func)
    assert config.rewards["b"]["func"] == "other.py:f"  # is not there, so it is looked for in the working folder
    assert config.rewards["c"]["func"] == "terms.py:term"  # of the command line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ppo.n_epochs=many", "ppo.n_epochs='many' on the command line: expected an integer"),
        ("ppo.n_epochs=1.5", "ppo.n_epochs=1.5 on the command line: expected an integer"),
        ("ppo.n_epochs=true", "ppo.n_epochs=True on the command line: expected an integer"),
        ("ppo.n_epochs=", "ppo.n_epochs=None on the command line: expected an integer"),
        ("ppo.learning_rate=.nan", "ppo.learning_rate=nan on the command line: expected a finite number"),
        ("ppo.learning_rate=nan", "ppo.learning_rate='nan' on the command line: expected a finite number"),
        ("ppo.target_kl=.inf", "ppo.target_kl=inf on the command line: expected a finite number"),
        ("ppo.gamma=" + "9" * 400, "expected a finite number"),
        ("rewards.smooth.weight=-.inf", "rewards.smooth.weight=-inf on the command line: expected a finite number"),
        ("rewards.a.params.low=[0, .nan]", "rewards.a.params.low[1]=nan on the command line: expected a finite number"),
        ("rewards={1: {weight: 1}}", "rewards on the command line has the key 1; expected text"),
        ("name=2024", "name=2024 on the command line: expected text"),
        ("gate.enabled=1", "gate.enabled=1 on the command line: expected true or false"),
        ("env.tasks={push}", "env.tasks[0]={'push': None} on the command line: expected text"),
        ("env.tasks=push]", "cannot read the YAML in the value of 'env.tasks' on the command line"),
        ("env.tasks=[1]", "env.tasks[0]=1 on the command line: expected text"),
        ("env.kind=dreams", "env.kind='dreams' on the command line: expected one of sim, dream, mix"),
        ("dream=2", "dream=2 on the command line: expected a group of keys (world_model, n_envs, horizon"),
        ("seed.x=2", "seed={'x': 2} on the command line: expected an integer"),
        (
            "name=${oc.env:HOME}",
            "'${oc.env:HOME}' in the value of 'name' on the command line: interpolation is not allowed",
        ),
        ("name=${", "interpolation is not allowed"),
        ("name=*x", "YAML anchors and aliases are not allowed"),
        ("name=&x y", "YAML anchors and aliases are not allowed"),
        ("name=!!python/object:os.system x", "cannot read the YAML in the value of 'name' on the command line"),
        ("name=[", "cannot read the YAML in the value of 'name' on the command line"),
        ("name=" + "[" * 90_000, "nested more than 20 deep"),
        ("name=x\nseed: 1", "expected one value"),
        ("--seed=1", "unexpected '--seed=1'; write overrides as key=value: seed=1"),
        ("--seed", "unexpected '--seed'; write overrides as key=value: seed=..."),
        ("seed", "unexpected 'seed'; write overrides as key=value, for example seed=1"),
        ("env..id=x", "unexpected 'env..id=x'; write overrides as key=value"),
        ("=1", "write overrides as key=value"),
        # What each section checks for itself once everything is composed.
        ("ppo.learning_rate=0", "ppo.learning_rate=0: expected more than 0"),
        ("ppo.gamma=1.1", "ppo.gamma=1.1: expected between 0 and 1"),
        ("n_action_steps=-1", "n_action_steps=-1: expected at least 1"),
        ("ppo.bc_batch_size=0", "ppo.bc_batch_size=0: expected at least 1"),
        ("eval.seed=-5", "eval.seed=-5: expected 1000000 to 49999800"),
        ("gate.seed=999999", "gate.seed=999999: expected 1000000 to 49999"),
        ("eval.seed=49999801", "eval.seed=49999801: expected 1000000 to 49999800"),
        ("eval.seed=1000000", "eval.seed=1000000: gates may use 1000000 to 1000"),
        ("gate.max_episodes=7", "gate.max_episodes=7: expected at least 8"),
        ("gate.n_guard=50000", "gate.n_guard=50000: expected at most 40,000 in a run of so many rounds"),
        ("steer=1.5", "steer=1.5: expected between 0 and 1"),
        (
            "gate.n_dreams=30000",
            "gate.n_dreams=30000: gates of up to 960 episodes would dream from more than",
        ),
        ("ppo.ent_coef=0.01", "ppo.ent_coef=0.01: policy=flow has a fixed entropy; set it to 0"),
        ("ppo.batch_size=100000", "ppo.batch_size=100000 exceeds a rollout of 320 chunks"),
    ],
)
def test_wrong_values(preset: Path, override: str, expected: str) -> None:
    assert expected in message(preset, override)


@pytest.mark.parametrize(
    ("written", "func", "params", "starts_from"),
    [
        ("flow", "flow", {}, "metaworld-tuned"),
        ("gaussian", "gaussian", {}, "a Gaussian MLP"),
        ("outputs/act", "lerobot", {"checkpoint": "outputs/act"}, "outputs/act"),
        ("ann/act", "lerobot", {"checkpoint": "ann/act"}, "ann/act"),
        ("hf://ann/act", "lerobot", {"checkpoint": "hf://ann/act"}, "hf://ann/act"),
        ("mine.py:Mine", "mine.py:Mine", {}, "mine.py:Mine"),
        ("package.module:Mine", "package.module:Mine", {}, "package.module:Mine"),
        ("{func: mine.py:Mine, params: {width: 8}}", "mine.py:Mine", {"width": 8}, "mine.py:Mine"),
        ("{func: lerobot, params: {checkpoint: a, lora_rank: 4}}", "lerobot", {"checkpoint": "a", "lora_rank": 4}, "a"),
        ("{func: flow}", "flow", {}, "metaworld-tuned"),
        ("{func: installed}", "installed", {}, "installed"),
    ],
)
def test_a_policy_is_a_word_or_func_and_params(
    written: str, func: str, params: dict[str, object], starts_from: str, tmp_path: Path
) -> None:
    config = compose(None, ["name=x", f"policy={written}", "gate.enabled=false"], TrainConfig)
    assert (config.actor.func, config.actor.params, config.starts_from) == (func, params, starts_from)
    assert compose(write(tmp_path, to_yaml(config)), [], TrainConfig) == config
    assert config.uses_model == (func == "flow")
    if func != "gaussian":  # a dream is made of the checkpoint, whoever acts
        assert compose(None, ["name=x", f"policy={written}", "env.kind=dream"], TrainConfig).uses_model


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["policy=3"], "policy=3 on the command line: expected text"),
        (["policy=[a]"], "policy=['a'] on the command line: expected text"),
        (
            ["policy={fun: a.py:B}"],
            "unknown key 'policy.fun' on the command line; did you mean 'policy.func'?",
        ),
        (["policy={func: 3}"], "policy.func=3 on the command line: expected text"),
        (["policy={func: a.py:B, params: 3}"], "policy.params=3 on the command line: expected a group of keys"),
        (["policy={params: {width: 8}}"], "policy: func is missing; write policy={func: FILE.py:Class, params: {...}}"),
        (
            ["policy=gaussian", "env.kind=mix", "n_rounds=9"],
            "policy=gaussian has no dream, so env.kind=mix cannot be; set env.kind=sim, or bring a world model with "
            "dream.world_model=FILE.py:Class",
        ),
        (["policy=a", "ppo.ent_coef=0.1"], "ppo.ent_coef=0.1: policy=lerobot has a fixed entropy; set it to 0"),
    ],
)
def test_wrong_policies(words: list[str], expected: str) -> None:
    assert message(None, "name=x", *words) == expected


def test_a_policy_of_ones_own_may_have_an_entropy() -> None:
    assert compose(None, ["name=x", "policy=a.py:B", "ppo.ent_coef=0.1"], TrainConfig).ppo.ent_coef == 0.1


def test_a_policy_is_found_beside_the_preset_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    for written in ("mine.py:Mine", "{func: mine.py:Mine}"):
        config = compose(write(tmp_path, f"name: x\npolicy: {written}\n"), [], TrainConfig)
        assert config.actor.func == f"{tmp_path / 'mine.py'}:Mine"


def test_tasks_belong_to_the_environment_that_they_were_written_for(preset: Path, tmp_path: Path) -> None:
    def tasks(*overrides: str, of: Path = preset) -> tuple[str, ...]:
        return compose(of, overrides, TrainConfig).env.tasks

    assert tasks("env.id=Pendulum-v1") == ()
    assert tasks("env.id=metaworld") == ("push",)  # no other one
    for words in (["env.tasks=[a]", "env.id=Isaac-A"], ["env.id=Isaac-A", "env.tasks=[a]"]):
        assert tasks(*words) == ("a",)  # said at once, in whatever order
    assert tasks("env.id=Isaac-A", "env={id: metaworld}") == ("push",)
    child = write(tmp_path, "base: child.yaml\nenv: {id: Isaac-A}\n")
    assert tasks(of=child) == tasks("env.n_envs=3", of=child) == ()
    assert tasks("env.id=metaworld", of=child) == ()  # those of the base are gone


@pytest.mark.parametrize("off", ["null", "{weight: 0}", "{weight: 0.0}"])
def test_training_without_any_reward_is_refused(preset: Path, off: str) -> None:
    said = "rewards: no term is switched on, so there is nothing to learn; set rewards.success.weight=1"
    assert message(preset, f"rewards.success={off}", "rewards.smooth=null") == said
    assert message(preset, "rewards.success.weight=0", "rewards.smooth.weight=0") == said
    compose(preset, [f"rewards.success={off}"], TrainConfig)  # there is another


def test_mix_leaves_the_simulator_a_round() -> None:
    with pytest.raises(UserError, match=r"dream\.n_rounds=4: expected fewer than n_rounds=4"):
        compose("mix", ["n_rounds=4"], TrainConfig)
    assert compose("mix", ["n_rounds=5"], TrainConfig).n_rounds == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: ${oc.env:HOME}", "'${oc.env:HOME}' in"),
        ("a: &a [x]\nb: [*a, *a]", "anchors and aliases are not allowed"),
        ("name: x\nname: y", "duplicate key"),
        ("- name", "is a list; expected key: value lines"),
        ("name: x\nseed:\n", "seed=None in"),
        ("#" * MAX_CHARACTERS + "\nname: x", "characters; at most"),
        ("seed: 1", "key 'name' has no value in"),
        ("base: 3", "base=3 in"),
        ("base: nowhere.yaml", "there is no file"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(write(tmp_path, text))


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    assert message(tmp_path / "x.yaml").startswith("cannot read the preset")


def test_cycle_of_bases(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    assert "a.yaml -> b.yaml -> a.yaml" in message(tmp_path / "a.yaml")


def test_presets_are_found_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rl.compose.preset_folder", lambda: tmp_path)
    (tmp_path / "demo.yaml").write_text("# The first run.\n# Two minutes.\nname: demo\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.yaml").write_text("base: demo\nseed: 4\n")
    assert list_presets() == [("deep/one", ""), ("demo", "The first run.")]
    assert find_preset("demo") == tmp_path / "demo.yaml"
    assert compose("deep/one", [], TrainConfig).name == "demo"
    with pytest.raises(UserError, match="unknown preset 'dmo'; did you mean 'demo'"):
        find_preset("dmo")
    with pytest.raises(UserError, match="known: deep/one, demo"):
        find_preset("zzzzzz")


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_one_clear_line(text: str) -> None:
    try:
        value = compose(None, [f"id={text}"], EnvConfig).id
    except UserError:
        return
    assert isinstance(value, str)


@given(st.text(max_size=60))
def test_any_override_is_taken_or_one_clear_line(text: str) -> None:
    try:
        compose(None, [text], EnvConfig)
    except UserError:
        return


def test_presets_come_in_order_and_each_is_told_in_one_line() -> None:
    found = list_presets()
    assert [name for name, _ in found] == sorted(name for name, _ in found)
    assert [name for name, line in found if not line.endswith(".")] == []


@pytest.mark.parametrize("name", [name for name, _ in list_presets()])
def test_every_preset_composes(name: str) -> None:
    """With the schema of the verb that its first example names."""
    schemas = {"train": TrainConfig, "pretrain": PretrainConfig, "tune": TuneConfig, "deploy": RobotConfig}
    verb = find_preset(name).read_text().partition("wamtune ")[2].split()[0]
    config = compose(name, [], schemas[verb])
    if isinstance(config, RobotConfig):
        robot = make_robot(config.robot, config.params, config.task)
        assert isinstance(robot, NumberRobot)
        assert len(config.limits.low) == len(robot.action)
        assert (config.map.action or robot.action) == robot.action and (config.map.state or robot.state) == robot.state
