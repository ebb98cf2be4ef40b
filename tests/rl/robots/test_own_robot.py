"""A robot of a user's own: found by file, module or entry point, checked, and run from the command line."""

import sys
from pathlib import Path

import pytest

from rewards.errors import UserError
from rl import cli
from rl.compose import compose
from rl.deploy.robot_config import RobotConfig
from rl.robots.api import make_robot
from rl.robots.fake import FakeRobot
from world_model.data.episodes import EpisodeStore

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_robot.py"
ROBOT = """
class Mine:
    observation_features = action_features = {}
    is_connected = False
    def __init__(self, port, task="", speed=1.0):
        self.port, self.task, self.speed = port, task, 1 / speed
    def connect(self): pass
    def get_observation(self): return {}
    def send_action(self, action): return action
    def disconnect(self): pass

class Half:
    observation_features = action_features = {}
    def connect(self): pass
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a robot into a folder of its own and go there."""
    path = tmp_path / "robot_plugin_in_tmp.py"
    path.write_text(ROBOT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return path


def test_it_is_found_by_file_module_and_entry_point(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = plugin.parent / "some_robots-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-robots\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[wamtune.robots]\nmine = {plugin.stem}:Mine\n")
    monkeypatch.syspath_prepend(plugin.parent)
    for name in (f"{plugin.name}:Mine", f"{plugin.stem}:Mine", "mine"):
        robot = make_robot(name, {"port": "tty"}, task="push")
        assert vars(robot) == {"port": "tty", "task": "push", "speed": 1.0}  # it is given the task of the session
    assert isinstance(make_robot("fake", {"state": ["a"], "action": ["b"]}), FakeRobot)
    assert "params.task=hammer: expected push" in refused(f"{plugin.name}:Mine", port="tty", task="hammer")


def refused(name: str, **params: object) -> str:
    """Return the line with which a robot is refused."""
    with pytest.raises(UserError) as caught:
        make_robot(name, params, task="push")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_is_one_line(plugin: Path) -> None:
    mine = f"{plugin.name}:Mine"
    assert refused(mine) == (
        f"robot={mine}: params of {mine}: missing a required argument: 'port'; it takes port, task, speed"
    )
    assert refused(mine, port="tty", speed=0) == (
        f"robot={mine} raised ZeroDivisionError: division by zero; see {plugin.resolve()}:6"
    )
    assert refused(f"{plugin.name}:Half") == (
        f"robot={plugin.name}:Half: Half has no is_connected, get_observation, send_action, disconnect; expected the "
        "members of LeRobot's Robot: observation_features, action_features, is_connected, connect, get_observation, "
        "send_action, disconnect"
    )
    assert refused(f"{plugin.name}:Mien") == (
        f"robot={plugin.name}:Mien: {plugin.name} has no 'Mien'; did you mean 'Mine'?"
    )
    assert refused(f"{plugin.stem}:Mine").endswith(f"for the file in this folder write robot: {plugin.name}:Mine")
    assert refused("rosbrige") == (
        "robot=rosbrige: expected fake, sim, rosbridge, or a robot of LeRobot (pip install lerobot); did you mean "
        "'rosbridge'?; for your own write robot=path.py:Class or robot=module:Class"
    )


def test_it_is_found_beside_the_preset_that_names_it(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = plugin.parent / "arm.yaml"
    preset.write_text(f"robot: {plugin.name}:Mine\nparams: {{port: tty}}\n")
    (plugin.parent / "elsewhere").mkdir()
    monkeypatch.chdir(plugin.parent / "elsewhere")
    config = compose(preset, [], RobotConfig)
    assert config.robot == f"{plugin}:Mine" and make_robot(config.robot, config.params).port == "tty"  # type: ignore[attr-defined]


def test_the_example_runs_from_the_command_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With and without a preset; what is recorded is what the file did with the commands."""
    monkeypatch.chdir(tmp_path)
    words = [f"robot={EXAMPLE}:MyRobot", "params.speed=0.5", "task=push", "max_steps=6", "max_late=1000"]
    limits = ["limits.low=-1,-1,-1,-1", "limits.high=1,1,1,1", "limits.max_change=2,2,2,2", "limits.still=0,0,0,0"]
    for preset in (["robot-sim", "n_episodes=1"], limits):
        code = cli.main(["deploy", str(checkpoint), "run", *preset, *words, "limits.max_age_s=5"])
        assert code == 0, capsys.readouterr().err
    episodes = EpisodeStore("runs/robot/MyRobot").load()
    assert [(e.length, e.task) for e in episodes] == [(6, "push")] * 2
    for i, episode in enumerate(episodes):
        moved = episode.state[:, :3].diff(dim=0)
        assert (moved - 0.5 * 0.01 * episode.action[:, :3]).abs().max() < 1e-5 and moved.abs().max() > 0
        assert float(episode.state[0, 4]) == pytest.approx(0.01 * i)  # the second session goes on with the second scene
    assert len(EXAMPLE.read_text().splitlines()) <= 80


def test_without_a_robot_and_limits_it_says_what_is_missing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(checkpoint)
    for words, line in (
        (
            [],
            f"deploy {name} run needs a robot and its limits: a preset such as robot-sim, or robot=... limits.low=...",
        ),
        (["n_episodes=1"], "robot=: expected fake, sim, rosbridge, the name of a robot of LeRobot, or FILE.py:Class"),
        (
            ["robot=fake", "task=push"],
            "limits.low=[]: expected 4 finite numbers, one for each action; there is no start",
        ),
    ):
        assert cli.main(["deploy", name, "run", *words]) == 2
        assert capsys.readouterr().err.startswith(f"wamtune: {line}")
