"""The reward manager: sums, masks, switches, and one clear line for every mistake."""

import copy
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards import RewardManager, Transition, UserError, reward
from rewards.builtin import BUILTIN

Terms = dict[str, Mapping[str, Any] | None]
SLICES = {"hand_pos", "gripper", "object_pos"}


def refused(terms: Any, message: str, place: str = "sim", provides: set[str] = SLICES) -> None:
    """Check that `terms` are refused with exactly `message`."""
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        RewardManager(terms, provides, place)


def managed(monkeypatch: pytest.MonkeyPatch, term: Any, **config: Any) -> RewardManager:
    """Return a manager with one term, a Python object, of weight 1."""
    monkeypatch.setitem(BUILTIN, "mine", term)
    return RewardManager({"mine": {"weight": 1.0, **config}}, SLICES, "sim")


def test_total_is_the_weighted_sum_and_dead_rows_get_nothing(t: Transition) -> None:
    terms: Terms = {"success": {"weight": 10.0}, "action_l2": {"weight": -0.5}, "time_cost": {"weight": -1.0}}
    manager = RewardManager(terms, SLICES, "sim")
    assert manager.names == ["success", "action_l2", "time_cost"]
    assert manager.weights == {"success": 10.0, "action_l2": -0.5, "time_cost": -1.0}
    # success (0, 1, 0), action_l2 (5, 2, .25)
    torch.testing.assert_close(manager.compute(t).total, torch.tensor([-3.5, 8.0, -1.125]))
    paid = manager.compute(t, torch.tensor([True, False, True]))
    torch.testing.assert_close(paid.total, torch.tensor([-3.5, 0.0, -1.125]))
    torch.testing.assert_close(paid.raw["action_l2"], torch.tensor([5.0, 0.0, 0.25]))
    torch.testing.assert_close(paid.weighted["action_l2"], torch.tensor([-2.5, 0.0, -0.125]))


def test_same_transition_pays_the_same_in_sim_and_dream(t: Transition) -> None:
    names = ("success", "progress", "time_cost", "action_l2", "action_rate", "action_jerk")
    terms: Terms = {name: {"weight": 0.5 + i} for i, name in enumerate(names)}
    sim = RewardManager(terms, SLICES | {"progress", "task_reward"}, "sim").compute(t)
    dream = RewardManager(terms, SLICES | {"progress"}, "dream").compute(t)
    assert torch.equal(sim.total, dream.total)
    for name in names:
        assert torch.equal(sim.raw[name], dream.raw[name])


def test_weight_zero_and_null_switch_off(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(t: Transition) -> Tensor:
        raise AssertionError("called")

    monkeypatch.setitem(BUILTIN, "never", never)
    off: Terms = {"never": {"weight": 0}, "task_reward": {"weight": 0.0}, "progress": None, "success": {"weight": 1}}
    manager = RewardManager(off, SLICES, "dream")
    assert manager.names == ["success"] and manager.requires == {"success"}
    torch.testing.assert_close(manager.compute(t).total, torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(RewardManager({}, SLICES, "sim").compute(t).total, torch.zeros(3))


def test_describe_is_a_table_of_active_terms() -> None:
    terms: Terms = {"smooth": {"func": "action_jerk", "weight": -0.05}, "progress": {"weight": 1}}
    assert RewardManager(terms, {"progress"}, "dream").describe() == [
        ("smooth", "action_jerk", -0.05, ("action_history",)),
        ("progress", "progress", 1.0, ("progress",)),
    ]


def test_requirement_that_the_place_lacks() -> None:
    there = (
        "remove it or set its weight to 0; it provides action, action_history, elapsed, gripper, hand_pos, next_state, "
        "object_pos, state, success, task, terminated"
    )
    refused(
        {"task_reward": {"weight": 1.0}},
        f"reward term 'task_reward' requires 'task_reward', which the dream cannot provide; {there}",
        place="dream",
    )
    refused(
        {"progress": {"weight": 1.0}},
        f"reward term 'progress' requires 'progress', which the sim cannot provide; {there}",
    )


def test_misspelt_slice_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    @reward(requires=("objct_pos",))
    def term(t: Transition) -> Tensor:
        return t["objct_pos"].sum(-1)

    with pytest.raises(UserError, match=r"requires 'objct_pos', which the sim cannot.*; did you mean 'object_pos'\?$"):
        managed(monkeypatch, term)


def test_next_progress_is_provided_with_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    @reward(requires=("next_progress",))
    def term(t: Transition) -> Tensor:
        assert t.next_progress is not None
        return t.next_progress

    monkeypatch.setitem(BUILTIN, "mine", term)
    assert RewardManager({"mine": {"weight": 1.0}}, {"progress"}, "dream").requires == {"progress"}


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 1e9])
def test_weight_that_is_no_sane_number(weight: float) -> None:
    message = f"reward term 'success': weight is {weight}, expected a finite number within ±1e+06"
    refused({"success": {"weight": weight}}, message)


@pytest.mark.parametrize("weight", ["1.0", None, True, [1.0]])
def test_weight_of_the_wrong_type(weight: Any) -> None:
    message = f"reward term 'success': weight is {weight!r}, expected a number; 0 switches it off"
    refused({"success": {"weight": weight}}, message)


def test_malformed_terms() -> None:
    refused(
        {"success": {"wieght": 1.0}},
        "reward term 'success': unknown key 'wieght', expected func, weight or params; did you mean 'weight'?",
    )
    refused(
        {"success": 1.0},
        "reward term 'success': expected func, weight and params, got 1.0; write {weight: 1.0}",
    )
    refused(
        {"mine": "my.py:term"},
        "reward term 'mine': expected func, weight and params, got 'my.py:term'; write {func: my.py:term, weight: 1.0}",
    )
    refused({"mine": {"func": "my.py:term"}}, "reward term 'mine': weight is missing; add one, such as weight: 1.0")
    refused(["success"], "rewards: expected terms by name, got ['success']; write {success: {weight: 1.0}}")
    refused(
        {"progress": {"weight": 1.0, "params": {"gama": 0.9}}},
        "reward term 'progress': params of progress: got an unexpected keyword argument 'gama'; it takes gamma",
        provides={"progress"},
    )
    refused(
        {"workspace_limit": {"weight": -1.0, "params": {"low": [0.0]}}},
        "reward term 'workspace_limit': params of workspace_limit: missing a required argument: 'high'; "
        "it takes low, high, slice_name",
    )
    refused(
        {"success": {"weight": 1.0, "params": [1.0]}},
        "reward term 'success': params are [1.0], expected names and values; write {name: value}",
    )


def test_unknown_builtin_lists_the_known_ones() -> None:
    refused(
        {"action_jerks": {"weight": -1.0}},
        "reward term 'action_jerks': unknown func 'action_jerks'; did you mean 'action_jerk'?; known: success, "
        "progress, task_reward, time_cost, action_l2, action_rate, action_jerk, workspace_limit, "
        "goal_image; for your own write func: path.py:name or module:name",
    )


def test_wrong_shape_or_type(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(term: Any) -> str:
        """Return what is said, without where the term stands, which comes last."""
        with pytest.raises(UserError) as caught:
            managed(monkeypatch, term).compute(t)
        said, _, at = str(caught.value).rpartition("; see ")
        assert at == f"{__file__}:{term.__code__.co_firstlineno}"
        return said

    shape = "reward term 'mine' returned shape {}, expected (3,): one number for each environment"
    assert message(lambda t: t.action) == shape.format("(3, 2)")
    assert message(lambda t: t.action[:, :1]) == shape.format("(3, 1)")
    assert message(lambda t: t.action.sum()) == shape.format("()")
    assert message(lambda t: 1.0) == "reward term 'mine' returned a float, expected a tensor of shape (3,)"
    unknown = "reward term 'mine': the state has no slice 'objct_pos'; did you mean 'object_pos'?"
    assert message(lambda t: t["objct_pos"]) == unknown


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -2e6, 1e30])
def test_poisonous_value_names_environment_and_step(
    value: float, t: Transition, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = managed(monkeypatch, lambda t: torch.tensor([0.0, value, 1.0]))
    message = (
        f"sim: reward term 'mine' returned {value:g} in environment 1 at step 17; expected a finite value within "
        f"±1e+06; see {__file__}:"
    )
    with pytest.raises(UserError, match=rf"^{re.escape(message)}\d+$"):
        manager.compute(t)
    # A row that was not executed may hold anything and pays nothing.
    paid = manager.compute(t, torch.tensor([True, False, True]))
    torch.testing.assert_close(paid.total, torch.tensor([0.0, 0.0, 1.0]))


def test_bool_and_int_become_float(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    paid = managed(monkeypatch, lambda t: t.success).compute(t)
    assert paid.raw["mine"].dtype == paid.total.dtype == torch.float32
    assert managed(monkeypatch, lambda t: t.elapsed).compute(t).total.tolist() == [4.0, 17.0, 1.0]


def test_result_does_not_share_memory_with_the_transition(t: Transition) -> None:
    assert t.task_reward is not None
    manager = RewardManager({"task_reward": {"weight": 1.0}}, {"task_reward"}, "sim")
    manager.compute(t).raw["task_reward"].fill_(99.0)
    torch.testing.assert_close(t.task_reward, torch.tensor([0.1, 10.0, -1.0]))


class Visits:
    """Count the steps of each environment since its reset."""

    requires = ("success",)

    def __init__(self, start: float = 0.0) -> None:
        """Begin to count at `start`."""
        self.start = start
        self.count = torch.empty(0)

    def reset(self, mask: Tensor) -> None:
        """Begin again where `mask` holds."""
        if len(self.count) != len(mask):
            self.count = torch.full(mask.shape, self.start)
        self.count[mask] = self.start

    def __call__(self, t: Transition) -> Tensor:
        """Return the count. Shape: (num_envs,)."""
        self.count += 1
        return self.count


def test_stateful_term_is_reset_by_mask(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = managed(monkeypatch, Visits, params={"start": 10.0})
    assert manager.requires == {"success"}
    manager.reset(torch.ones(3, dtype=torch.bool))
    first = manager.compute(t).total
    assert manager.compute(t).total.tolist() == [12.0, 12.0, 12.0]
    assert first.tolist() == [11.0, 11.0, 11.0]  # not overwritten by the second call
    manager.reset(torch.tensor([False, True, False]))
    assert manager.compute(t).total.tolist() == [13.0, 11.0, 13.0]


def test_state_of_a_term_goes_on_in_another_manager(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (managed(monkeypatch, Visits, params={"start": 10.0}) for _ in range(2))
    first.reset(torch.ones(3, dtype=torch.bool))
    first.compute(t)
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.compute(t).total.tolist() == first.compute(t).total.tolist() == [12.0, 12.0, 12.0]
    second.load_state_dict(state)  # what was loaded is still what was saved
    assert second.compute(t).total.tolist() == [12.0, 12.0, 12.0]


@pytest.mark.parametrize("term", [Visits, Visits()])
def test_two_managers_do_not_share_state(term: Any, t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    sim, dream = managed(monkeypatch, term), managed(monkeypatch, term)
    for manager in (sim, dream):
        manager.reset(torch.ones(3, dtype=torch.bool))
    sim.compute(t)
    assert dream.compute(t).total.tolist() == [1.0, 1.0, 1.0]


def test_chunk_in_one_call_equals_step_by_step(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILTIN, "visits", Visits)
    terms: Terms = {"visits": {"weight": 1.0}, "action_jerk": {"weight": -0.5}, "progress": {"weight": 2.0}}
    step_by_step, at_once = (RewardManager(terms, SLICES | {"progress"}, "sim") for _ in range(2))
    later = dataclasses.replace(t, action_history=t.action_history.flip(1) * 2, progress=t.next_progress)
    names = [f.name for f in dataclasses.fields(t) if f.name not in ("slices", "own_rewards", "features", "images")]
    chunk = {name: torch.stack([getattr(t, name), getattr(later, name)], 1).flatten(0, 1) for name in names}
    for manager in (step_by_step, at_once):
        manager.reset(torch.ones(3, dtype=torch.bool))
    paid = at_once.compute(Transition(**chunk, slices=t.slices), n_steps=2)
    for step, one in enumerate((t, later)):
        alone = step_by_step.compute(one)
        assert torch.equal(paid.total[step::2], alone.total)
        for name in terms:
            assert torch.equal(paid.raw[name][step::2], alone.raw[name])
    assert paid.raw["visits"].tolist() == [1.0, 2.0] * 3
    chunk["progress"][3] = torch.nan  # row 3 is the second step of environment 1
    with pytest.raises(UserError, match="'progress' returned nan in environment 1 at step 17;"):
        at_once.compute(Transition(**chunk, slices=t.slices), n_steps=2)


def test_a_bug_in_a_term_is_one_line_of_the_term_with_file_and_line(
    t: Transition, monkeypatch: pytest.MonkeyPatch
) -> None:
    def helper(progress: Tensor | None) -> Tensor:
        if progress is None:
            raise RuntimeError("two\nlines")
        return progress

    class Broken:
        def __init__(self, where: str) -> None:
            self.where = where
            if where == "built":
                raise KeyError("colour")

        def reset(self, mask: Tensor) -> None:
            if self.where == "reset":
                raise AttributeError("no such thing")

        def __call__(self, t: Transition) -> Tensor:
            return helper(t.progress)

    def message(where: str) -> str:
        with pytest.raises(UserError) as caught:
            manager = managed(monkeypatch, Broken, params={"where": where})
            manager.reset(torch.ones(3, dtype=torch.bool))
            manager.compute(dataclasses.replace(t, progress=None))
        assert caught.value.__cause__ is not None  # the traceback, for --debug
        return str(caught.value)

    first = helper.__code__.co_firstlineno
    assert message("called") == f"reward term 'mine' raised RuntimeError: two lines; see {__file__}:{first + 2}"
    assert message("built") == f"reward term 'mine' raised KeyError: 'colour'; see {__file__}:{first + 9}"
    assert message("reset") == f"reward term 'mine' raised AttributeError: no such thing; see {__file__}:{first + 13}"


def test_what_a_term_writes_into_its_arguments_stays_there(t: Transition, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def term(t: Transition, goal: list[float]) -> Tensor:
        goal.append(1.0)
        t.slices.clear()
        for field in dataclasses.fields(t):
            value = getattr(t, field.name)
            if isinstance(value, Tensor):
                kept.append(value)
                value.logical_not_() if value.dtype is torch.bool else value.sub_(3)
        t.action_history.numpy()[:] = 7.0  # behind the back of torch
        t.own_rewards["theirs"] -= 5.0
        return t.next_state[:, 0]

    t.own_rewards = {"theirs": torch.ones(3)}
    params = {"goal": [0.0]}
    config: Terms = {"mine": {"weight": 1.0, "params": params}, "action_l2": {"weight": 1.0}}
    monkeypatch.setitem(BUILTIN, "mine", term)
    before, alone = copy.deepcopy(t), RewardManager({"action_l2": {"weight": 1.0}}, SLICES, "sim").compute(t)
    manager = RewardManager(config, SLICES, "sim")
    paid = manager.compute(t)
    for value in kept:  # later, too
        value.fill_(1)
    torch.testing.assert_close(vars(t) | {"slices": {}}, vars(before) | {"slices": {}}, rtol=0, atol=0)
    assert t.slices == before.slices
    assert torch.equal(paid.raw["action_l2"], alone.raw["action_l2"]) and params == {"goal": [0.0]}


def test_requires_without_a_comma(monkeypatch: pytest.MonkeyPatch) -> None:
    @reward(requires="action")
    def term(t: Transition) -> Tensor:
        return t.action.sum(-1)

    with pytest.raises(UserError, match="requires is 'action', expected a tuple; write \\('action',\\)"):
        managed(monkeypatch, term)
