"""A sentence for each task of Meta-World, which the user can replace."""

from rl.build import build_simulator
from rl.config import SimulatorConfig
from rl.envs.metaworld.instructions import INSTRUCTIONS, SENTENCES, WORDINGS
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


def test_every_task_of_metaworld_has_sentences_to_train_on_and_others_to_evaluate() -> None:
    assert set(SENTENCES) == set(TASKS) and len(TASKS) == 50
    everything: list[str] = []
    for task, of in SENTENCES.items():
        assert 4 <= len(of.training) + len(of.held_out) <= 6 and 1 <= len(of.held_out) <= 2, task
        everything += [*of.training, *of.held_out]
    assert len({text.lower().strip(".") for text in everything}) == len(everything)  # no sentence is of two tasks
    spec = make_spec("metaworld", ("drawer-open", "drawer-close"))
    assert spec.instructions == {task: INSTRUCTIONS[task] for task in ("drawer-open", "drawer-close")}
    assert spec.wordings == {task: WORDINGS[task] for task in ("drawer-open", "drawer-close")}
    held_out = {text for of in SENTENCES.values() for text in of.held_out}
    assert not held_out & {text for texts in spec.wordings.values() for text in texts}


def test_pairs_of_verb_and_object_can_be_held_out() -> None:
    pairs = (("close", "window"), ("open", "faucet"))
    rest = [task for task, of in SENTENCES.items() if (of.verb, of.object) not in pairs]
    assert set(TASKS) - set(rest) == {"window-close", "faucet-open"}
    for verb, thing in pairs:  # both words of a pair are in other tasks
        assert any(SENTENCES[task].verb == verb for task in rest)
        assert any(SENTENCES[task].object == thing for task in rest)
    said = {(of.verb, of.object) for of in SENTENCES.values()}
    assert len(said) == len(SENTENCES)
