"""A sentence for each task of Meta-World, which the user can replace."""

from rl.build import build_simulator
from rl.config import SimulatorConfig
from rl.envs.metaworld.instructions import INSTRUCTIONS
from rl.envs.metaworld.tasks import TASKS
from rl.envs.sim import make_spec


def test_each_task_has_a_sentence_of_its_own() -> None:
    assert set(INSTRUCTIONS) == set(TASKS) and len(set(INSTRUCTIONS.values())) == len(TASKS) == 50
    assert all(text[0].isupper() and text.endswith(".") and "\n" not in text for text in INSTRUCTIONS.values())


def test_a_spec_has_the_sentences_of_its_tasks() -> None:
    spec = make_spec("metaworld", ["push"], ["hammer", "push", "of my own"])
    assert spec.instructions == {task: INSTRUCTIONS[task] for task in ("hammer", "push")}
    assert spec.instruction("of my own") == "of my own"
    assert make_spec("Pendulum-v1", None).instructions == {}


def test_the_config_replaces_a_sentence() -> None:
    env = build_simulator(
        SimulatorConfig(instructions={"push": "Shove it."}),
        ["push", "hammer"],
        2,
        model=None,
        known_tasks=(),
        n_context_frames=1,
    )
    assert env.spec.instructions == {"push": "Shove it.", "hammer": INSTRUCTIONS["hammer"]}
    env.close()
