"""Terms from outside: a file, a module, an entry point, the worked example."""

import sys
from pathlib import Path

import pytest
import torch

from rewards import RewardManager, Transition, UserError
from rewards.plugins import GROUPS, Kind, known, load, source_file

EXAMPLES = Path(__file__).parents[2] / "examples"
TERM = """
from dataclasses import dataclass
from torch import Tensor
from rewards import Transition, reward

@reward(requires=("action",))
def first_action(t: Transition, scale: float = {scale}) -> Tensor:
    return scale * t.action[:, 0]
number = 3
"""


def manager(func: str, **params: float) -> RewardManager:
    """Return a manager with one plug-in of weight 2."""
    return RewardManager({"mine": {"func": func, "weight": 2.0, "params": params}}, {"object_pos"}, "dream")


def message(func: str) -> str:
    """Return the line with which `func` is refused."""
    with pytest.raises(UserError) as caught:
        manager(func)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a plug-in into a folder of its own and go there."""
    path = tmp_path / "reward_plugin_in_tmp.py"
    path.write_text(TERM.format(scale=1.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)  # of an earlier test, from another folder
    return path


def test_file(plugin: Path, t: Transition) -> None:
    for path in (plugin.name, str(plugin)):  # relative to the current folder, or absolute
        mine = manager(f"{path}:first_action")
        assert mine.requires == {"action"}
        torch.testing.assert_close(mine.compute(t).total, torch.tensor([2.0, 2.0, 0.0]))
    torch.testing.assert_close(
        manager(f"{plugin}:first_action", scale=-3.0).compute(t).raw["mine"], torch.tensor([-3.0, -3.0, 0.0])
    )


def test_two_files_of_the_same_name_are_two_modules(plugin: Path, t: Transition) -> None:
    other = plugin.parent / "other" / plugin.name
    other.parent.mkdir()
    other.write_text(TERM.format(scale=5.0))
    one, five = manager(f"{plugin}:first_action"), manager(f"{other}:first_action")
    assert one.compute(t).total[0] == 2.0 and five.compute(t).total[0] == 10.0


def test_module(plugin: Path, t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    func = f"{plugin.stem}:first_action"
    assert message(func) == (
        f"reward term 'mine': cannot import {plugin.stem!r}: No module named {plugin.stem!r}; "
        f"for the file in this folder write func: {plugin.name}:first_action"
    )
    monkeypatch.syspath_prepend(plugin.parent)
    torch.testing.assert_close(manager(func).compute(t).total, torch.tensor([2.0, 2.0, 0.0]))


def test_entry_point(plugin: Path, t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    info = plugin.parent / "some_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[wamtune.rewards]\nfirst = {plugin.stem}:first_action\n")
    monkeypatch.syspath_prepend(plugin.parent)
    torch.testing.assert_close(manager("first").compute(t).total, torch.tensor([2.0, 2.0, 0.0]))
    assert "; did you mean 'first'?" in message("frist")


@pytest.mark.parametrize("kind", GROUPS)
def test_every_kind_is_found_in_the_same_ways(kind: Kind, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = plugin.parent / "some_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugins\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUPS[kind]}]\nfirst = {plugin.stem}:first_action\n")
    monkeypatch.syspath_prepend(plugin.parent)
    builtins = {"print": print, "late": "math:sqrt"}
    assert load(kind, "print", builtins) is print and source_file(kind, "print", builtins) is None
    assert load(kind, "late", builtins)(4.0) == 2.0
    for func in (f"{plugin.name}:first_action", f"{plugin.stem}:first_action", "first"):
        assert load(kind, func, builtins).__name__ == "first_action"
        found = source_file(kind, func, builtins)
        assert found is not None and found.resolve() == plugin.resolve()
    assert known(kind, builtins) == ["print", "late", "first"]
    with pytest.raises(UserError) as caught:
        load(kind, "frist", builtins, who=f"{kind}=frist", key=kind)
    assert str(caught.value) == (
        f"{kind}=frist: unknown {kind} 'frist'; did you mean 'first'?; known: print, late, first; "
        f"for your own write {kind}: path.py:name or module:name"
    )


def test_entry_points_of_another_kind_are_not_looked_at(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = plugin.parent / "some_robots-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-robots\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[wamtune.robots]\nfirst = {plugin.stem}:first_action\n")
    monkeypatch.syspath_prepend(plugin.parent)
    assert known("robot", {}) == ["first"] and known("reward", {}) == []
    with pytest.raises(UserError, match=r"^func=first: unknown func 'first'; known: none;"):
        load("reward", "first", {})


def test_the_line_of_a_failing_import_is_named(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugin.parent / "broken_plugin.py").write_text("a = 1\nimport no_such_module_here\n")
    monkeypatch.syspath_prepend(plugin.parent)
    assert message("broken_plugin:f") == (
        "reward term 'mine': cannot import 'broken_plugin': No module named 'no_such_module_here'; "
        f"see {plugin.parent / 'broken_plugin.py'}:2"
    )


def test_what_cannot_be_loaded_is_one_line(plugin: Path) -> None:
    looked = f"looked for {plugin.parent.resolve() / 'absent.py'}, and beside the preset that names it"
    assert message("absent.py:f") == f"reward term 'mine': there is no file absent.py ({looked})"
    assert message(f"{plugin.name}:frist_action") == (
        f"reward term 'mine': {plugin.name} has no 'frist_action'; did you mean 'first_action'?"
    )
    it_has = message(f"{plugin.name}:zzz").partition(" has no 'zzz'; it has ")[2]
    assert "first_action" in it_has and "Tensor" not in it_has and "number" not in it_has
    assert message(f"{plugin.name}:number") == (
        f"reward term 'mine': {plugin.name}:number is of type int, expected a function or a class"
    )
    plugin.write_text("import no_such_module_here")
    assert message(f"{plugin.name}:f") == (
        f"reward term 'mine': cannot load {plugin.name}: No module named 'no_such_module_here'; "
        f"see {plugin.resolve()}:1"
    )
    plugin.write_text("a = 1\nb = a.c\n")
    assert message(f"{plugin.name}:f") == (
        f"reward term 'mine' raised AttributeError: 'int' object has no attribute 'c'; see {plugin.resolve()}:2"
    )
    plugin.write_text("def f(:")
    assert f"cannot load {plugin.name}: " in message(f"{plugin.name}:f")


def test_worked_example(t: Transition) -> None:
    func = f"{EXAMPLES / 'my_rewards.py'}:gentle_grasp"
    gentle = RewardManager({"gentle": {"func": func, "weight": -0.5}}, set(t.slices), "dream")
    t.state[:, 3] = torch.tensor([0.5, 0.5, -0.5])  # gripper: 0.5 -> 0 closes, 0.5 -> 0 closes, -0.5 -> 0 opens
    t.next_state[:, :3] = t["object_pos"]
    t.next_state[1, 0] += 0.1  # not near
    paid = gentle.compute(t)
    torch.testing.assert_close(paid.raw["gentle"], torch.tensor([0.5, 0.0, 0.0]))
    torch.testing.assert_close(paid.total, torch.tensor([-0.25, 0.0, 0.0]))


def test_other_examples(t: Transition) -> None:
    func = f"{EXAMPLES / 'my_rewards.py'}:"
    terms = {name: {"func": func + name, "weight": 1.0} for name in ("reach", "lifted", "Idle")}
    manager = RewardManager(terms, set(t.slices), "dream")
    manager.reset(torch.tensor([True, True, True]))
    t.next_state[:, :3] = torch.tensor([[0.1, 0.2, 0.0], [0.001, 0.0, 0.0], [0.7, 0.8, 0.9]])
    t.next_state[2, 6] = 0.04
    raw = manager.compute(t).raw
    # (0, 0, .3), (-.399, -.5, -.6) and (0, 0, .86) from the object
    torch.testing.assert_close(raw["reach"], torch.tensor([0.3, (0.399**2 + 0.5**2 + 0.6**2) ** 0.5, 0.86]))
    assert raw["lifted"].tolist() == [1.0, 1.0, 0.0]
    assert raw["Idle"].tolist() == [0.0, 1.0, 0.0]
    manager.reset(torch.tensor([False, False, True]))
    assert manager.compute(t).raw["Idle"].tolist() == [0.0, 2.0, 0.0]
    manager.reset(torch.tensor([False, True, False]))
    assert manager.compute(t).raw["Idle"].tolist() == [0.0, 1.0, 0.0]


def test_example_preset_composes(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    monkeypatch.chdir(EXAMPLES.parent)
    terms = OmegaConf.to_container(OmegaConf.load(EXAMPLES / "gentle_grasp.yaml"))
    assert isinstance(terms, dict)
    assert RewardManager(terms["rewards"], set(t.slices), "dream").names == ["success", "gentle", "action_jerk"]
