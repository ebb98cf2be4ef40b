"""Sentences from the command line to the networks: who takes one, who refuses it, and that the index plays no part."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.errors import UserError
from rl import api, cli
from rl.build import build_simulator
from rl.compose import compose
from rl.config import SimulatorConfig
from rl.deploy.robot_config import RobotConfig
from rl.envs.metaworld.instructions import INSTRUCTIONS, SENTENCES, WORDINGS
from rl.envs.sim import make_spec
from rl.instructions import new_model, tell, tell_of, with_instruction
from rl.play.controls import Message
from rl.policies.wam import FlowGraph, ModelPilot
from rl.stages import run as stages
from rl.stages.config import PretrainConfig
from rl.verbs.deploy import _tell
from rl.verbs.options import PlayOptions
from rl.verbs.play import load_session
from world_model.data.episodes import EpisodeStore
from world_model.spec import Spec
from world_model.wam.config import ModelConfig, TextConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model

torch.set_num_threads(1)

SIZES = {"width": 32, "world_width": 48, "action_width": 32, "n_layers": 1, "n_heads": 2}
TEXT = TextConfig(n_buckets=256, width=32, n_layers=1, n_heads=2)
OPEN, CLOSE = "drawer-open", "drawer-close"

PRETRAIN = f"""# Tiny.
name: words
env: {{tasks: [{OPEN}, {CLOSE}]}}
threads: 1
episodes: episodes
n_expert: 2
n_noisy: 0
n_random: 1
n_heldout: 3
trust_steps: 5
model:
  task_conditioning: text
  text: {{n_buckets: 256, width: 32, n_layers: 1, n_heads: 2}}
  width: 32
  world_width: 48
  action_width: 32
  n_layers: 1
  n_heads: 2
stage: {{n_steps: 6, batch_size: 8, log_every: 3, save_every: 3}}
"""
TUNE = """# Tiny.
name: words-tuned
checkpoint: pretrained
episodes: episodes
threads: 1
n_demos: 1
n_policy: 2
n_policy_heldout: 1
n_eval: 1
eval_noise: []
trust_steps: 5
stage: {n_steps: 6, batch_size: 8, log_every: 3, save_every: 3}
refit: {n_steps: 4, batch_size: 8, log_every: 2, save_every: 2}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with presets and a checkpoint that was pretrained and tuned on two tasks with sentences."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    (folder / "tune.yaml").write_text(TUNE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["pretrain", "pretrain.yaml"]) == 0
        (folder / "pretrained").symlink_to(next((folder / "runs" / "words").iterdir()))
        assert cli.main(["tune", "tune.yaml"]) == 0
        (folder / "tuned").symlink_to(next((folder / "runs" / "words-tuned").iterdir()))
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def make(spec: Spec, conditioning: str = "text") -> WorldActionModel:
    torch.manual_seed(0)
    config = {"task_conditioning": conditioning, "text": TEXT, **SIZES}
    return new_model(ModelConfig(**config), spec)  # type: ignore[arg-type]


def drawers(*tasks: str) -> Spec:
    return make_spec("metaworld", tasks or (OPEN, CLOSE))


def test_an_instruction_is_for_one_task() -> None:
    env = SimulatorConfig(tasks=(OPEN,))
    assert with_instruction(env, None) is env
    assert with_instruction(env, "Do it.").instructions == {OPEN: "Do it."}
    assert with_instruction(SimulatorConfig(id="Pendulum-v1"), "Up!").instructions == {"Pendulum-v1": "Up!"}
    for tasks in ((), (OPEN, CLOSE)):
        with pytest.raises(UserError, match=r"instruction='Do it\.': it is for one task.*env\.tasks names"):
            with_instruction(SimulatorConfig(tasks=tasks), "Do it.")


def test_without_a_task_an_instruction_takes_the_scene_with_the_nearest_sentence() -> None:
    spec = drawers(OPEN, CLOSE, "window-open")
    env = SimulatorConfig()
    for sentence, task in (
        ("open the drawer", OPEN),
        ("Please shut the drawer!", CLOSE),
        (WORDINGS["window-open"][0].upper(), "window-open"),
    ):
        told = with_instruction(env, sentence, spec)
        assert told.tasks == (task,) and told.instructions == {task: sentence}
    assert with_instruction(SimulatorConfig(tasks=(CLOSE,)), "open the drawer", spec).tasks == (CLOSE,)  # named
    for sentence in ("", "xyzzy", "drawer"):  # no word in common, or as many with two tasks
        with pytest.raises(UserError, match=r"it is for one task.*env\.tasks names none; add env\.tasks="):
            with_instruction(env, sentence, spec)


def test_a_model_with_an_index_refuses_a_sentence() -> None:
    model = make(drawers(), "index")
    assert tell_of(model, SimulatorConfig(), (OPEN,)) == []
    with pytest.raises(UserError, match="knows its tasks by name and reads no sentence; leave it out"):
        tell_of(model, SimulatorConfig(), (OPEN,), "Open it.")


def test_a_known_task_takes_another_sentence_and_says_whether_training_had_it() -> None:
    env = SimulatorConfig(tasks=(OPEN,))
    for sentence, words in (
        (WORDINGS[OPEN][0], "which training had"),
        (SENTENCES[OPEN].held_out[0], "a wording that training did not have for it"),
        ("", "without a sentence"),
    ):
        model = make(drawers())
        (line,) = tell_of(model, with_instruction(env, sentence), (OPEN,), sentence)
        assert line.startswith(f"task {OPEN}") and line.endswith(words)
        assert model.spec.instruction(OPEN) == sentence and OPEN not in model.spec.wordings
        assert model.spec.instruction(CLOSE) == INSTRUCTIONS[CLOSE] and CLOSE in model.spec.wordings
        assert model.text is not None and model.text.rows[:2] == [sentence, INSTRUCTIONS[CLOSE]]
    (line,) = tell_of(make(drawers()), with_instruction(env, "Shut the drawer."), (OPEN,), "Shut the drawer.")
    assert line.endswith(f"a wording that training did not have for it; it is nearer to those of {CLOSE}")
    # The same sentence again is no news.
    assert tell_of(make(drawers()), with_instruction(env, INSTRUCTIONS[OPEN]), (OPEN,)) == []


def test_an_unknown_task_needs_a_sentence() -> None:
    model = make(drawers())
    (line,) = tell_of(model, SimulatorConfig(), ("window-open",))  # the simulator has one
    assert line.startswith("task window-open is unseen") and INSTRUCTIONS["window-open"] in line
    assert model.spec.tasks == (OPEN, CLOSE, "window-open")
    with pytest.raises(UserError, match="task 'my-task' is unknown to the checkpoint, and there is no sentence for it"):
        tell(model, ("my-task",), {}, {})
    (line,) = tell(model, ("my-task",), {"my-task": "Do mine."}, {})
    assert "unseen" in line and model.spec.instruction("my-task") == "Do mine."


@torch.no_grad()
def test_the_name_of_the_task_plays_no_part() -> None:
    """The same sentence under permuted names and other indices gives the same actions and dreams, to the bit."""
    instructions = {CLOSE: INSTRUCTIONS[OPEN], OPEN: INSTRUCTIONS[CLOSE]}
    swapped = replace(drawers("push", OPEN, CLOSE), instructions=instructions, wordings={})
    first, second = make(drawers()), make(swapped)
    frames = torch.randn(4, 2, 21, generator=torch.Generator().manual_seed(0))
    first.codec.fit(frames, torch.randn(4, 8, 21, generator=torch.Generator().manual_seed(1)))
    first.action_codec.action.fit(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    second.load_state_dict(first.state_dict())
    noise, none = torch.randn(4, 1, 32), torch.zeros(4, dtype=torch.long)
    actions = []
    for model, name in ((first, OPEN), (second, CLOSE), (second, OPEN)):
        task = torch.full((4,), model.spec.tasks.index(name))
        pilot = ModelPilot(model, 2)
        actions.append(pilot.act({"state": frames, "task": task}, noise, torch.zeros(4, 8, 4), none))
    assert torch.equal(actions[0], actions[1]) and not torch.equal(actions[0], actions[2])


@torch.no_grad()
def test_an_exported_graph_has_the_vectors_of_its_sentences(inside: None) -> None:
    model = load_model("tuned/checkpoints/last")
    graph = FlowGraph(model, 2)
    state, task, noise, held, n_held = graph.random_inputs(5, torch.Generator().manual_seed(0))
    task = torch.tensor([0, 1, 2, 1, 0])  # 2: no sentence
    expected = ModelPilot(model, 2).act({"state": state, "task": task}, noise, held, n_held)
    assert torch.equal(graph(state, task, noise, held, n_held), expected)
    assert isinstance(graph.model.text, torch.nn.Embedding) and model.reads_sentences  # the model keeps its own


def test_stages_store_the_sentences(inside: None) -> None:
    model = load_model("tuned/checkpoints/last")
    assert model.reads_sentences and model.spec.wordings == {task: WORDINGS[task] for task in (OPEN, CLOSE)}
    assert EpisodeStore("episodes").spec.wordings == model.spec.wordings
    pretrained, tuned = load_model("pretrained/checkpoints/last").state_dict(), model.state_dict()
    text = [name for name in tuned if name.startswith("text.")]
    assert text and all(torch.equal(tuned[name], pretrained[name]) for name in text)  # tune and refit leave it alone


@pytest.mark.parametrize(("verb", "name"), [("pretrain", "words"), ("tune", "words-tuned")])
def test_an_interrupted_stage_ends_with_the_same_bits(
    inside: None, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    """Wordings are drawn with the other random numbers of the training, whose state is saved."""
    (whole,), calls = Path("runs", name).iterdir(), []

    def save(*args: Any, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) == 2:  # the first save is in the middle of the stage, the second at its end
            raise KeyboardInterrupt
        save_model(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "save_model", save)
        assert cli.main([verb, f"{verb}.yaml"]) == 130
    (other,) = set(Path("runs", name).iterdir()) - {whole}
    assert cli.main([verb, str(other)]) == 0
    weights = [(run / "checkpoints" / "last" / "model.safetensors").read_bytes() for run in (whole, other)]
    assert weights[0] == weights[1]
    shutil.rmtree(other)


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def command(inside: None, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return its exit code and what it printed."""

    def run(*words: str) -> tuple[int, str]:
        code = cli.main(list(words))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_eval_takes_sentences_and_unseen_tasks(command: Run) -> None:
    few = "n_episodes=1", "n_envs=1", "max_steps=8", "place=both", "n_dreams=0"
    code, out = command("eval", "tuned", f"env.tasks={OPEN}", "instruction=Slide the drawer open.", *few)
    assert code == 0 and "'Slide the drawer open.', a wording that training did not have" in out
    code, out = command("eval", "tuned", "env.tasks=window-open", *few)
    assert code == 0 and "task window-open is unseen" in out and "│ window-open" in out
    code, out = command("eval", "tuned", f"env.tasks={OPEN}", "instruction=", *few)  # what a shell makes of ''
    assert code == 0 and f"task {OPEN}: without a sentence" in out
    code, out = command("eval", "tuned", "instruction=Open it.", *few)
    assert code == 0 and f"scene: {OPEN}, whose sentences are nearest" in out and f"│ {OPEN}" in out
    assert CLOSE not in out
    code, out = command("eval", "tuned", "instruction=Xyzzy.", *few)
    assert code == 2 and "it is for one task" in out and len(out.strip().splitlines()) == 1
    code, out = command("eval", "metaworld-tuned", f"env.tasks={OPEN}", "instruction=Open it.", *few)
    assert code == 2 and "reads no sentence" in out and len(out.strip().splitlines()) == 1
    code, out = command("eval", "metaworld-tuned", "env.tasks=faucet-open", *few)
    assert code == 2 and "unknown to the checkpoint" in out and len(out.strip().splitlines()) == 1


def test_the_python_api_returns_what_is_new_to_the_model_and_prints_nothing(
    inside: None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = api.evaluate("tuned", tasks=["window-open"], n_episodes=1, n_envs=1, max_steps=8)
    (line,) = found.notes
    assert line.startswith("task window-open is unseen") and found.per_task["window-open"].notes == (line,)
    assert api.evaluate("tuned", tasks=[OPEN], n_episodes=1, n_envs=1, max_steps=8).notes == ()
    (line,) = api.dream("tuned", task="faucet-open", n_chunks=1).notes
    assert line.startswith("task faucet-open is unseen")
    assert capsys.readouterr().out == ""


def test_dream_and_train_take_a_sentence(command: Run, place: Path) -> None:
    code, out = command("dream", "tuned", "env.tasks=faucet-open", "instruction=Turn it on.", "n_chunks=1", "out=x.png")
    assert code == 0 and "task faucet-open is unseen" in out and "'Turn it on.'" in out
    words = (
        "name=ppo checkpoint=tuned env.tasks=faucet-open total_timesteps=64 n_rounds=1 env.n_envs=2 env.max_steps=16"
    )
    words += " ppo.n_steps=4 ppo.batch_size=4 ppo.n_epochs=1 ppo.critic_warmup_steps=0 ppo.bc_coef=0 threads=1"
    words += " gate.enabled=false eval.n_episodes=1 eval.n_paired=0"
    code, out = command("train", "sim", *words.split(), "instruction=Turn it on.")
    assert code == 0 and "task faucet-open is unseen" in out
    (run,) = (place / "runs" / "ppo").iterdir()
    model = load_model(run)
    assert model.spec.tasks == (OPEN, CLOSE, "faucet-open") and model.spec.instruction("faucet-open") == "Turn it on."


def test_play_takes_sentences_and_unseen_tasks(inside: None, capsys: pytest.CaptureFixture[str]) -> None:
    options, notes = compose(None, [f"env.tasks={OPEN},faucet-open", "episodes=episodes"], PlayOptions), []
    session = load_session("tuned", options, notes.append)
    try:
        assert len(notes) == 1 and "task faucet-open is unseen" in notes[0] and capsys.readouterr().out == ""
        assert session.about()["reads_sentences"]
        said = session.status()["instruction"]
        session.handle(Message(press="policy"))
        session.tick()
        before = session.twin.now.actions
        session.handle(Message(instruction="Slide it."))
        assert session.status()["instruction"] == "Slide it." != said and "training did not have" in session.notice
        session.twin.rewind(0)
        session.handle(Message(press="policy"))  # the person takes over
        session.handle(Message(press="policy"))
        session.tick()
        assert before is not None and (session.twin.now.actions != before).any()  # the policy heard it
        session.handle(Message(task="faucet-open"))
        session.handle(Message(press="policy"))
        assert session.tick()
    finally:
        session.twin.close()


def test_a_robot_session_takes_a_sentence() -> None:
    config = RobotConfig(robot="fake", task="my-task", instruction="Do mine.")
    model = make(drawers())
    pilot = ModelPilot(model, 2)
    _tell(pilot, "tuned", config)
    assert pilot.spec.tasks == (OPEN, CLOSE, "my-task") and pilot.spec.instruction("my-task") == "Do mine."
    with pytest.raises(UserError, match="reads no sentence"):
        _tell(ModelPilot(make(drawers(), "index"), 2), "x", config)
    with pytest.raises(UserError, match="name that with task="):
        _tell(ModelPilot(make(drawers()), 2), "x", replace(config, task=""))


def test_wordings_and_a_frozen_encoder_come_from_the_config(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def encode(texts):\n    return [[len(t), t.count('o'), 1.0] for t in texts]\n")
    words = ["name=x", f"env.tasks=[{OPEN}]", f"env.wordings={{{OPEN}: [Open it., Open the drawer.]}}"]
    words += [f"model.text.encoder={tmp_path}/mine.py:encode", "model.task_conditioning=text"]
    config = compose(None, words, PretrainConfig)
    sim = build_simulator(config.env, (OPEN,), 1, model=None, known_tasks=(), n_context_frames=1, max_steps=2)
    sim.close()
    spec = sim.spec
    assert spec.wordings == {OPEN: ("Open it.", "Open the drawer.")}
    model = new_model(replace(config.model, **SIZES), spec)
    assert model.config.text.dim == 3 and model.text is not None
    assert model.text.rows == [INSTRUCTIONS[OPEN], "", "Open it.", "Open the drawer."]
    vectors = model.told(torch.arange(4))
    assert not vectors[1].any() and len({tuple(row.tolist()) for row in vectors}) == 4
    with pytest.raises(UserError, match=r"env\.wordings\.push='Push\.': expected a list of sentences"):
        compose(None, ["name=x", "env.wordings={push: Push.}"], PretrainConfig)
    env = SimulatorConfig(tasks=(OPEN,))
    with pytest.raises(UserError, match="is new, and the checkpoint reads sentences with"):
        tell_of(model, with_instruction(env, "New."), (OPEN,), "New.")
    tell_of(model, with_instruction(env, "New."), (OPEN,), "New.", text_encoder=f"{tmp_path}/mine.py:encode")
    assert model.text.rows[0] == "New."
