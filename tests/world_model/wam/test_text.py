"""Sentences as conditioning: tokens, wordings, bits that do not depend on the index, and a toy that needs the sentence.

In the toy a point stands in the middle of the plane and is asked to go left or right. Start and physics are the same
for both tasks, so only the sentence can say where to go.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from tests.conftest import CONFIG as INDEX_CONFIG
from world_model.data.episodes import Episode
from world_model.spec import Feature, Spec
from world_model.wam import modes
from world_model.wam.config import ModelConfig, TextConfig
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model, save_model
from world_model.wam.text import MAX_WORDS, OwnSentences, encoded_by, pieces_of, words_of
from world_model.wam.training import StageConfig, fit_statistics, train_stage

CONFIG = replace(
    INDEX_CONFIG,
    context_noise=0.0,
    task_conditioning="text",
    text=TextConfig(n_buckets=512, width=32, n_layers=1, n_heads=2),
)
SPEC = Spec(
    {"state": Feature((2,), "m", {"point": (0, 2)})},
    (-1.0, -1.0),
    (1.0, 1.0),
    ("left", "right"),
    control_hz=10.0,
    instructions={"left": "Move the point to the left.", "right": "Move the point to the right."},
    wordings={
        "left": ("Go left.", "Push it to the left side.", "Leftward, please."),
        "right": ("Go right.", "Push it to the right side.", "Rightward, please."),
    },
)
DIRECTION = {"left": -1.0, "right": 1.0}


def toy_episodes(n: int, source: str, seed: int) -> list[Episode]:
    """`n` episodes a task of 8 steps: "expert" goes straight to its side, "wrong" to the other one, "random" drifts."""
    generator, found = torch.Generator().manual_seed(seed), []
    for task, side in DIRECTION.items():
        action = 0.4 * torch.randn(n, 8, 2, generator=generator)
        if source != "random":
            action = 0.2 * action + torch.tensor([0.8 * (side if source == "expert" else -side), 0.0])
        action = action.clamp(-1, 1)
        start = 0.1 * torch.randn(n, 1, 2, generator=generator)
        states = torch.cat([start, start + 0.1 * action.cumsum(1)], dim=1)
        reached = states[:, 1:, 0] * side > 0.4
        found += [Episode({"state": states[i]}, action[i], reached[i], task, source, seed=i) for i in range(n)]
    return found


def make(config: ModelConfig = CONFIG, spec: Spec = SPEC) -> WorldActionModel:
    torch.manual_seed(0)
    return WorldActionModel(config, spec)


def fitted() -> WorldActionModel:
    """Fresh weights, fitted statistics."""
    model = make()
    fit_statistics(model, model.windows(toy_episodes(8, "random", 1)), n=100)
    return model.eval()


def train(model: WorldActionModel) -> WorldActionModel:
    episodes = toy_episodes(24, "random", 1) + toy_episodes(24, "expert", 2) + toy_episodes(8, "wrong", 4)
    windows = model.windows(episodes)
    fit_statistics(model, windows, n=1000)
    config = StageConfig(n_steps=120, batch_size=64, learning_rate=3e-3, warmup_steps=10)
    train_stage("pretrain", model, windows, replace(config, atoms=(0.3, 0.0, 0.3, 0.1, 0.3)))
    demos = model.windows(toy_episodes(8, "expert", 3))
    train_stage("tune", model, demos, replace(config, n_steps=200, atoms=(0.0, 0.8, 0.0, 0.2, 0.0)))
    return model.eval()


@pytest.fixture(scope="module")
def trained() -> WorldActionModel:
    return train(make())


@torch.no_grad()
def solved(model: WorldActionModel, sentences: dict[str, str], n: int = 32) -> float:
    """Share of decisions from the middle that go to the side of their task, asked in these words."""
    asked = copy.deepcopy(model)
    asked.tell(replace(model.spec, instructions=sentences, wordings={}))
    obs = {"state": torch.zeros(2 * n, 2, 2), "task": torch.arange(2 * n) % 2}
    noise = torch.randn(2 * n, 2, 4, generator=torch.Generator().manual_seed(0))
    actions = modes.policy(asked, asked.observe(obs), noise, 2)
    sides = torch.tensor([DIRECTION[task] for task in SPEC.tasks])[obs["task"]]
    return float((actions[:, :, 0].mean(1) * sides > 0.4).float().mean())


def test_words_and_pieces() -> None:
    assert words_of("Pull the Drawer-front OPEN, 2 cm!") == ["pull", "the", "drawer", "front", "open", "2", "cm"]
    assert len(words_of("go " * 100)) == MAX_WORDS and words_of("  .,!") == []
    assert words_of("Öffne die Tür") == ["öffne", "die", "tür"]
    # Parts of "<open>" are "<op", "ope", "pen", "en>", and the word itself comes first.
    pieces = pieces_of("open", 2048)
    assert len(pieces) == 5 and all(0 < piece < 2048 for piece in pieces)
    # The rows are those of a checkpoint's table, so they may never change.
    assert pieces == [1272, 1868, 415, 369, 1498]
    assert set(pieces_of("opening", 2048)) & set(pieces)  # a word never seen shares parts with those that were


def test_the_default_encoder_takes_less_than_a_megabyte() -> None:
    model = WorldActionModel(ModelConfig(task_conditioning="text"), SPEC)
    weights = [*model.text.parameters(), *model.encoder.task.parameters(), *model.read_out.task.parameters()]
    assert sum(4 * weight.numel() for weight in weights) <= 1e6


def test_a_sentence_has_the_same_bits_at_every_index_and_beside_any_others() -> None:
    first = fitted()
    others = {"up": "Something else, and longer than the first.", "left": "", "right": SPEC.instruction("left")}
    swapped = replace(SPEC, tasks=("up", "left", "right"), instructions=others, wordings={})
    second = WorldActionModel(CONFIG, swapped).eval()
    second.load_state_dict(first.state_dict())  # the weights know neither tasks nor their number
    frames = {"state": torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(1))}
    told = (first, 0), (second, 2)  # the sentence of "left" at index 0, and of "right" at index 2
    a, b = (m.observe(frames | {"task": torch.full((3,), i)}) for m, i in told)
    assert torch.equal(a.features, b.features)
    kept, also = ([part for layer in context.cache for part in layer] for context in (a, b))
    assert all(torch.equal(x, y) for x, y in zip(kept, also, strict=True))
    noise = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(modes.policy(first, a, noise, 2), modes.policy(second, b, noise, 2))
    chunk, seed = torch.full((3, 4, 2), 0.1), torch.arange(3)
    dreams = [m.predict(m.begin(frames | {"task": torch.full((3,), i)}, seed), chunk)[1] for m, i in told]
    assert torch.equal(dreams[0].frames["state"], dreams[1].frames["state"])
    assert torch.equal(dreams[0].success, dreams[1].success)
    # Another sentence gives others: what the test compares does depend on the words.
    other = first.observe(frames | {"task": torch.ones(3, dtype=torch.long)})
    assert not torch.equal(a.features, other.features)
    # No sentence and an empty one are the same.
    nothing, empty = first.told(torch.tensor([first.null_task])), second.told(torch.tensor([1]))
    assert torch.equal(nothing, empty)


@torch.no_grad()
def test_a_sentence_that_is_read_alone_has_the_bits_of_one_that_the_model_was_told(trained: WorldActionModel) -> None:
    frames, noise = torch.randn(2, 2, 2), torch.randn(2, 2, 4)
    for text in ("Move the point up.", "Go left.", "x" * 500, " ".join(["very"] * 40) + " left", "?!", ""):
        told = copy.deepcopy(trained)
        told.tell(replace(SPEC, tasks=(*SPEC.tasks, "new"), instructions=SPEC.instructions | {"new": text}))
        task = torch.full((2,), 2)
        vector = trained.read(text)
        assert torch.equal(vector.expand(2, -1), told.told(task)), text
        assert torch.equal(trained.told(vector), vector)  # as it is
        # and so have the actions and what the read-outs say
        expected = modes.policy(told, told.observe({"state": frames, "task": task}), noise, 2)
        found = modes.policy(trained, trained.observe({"state": frames, "task": vector.expand(2, -1)}), noise, 2)
        assert torch.equal(found, expected), text
    assert trained.text is not None and trained.text.rows == make().text.rows  # type: ignore[union-attr]


def test_gradients_and_the_kept_vectors_agree() -> None:
    text = make().text
    assert isinstance(text, OwnSentences)
    rows = torch.tensor([0, 5, 2, 0, 8])
    kept = text.eval()(rows)
    assert not kept.requires_grad and torch.equal(kept[0], kept[3])
    learning = text.train()(rows)
    assert learning.requires_grad
    torch.testing.assert_close(learning, kept, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        text.table.weight *= 2.0
    assert not torch.allclose(text.eval()(rows), kept)  # new weights, new vectors


def test_wordings_are_drawn_evenly_and_repeat() -> None:
    model = make()
    task = torch.tensor([0, 1, model.null_task]).repeat(3000)
    drawn = model.reworded(task, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, model.reworded(task, torch.Generator().manual_seed(0)))
    assert model.text is not None and set(drawn[task == model.null_task].tolist()) == {model.null_task}
    for index, name in enumerate(SPEC.tasks):
        counts = torch.bincount(drawn[task == index], minlength=len(model.text.rows))
        texts = {model.text.rows[i]: int(counts[i]) / 3000 for i in counts.nonzero().squeeze(1)}
        assert set(texts) == {SPEC.instruction(name), *SPEC.wordings[name]}
        assert all(abs(share - 0.25) < 0.04 for share in texts.values())


def test_the_sentence_decides(trained: WorldActionModel) -> None:
    """The controls: wordings that training did not have, a wrong sentence, no sentence."""
    left, right = (SPEC.instruction(task) for task in SPEC.tasks)
    assert solved(trained, {"left": left, "right": right}) > 0.95
    assert solved(trained, {"left": "Please push the point to the left.", "right": "Move it right."}) > 0.9
    assert solved(trained, {"left": right, "right": left}) < 0.05
    assert solved(trained, {"left": "", "right": ""}) < 0.6


@torch.no_grad()
def test_the_dream_follows_the_sentence(trained: WorldActionModel) -> None:
    """Without actions the future depends on the sentence, and so does what counts as success."""
    obs = {"state": torch.zeros(64, 2, 2), "task": torch.arange(64) % 2}
    noise = modes.video_noise(trained, 64, torch.Generator().manual_seed(0))
    frames = modes.video(trained, trained.observe(obs), noise, 2)
    assert float(frames[1::2, -1, 0].mean() - frames[::2, -1, 0].mean()) > 0.05
    there = torch.tensor([[[-0.55, 0.0]], [[0.55, 0.0]]])
    reached, _ = trained.success_and_progress({"state": there}, torch.tensor([0, 1]))
    wrong, _ = trained.success_and_progress({"state": there}, torch.tensor([1, 0]))
    assert float(reached.min()) > 0.6 and float(wrong.max()) < 0.4


def test_training_repeats_to_the_bit_and_tune_leaves_the_text_alone() -> None:
    states, seen = [], []
    for _ in range(2):
        model = make()
        windows = model.windows(toy_episodes(4, "random", 1))
        fit_statistics(model, windows, n=100)
        config = StageConfig(n_steps=4, batch_size=8, warmup_steps=1)
        train_stage("pretrain", model, windows, config)
        seen.append(copy.deepcopy(model.text.state_dict()))
        train_stage("tune", model, windows, replace(config, atoms=(0.0, 1.0, 0.0, 0.0, 0.0)))
        train_stage("refit", model, windows, config)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(value, states[0][f"text.{name}"]) for name, value in seen[0].items())
    assert not torch.equal(seen[0]["table.weight"], make().text.table.weight)


def test_an_index_model_trains_as_before() -> None:
    """Losses of the toy by the version that had no sentences; the same draws in the same order."""
    logged: list[dict[str, float]] = []
    model = make(replace(CONFIG, task_conditioning="index"))
    assert model.text is None and "encoder.task.weight" in model.state_dict()
    windows = model.windows(toy_episodes(8, "random", 1))
    fit_statistics(model, windows, n=100)
    config = StageConfig(n_steps=20, batch_size=16, warmup_steps=5, log_every=20)
    train_stage("pretrain", model, windows, config, log=lambda step, values: logged.append(values))
    found = [logged[0][name] for name in ("video", "action", "success", "progress")]
    assert found == pytest.approx(INDEX_LOSSES, rel=1e-3)


INDEX_LOSSES = [0.76277, 0.16586, 0.19069, 0.07966]
"""Mean over 20 steps of video, action, success, progress."""


def test_older_configs_are_of_index_models() -> None:
    new = asdict(ModelConfig())
    old = {name: value for name, value in new.items() if name not in ("task_conditioning", "task_dropout", "text")}
    config = ModelConfig.from_dict(old)
    assert (config.task_conditioning, config.task_dropout) == ("index", 0.1)
    assert ModelConfig.from_dict(asdict(CONFIG)) == CONFIG


@torch.no_grad()
def test_a_new_task_is_a_sentence(trained: WorldActionModel, tmp_path: Path) -> None:
    model = copy.deepcopy(trained)
    told = replace(
        model.spec,
        tasks=(*model.spec.tasks, "shove"),
        instructions=model.spec.instructions | {"shove": "Shove the point to the right."},
    )
    model.tell(told)
    assert model.null_task == 3
    obs = {"state": torch.zeros(8, 2, 2)}
    noise = torch.randn(8, 2, 4, generator=torch.Generator().manual_seed(0))
    before = modes.policy(trained, trained.observe(obs | {"task": torch.zeros(8, dtype=torch.long)}), noise, 2)
    after = modes.policy(model, model.observe(obs | {"task": torch.zeros(8, dtype=torch.long)}), noise, 2)
    assert torch.equal(before, after)  # the others stay as they were
    shoved = modes.policy(model, model.observe(obs | {"task": torch.full((8,), 2)}), noise, 2)
    assert float(shoved[..., 0].mean()) > 0.3
    save_model(tmp_path / "told", model, "tune")
    again = load_model(tmp_path / "told")
    assert again.spec.tasks == told.tasks and again.spec.wordings == told.wordings
    loaded = modes.policy(again, again.observe(obs | {"task": torch.full((8,), 2)}), noise, 2)
    assert torch.equal(shoved, loaded)


def fake_encoder(texts: list[str]) -> list[list[float]]:
    """Ten numbers of a sentence: how often each of ten letters occurs."""
    return [[float(text.count(letter)) for letter in "letrighpus"] for text in texts]


def test_a_frozen_encoder_is_asked_once_and_is_not_needed_again(tmp_path: Path) -> None:
    config = replace(CONFIG, text=TextConfig(encoder="mine.py:fake_encoder", dim=10))
    model = make(config)
    model.tell(SPEC, fake_encoder)
    train(model)
    left, right = (SPEC.instruction(task) for task in SPEC.tasks)
    save_model(tmp_path / "frozen", model, "tune")
    model = load_model(tmp_path / "frozen")  # without the encoder
    assert solved(model, {"left": left, "right": right}) > 0.9
    assert solved(model, {"left": right, "right": left}) < 0.1
    new = replace(model.spec, instructions={"left": "Leftwards!", "right": right})
    with pytest.raises(UserError, match=r"'Leftwards!' is new.*text_encoder=mine\.py:fake_encoder"):
        model.tell(new)
    assert solved(model, {"left": left, "right": right}) > 0.9  # it is as it was before the refusal
    model.tell(new, fake_encoder)
    assert model.text is not None and model.text.rows[0] == "Leftwards!"
    # A single sentence: a known one without the encoder, a new one with it.
    assert torch.equal(model.read("Leftwards!"), model.told(torch.tensor([0]))) and not model.read("").any()
    with pytest.raises(UserError, match=r"'Up!' is new.*text_encoder=mine\.py:fake_encoder"):
        model.read("Up!")
    up = model.read("Up!", fake_encoder)
    model.tell(replace(new, instructions={"left": "Up!", "right": right}), fake_encoder)
    assert torch.equal(up, model.told(torch.tensor([0])))
    with pytest.raises(UserError, match="returned shape"):
        encoded_by(lambda texts: [1.0, 2.0], ["a", "b"], "x")
    with pytest.raises(UserError, match="length 3, the model reads 10"):
        model.tell(replace(new, instructions={"left": "Another."}), lambda texts: torch.ones(len(texts), 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task_conditioning": "words"}, "expected index or text"),
        ({"task_dropout": 1.0}, "share from 0 to below 1"),
        ({"text": TextConfig(n_buckets=1)}, "n_buckets=1: expected a whole number from 2"),
        ({"text": TextConfig(width=30)}, "n_heads=4 must divide model.text.width=30"),
        ({"text": TextConfig(encoder="x.py:f")}, "model.text.dim=0"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(replace(CONFIG, **changes))


def test_specs_with_bad_wordings_are_refused() -> None:
    data = SPEC.to_dict()
    assert Spec.from_dict(data).wordings == SPEC.wordings
    for wrong in ({"left": "one"}, {"left": [1]}, ["left"]):
        with pytest.raises(UserError, match="wordings"):
            Spec.from_dict(data | {"wordings": wrong})
