"""Domain randomisation: what is drawn, when, and that it repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rewards.errors import UserError
from rl.build import make_sim
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.metaworld.events import Event, Perturbed
from rl.envs.metaworld.tasks import MetaWorldTask
from rl.envs.names import MetaWorldOptions, check_builtin_options, typed_options
from rl.envs.sim import SimEnv

TASK = "button-press-topdown"
UP = np.array([0.3, 0.0, 0.5, 0.0], np.float32)


class Echo:
    """A task that returns the command it was given."""

    def __init__(self) -> None:
        self.model = MetaWorldTask(TASK).model

    def reset(self, seed: int) -> np.ndarray:
        return np.zeros(4, np.float32)

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        return action.copy(), 0.0, False, False, False


def lived(events: dict[str, Event], seeds: list[int], number: int = 0, n: int = 4) -> list[list[float]]:
    """First entry of what each command came to, in one episode after the other."""
    task = Perturbed(Echo(), events, number)
    rows = []
    for seed in seeds:
        task.reset(seed)
        rows.append([float(task.step(np.array([k + 1, 0, 0, 1], np.float32) / 10)[0][0]) for k in range(n)])
    return rows


def test_no_event_is_the_simulator_as_it_is() -> None:
    plain, perturbed = MetaWorldTask(TASK), Perturbed(MetaWorldTask(TASK), {"x": Event("mass", "startup")})
    assert np.array_equal(plain.reset(7), perturbed.reset(7))
    for _ in range(10):
        for one, other in zip(plain.step(UP), perturbed.step(UP), strict=True):
            assert np.array_equal(one, other)


def test_gain_and_delay_by_hand() -> None:
    assert lived({"g": Event("gain", "startup", 0.5, 0.5)}, [1])[0] == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert lived({"d": Event("delay", "startup", 2, 2)}, [1, 2])[1] == pytest.approx([0.0, 0.0, 0.1, 0.2])


def test_when_each_mode_draws() -> None:
    startup, reset = Event("gain", "startup", 0.5, 1.0), Event("gain", "reset", 0.5, 1.0)
    first, second = lived({"g": startup}, [1, 2])
    assert first == second and lived({"g": startup}, [1], number=1)[0] != first
    first, second, again = lived({"g": reset}, [1, 2, 1])
    assert first != second and first == again and lived({"g": reset}, [1], number=1)[0] == first
    gains = [x / (k + 1) for k, x in enumerate(lived({"g": Event("gain", "interval", 0.5, 1.0, every=2)}, [1])[0])]
    assert gains[0] != gains[1] and gains[1] == pytest.approx(gains[2]) and gains[2] != gains[3]


def test_masses_of_free_bodies_frictions_and_damping_are_scaled() -> None:
    base, task = MetaWorldTask("push").model, MetaWorldTask("push")
    values = {"mass": 2.0, "friction": 0.5, "damping": 3.0}
    Perturbed(task, {q: Event(q, "startup", v, v) for q, v in values.items()}).reset(0)  # type: ignore[arg-type]
    heavier = np.flatnonzero(task.model.body_mass != base.body_mass)
    free = [b for b in range(base.nbody) if base.jnt_type[base.body_jntadr[base.body_rootid[b]]] == 0]
    assert len(heavier) > 0 and set(heavier) <= set(free)
    assert np.allclose(task.model.body_mass[heavier], 2.0 * base.body_mass[heavier])
    assert np.allclose(task.model.geom_friction, 0.5 * base.geom_friction)
    assert np.allclose(task.model.dof_damping, 3.0 * base.dof_damping)


def events() -> dict[str, Event]:
    return {
        "mass": Event("mass", "startup", 0.5, 2.0),
        "gain": Event("gain", "interval", 0.5, 1.0, every=3),
        "delay": Event("delay", "reset", 0, 2),
        "noise": Event("noise", "reset", 0.0, 0.01),
    }


def test_a_randomised_simulator_goes_on_exactly_and_does_not_depend_on_its_workers() -> None:
    envs = [SimEnv("metaworld", 3, [TASK], max_steps=9, n_workers=n, seed=5, events=events()) for n in (0, 2, 0)]
    actions = torch.rand(4, 3, 5, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, spread, later = envs
    for env in (first, spread):
        env.reset()
    for chunk in actions[:2]:
        assert torch.equal(*(env.step_chunk(chunk).frames["state"] for env in (first, spread)))
    later.load_state_dict(first.state_dict())
    for chunk in actions[2:]:
        assert torch.equal(*(env.step_chunk(chunk).frames["state"] for env in (first, later)))
    for env in envs:
        env.close()


def test_an_episode_does_not_depend_on_the_ones_before() -> None:
    """Damping bends how the hand settles, which a task remembers of its first reset."""
    everything = {q: Event(q, "reset", 0.8, 1.2) for q in ("mass", "friction", "damping")}  # type: ignore[arg-type]
    tasks = Perturbed(MetaWorldTask("push"), everything), Perturbed(MetaWorldTask("push"), everything)
    tasks[0].reset(1)
    assert np.array_equal(*(task.reset(2) for task in tasks))
    for _ in range(5):
        assert np.array_equal(*(task.step(UP)[0] for task in tasks))


def test_events_are_written_in_a_config() -> None:
    words = ["env.tasks=[push]", "env.events.m={func: mass, low: 0.5, high: 2}"]
    options = compose("sim", words, TrainConfig).env.options
    assert typed_options("metaworld", options, MetaWorldOptions).events == {"m": Event("mass", "reset", 0.5, 2.0)}
    for bad, line in (
        (
            "{func: mass, low: 5, high: 2}",
            "env.options.events.m.low=5.0, high=2.0: expected 0.001 <= low <= high",
        ),
        ("{func: colour}", "env.options.events.m.func='colour' of simulator metaworld: expected one of mass, friction"),
        ("{func: mass, every: 0}", "env.options.events.m.every=0: expected at least 1 step"),
    ):
        with pytest.raises(UserError, match=line.replace(".", r"\.")):
            check_builtin_options(compose("sim", ["env.tasks=[push]", f"env.events.m={bad}"], TrainConfig).env)
    with pytest.raises(UserError, match="only Meta-World tasks have"):
        SimEnv("Pendulum-v1", 2, events=events())
    config = compose("isaac", ["env.events.m={func: mass, low: 0.5, high: 2}"], TrainConfig)
    with pytest.raises(UserError, match=r"unknown key 'env\.options\.events' of simulator isaac; known: groups"):
        make_sim(config, None, (), 2, rewards=False)
