"""Paired evaluation by hand, and the page that shows it: whole, alone, and honest about what is missing."""

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.crafted.runs import make_run
from rewards.errors import UserError
from rl import cli
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.envs.sim import SimEnv
from rl.policies.wam import flow_policy
from rl.report import dreaming, figures, plots, training
from rl.report import page as report
from rl.report.data import RunData, read_run
from rl.report.page import PAIRS, write_report
from rl.report.pairs import Pair, error_by_step, gap, prediction_error, run_pairs, summarise, worst_false_success
from rl.report.plots import draw_dream
from rl.report.results import RESULTS
from rl.report.verdict import verdict_of
from rl.rounds.evaluate import evaluate_sim
from rl.runs.verdict import read_verdict
from world_model.data.episodes import Episode
from world_model.wam.model import WorldActionModel
from world_model.wam.store import load_model
from world_model.wam.trust import error_unit, position_error

SEEDS = range(300, 306)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> WorldActionModel:
    return load_model(str(checkpoint))


def pair(model: WorldActionModel, seed: int, sim: bool, dream: bool, off: list[float], replayed: bool = False) -> Pair:
    """An object that lies still in the simulator and is `off` metres away in the dream, step by step."""
    real = torch.zeros(len(off) + 1, model.spec.state_dim)
    told = {"state": real.clone()}
    told["state"][1:, model.spec.slices["object_pos"].start] = torch.tensor(off)
    nothing = torch.zeros(len(off), model.spec.action_dim)
    episode = Episode({"state": real}, nothing, torch.zeros(len(off), dtype=torch.bool), "push", "policy", seed)
    return Pair("push", seed, sim, dream, episode, {"state": real}, told, told, replayed)


def test_figures_of_pairs_by_hand(model: WorldActionModel) -> None:
    steps = 4 * model.config.chunk_size
    errors = [0.01, 0.02, 0.03, 0.04]
    outcomes = [(True, True, True), (True, False, False), (False, True, True), (False, True, False)]
    pairs = [
        pair(model, i, sim, dream, [error] * steps, replayed)
        for i, (error, (sim, dream, replayed)) in enumerate(zip(errors, outcomes, strict=True))
    ]
    torch.testing.assert_close(prediction_error(model, pairs[1]), torch.full((steps,), 0.02))
    found = summarise(model, pairs)
    assert (found["sim"], found["dream"], found["n"], found["n_compared"]) == (0.5, 0.75, 4, 4)
    assert [found[k] for k in ("both", "sim_only", "dream_only", "neither")] == [1, 1, 2, 0]
    assert (found["retold_recall"], found["retold_false_success"], found["retold_agreement"]) == (0.5, 0.5, 0.0)
    assert found["error_by_step"] == pytest.approx([0.025] * steps)
    # ranks 1 2 3 4 against 3.5 3.5 1.5 1.5
    assert found["error_and_success"]["rho"] == pytest.approx(-4 / math.sqrt(5 * 4))
    assert gap(pairs)[0] == pytest.approx(0.25)
    assert worst_false_success(model, pairs) is pairs[3]
    assert worst_false_success(model, pairs[:2]) is None


def test_short_episodes_count_while_they_last(model: WorldActionModel) -> None:
    pairs = [pair(model, 0, True, True, [0.1, 0.1]), pair(model, 1, True, True, [0.3, 0.3, 0.5])]
    assert error_by_step(model, pairs) == pytest.approx([0.2, 0.2, 0.5])
    assert summarise(model, pairs)["n_compared"] == 0  # none is as long as the horizon


def test_positions_in_the_plane_have_two_curves(tmp_path: Path) -> None:
    make_run(tmp_path)
    pairs = json.loads((tmp_path / PAIRS).read_text())
    plane, space = {"simulator": [[0.1, 0.2], [0.2, 0.3]]}, {"simulator": [[0.0] * 3]}
    pairs["examples"][0]["parts"] = {"hand_pos": plane, "object_pos": space}
    (tmp_path / PAIRS).write_text(json.dumps(pairs))
    drawn = checked(write_report(tmp_path))
    assert [f">hand {axis}, cm<" in drawn for axis in "xyz"] == [True, True, False]
    assert ">object z, cm<" in drawn


def test_pairs_are_the_episodes_of_an_evaluation(model: WorldActionModel) -> None:
    sim = SimEnv(
        "metaworld", 4, ["button-press-topdown"], n_context_frames=2, task_names=model.spec.tasks, max_steps=40
    )
    policy = flow_policy(model, sim)
    results, pairs = run_pairs(policy, model, sim, SEEDS)
    alone = evaluate_sim(policy, sim, SEEDS)
    sim.close()
    assert results == alone
    assert [(p.seed, p.sim) for p in pairs] == [(r.seed, r.success) for r in alone]
    for p, r in zip(pairs, alone, strict=True):
        real, dreamed, replayed = (of["state"] for of in (p.real, p.dreamed, p.replayed))
        assert len(real) == len(replayed) == p.n_steps + 1 == r.n_steps + 1
        assert torch.equal(dreamed[0], real[0]) and torch.equal(replayed[0], real[0])
        # The same noise from the same start: until something differs, the policy does the same in both.
        torch.testing.assert_close(dreamed[1:5], replayed[1:5], atol=1e-4, rtol=0)


class Page(HTMLParser):
    """What a browser would ask for, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.asked += [v or "" for k, v in attrs if k in ("src", "href") and not (v or "").startswith(("#", "data:"))]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert page.open == [] and page.asked == []
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    names = [name for drawing in drawings for name in re.findall(r' id="([^"]+)"', drawing)]
    assert len(names) == len(set(names))  # or a drawing would be clipped by another's path
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "currentColor" in drawing  # readable on a light page and on a dark one
    assert "<script" not in text and len(text) < 3_000_000
    assert text.count("<table>") == text.count("<div class=scroll tabindex=0><table>")  # none is cut off on a phone
    return text


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=2000 --dump-dom"
).split()


def in_browser(path: Path, profile: Path) -> str:
    """What a real browser makes of the page; anything that it complains about fails."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", path.resolve().as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_a_browser_that_complains_is_heard(tmp_path: Path) -> None:
    if BROWSER is None:
        pytest.skip("no Chromium here")
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><script>nowhere()</script>")
    with pytest.raises(AssertionError, match="nowhere is not defined"):
        in_browser(broken, tmp_path / "profile")


QUESTIONS = (
    "Did training help?",
    "Where did the gain come from?",
    "When did success rise?",
    "Which new policies passed their gate?",
    "Can the dream be believed?",
    "What did training see, update by update?",
    "How does the error of the dream grow?",
    "Was PPO stable?",
    "What was rewarded?",
    "What did it cost?",
    "How is it repeated?",
)


def test_a_training_ends_with_its_report(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "mix", *tiny, "controls=[anchor]", "name=a<b"]) == 2  # no such folder, no such title
    assert cli.main(["train", "mix", *tiny, "controls=[anchor]"]) == 0
    (folder,) = Path("runs/mix").iterdir()
    out = capsys.readouterr().out
    assert f"report: {folder / 'report.html'}" in out
    text = checked(folder / "report.html")
    for question in QUESTIONS:
        assert text.count(f"<p class=question>{question}</p><h2>") == 1
    assert text.count("<svg") >= 6
    # the gate of a control, where its gain came from, and what it cost, as the terminal prints them
    n_gates = (folder / "metrics.jsonl").read_text().count('"anchor/gate/accepted"')
    assert n_gates > 0 and text.count("<td>anchor</td>") == 1 + n_gates
    assert f"wamtune train {folder / 'config.yaml'}" in text
    for row in (
        "from imitation",
        "from the dream",
        "simulator steps, all in",
        "steps of training",
        "steps of gates",
        "minutes",
    ):
        printed = re.search(rf"│ {row} +│ +(\S+) │ +(\S+) │", out)
        assert printed is not None and f"<td>{row}</td>" + "".join(f"<td>{of}</td>" for of in printed.groups()) in text
    # what differs from the defaults, and that alone, as it is typed
    assert (
        "\ntotal_timesteps=320\n" in text and "\nenv.tasks=button-press-topdown\n" in text and "clip_range" not in text
    )
    verdict = verdict_of(read_run(folder))
    assert out.splitlines()[-1] == f"next: {verdict.next_command}"
    assert f"\n{verdict.label}. {verdict.sentence}\n" in out and read_verdict(folder) == verdict
    assert json.loads((folder / PAIRS).read_text())["summary"]["n"] == 4
    if BROWSER is not None:
        seen = in_browser(folder / "report.html", tmp_path / "profile")
        assert seen.count("<svg") == text.count("<svg") and "How is it repeated?" in seen
    (folder / "report.html").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text(encoding="utf-8") == text


def test_a_run_under_way_has_a_report_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LIBRARIES", ("torch", "a-simulator-of-elsewhere"))
    config = compose("mix", ["env.tasks=[push]"], TrainConfig)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    rows: list[dict[str, Any]] = [
        {"step": 0, "eval/success": 0.5},
        {"step": 9, "train/value_loss": 1.0, "train/ref_kl": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = checked(write_report(tmp_path))
    assert "Not evaluated yet" in text and "passed their gate" not in text and "Not finished" in text
    assert f"torch {version('torch')}" in text and "a-simulator-of-elsewhere" not in text


@pytest.mark.parametrize(
    ("phi", "counts", "lines"),
    [
        (
            (0.5, 0.2),
            (20, 5, 5, 20),
            [
                "The dream predicted single episodes: φ +0.40 over the 24 pairs of its gates.",
                "The dream predicted single episodes: φ +0.60 over 50 episodes of the trained policy.",
            ],
        ),
        (
            (0.0, -0.3),
            (5, 20, 20, 5),
            [
                "The dream did not predict single episodes: φ -0.10 over the 24 pairs of its gates.",
                "The dream did not predict single episodes: φ -0.60 over 50 episodes of the trained policy.",
            ],
        ),
        ((None, None), (50, 0, 0, 0), []),
    ],
)
def test_the_report_says_how_well_the_dream_predicted(
    phi: tuple[float | None, ...], counts: tuple[int, ...], lines: list[str], tmp_path: Path
) -> None:
    """Gates of 16 and 8 pairs: (16 * .5 + 8 * .2) / 24 = .4 and (16 * 0 - 8 * .3) / 24 = -.1."""
    make_run(tmp_path)
    gate = {"gate/accepted": 1, "gate/champion": 0.5, "gate/challenger": 0.6, "gate/gain": 0.1}
    gate |= {"gate/gain_low": -0.05, "gate/gain_high": 0.25, "gate/twin_weight": 0.5, "gate/n_saved": 3}
    rows = [{"step": i, **gate, "gate/n_episodes": n, "gate/phi": phi[i]} for i, n in enumerate((16, 8))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = json.loads((tmp_path / PAIRS).read_text())
    pairs["summary"] |= dict(zip(("both", "sim_only", "dream_only", "neither"), counts, strict=True)) | {"n": 50}
    (tmp_path / PAIRS).write_text(json.dumps(pairs))
    text = checked(write_report(tmp_path))
    assert dreaming.predictions(read_run(tmp_path)) == lines and all(line in text for line in lines)
    assert "<td>+10.0 [-5.0, +25.0]</td>" in text and "<th>pairs saved</th>" in text
    assert "<title>accepted: 10.0 [-5.0, 25.0]</title>" in text  # shown where the pointer rests, without a script


def run_of(tmp_path: Path, rows: list[dict[str, Any]], *overrides: str) -> RunData:
    (tmp_path / "config.yaml").write_text(to_yaml(compose("mix", ["env.tasks=[push]", *overrides], TrainConfig)))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(tmp_path)


def test_curves_are_drawn_over_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an older version, whose step counted what the simulator executed, by counting."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "curves", lambda of, *rest, **more: drawn.append(of) or "drawn")
    monkeypatch.setattr(figures, "stacked", lambda names, x, *rest: drawn.append(x) or "drawn")
    losses = [{"train/value_loss": 1.0, "reward/success": 0.1, "rollout/sim_success": 0.5} for _ in range(2)]
    gate = {"gate/challenger": 0.5}
    old = [{"step": 900, **losses[0]}, {"step": 900, **gate}, {"step": 1800, **losses[1]}]
    new = [{"step": n, "time/total_timesteps": 900, **row} for n, row in ((1, losses[0]), (2, gate), (3, losses[1]))]
    for rows, x in ((old, [1, 2]), (new, [1, 3])):
        drawn.clear()
        run = run_of(tmp_path, rows)
        for section in (training.ppo, training.rewards, dreaming.places):
            assert section(run) is not None
        assert drawn[0]["to the start of the phase"][0] == drawn[2] == drawn[3]["simulator, exploring"][0] == x
        assert drawn[3]["simulator, in the gate"][0] == [x[-1] - 1]


def test_equal_rounds_of_run_and_control_stand_above_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 95 % intervals: 20 of 200 episodes are 6.6 to 14.9 % (Wilson)."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "curves", lambda *of, **more: drawn.append((*of, more["bands"])) or "drawn")
    own = [(0.0, 0.1), (1 / 3, 0.25), (2 / 3, 0.3), (1.0, 0.4)]  # start, simulator, imitation, dream
    other = [(0.0, 0.1), (1 / 3, 0.5), (1.0, 0.6)]  # no imitation
    rows = [{"eval/rounds": x, "eval/success": y} for x, y in own]
    rows += [{"unsafe_dream/eval/rounds": x, "unsafe_dream/eval/success": y} for x, y in other]
    section = training.rounds(run_of(tmp_path, rows, "controls=[unsafe_dream]"))
    x = [[x for x, _ in of] for of in (own, other)]
    curves, label, _, bands = drawn.pop()
    assert curves == {"mix": (x[0], [0.1, 0.25, 0.3, 0.4]), "unsafe_dream": (x[1], [0.1, 0.5, 0.6])}
    assert label == "rounds of training" and bands["mix"][0] == pytest.approx((0.066, 0.149), abs=5e-4)
    assert section is not None and section.answer == "The largest step was +15.0 points, after phase 1 of 3"
    # A run of an older version says no rounds: its phases are counted.
    older = [{tag: y for tag, y in row.items() if "success" in tag} for row in rows]
    training.rounds(run_of(tmp_path, older, "controls=[unsafe_dream]"))
    curves, label, _, _ = drawn.pop()
    assert label == "phases of the rounds" and [list(x) for x, _ in curves.values()] == [[0, 1, 2, 3], [0, 1, 2]]


def test_gates_of_controls_stand_in_the_table(tmp_path: Path) -> None:
    gate = {"gate/accepted": 1, "gate/champion": 0.5, "gate/challenger": 0.75, "gate/won": 3, "gate/lost": 1}
    rows = [
        gate | {"gate/in_dream": 1},
        {f"anchor/{tag}": value for tag, value in gate.items()} | {"anchor/gate/accepted": 0},
    ]
    section = training.gates(run_of(tmp_path, rows, "controls=[anchor]"))
    assert section is not None and section.answer == "1 of 1 new policies passed"
    for name, phase, verdict in (("mix", "dream", "accepted"), ("anchor", "sim", "rolled back")):
        row = f"<td>{name}</td><td>1: {phase}</td><td>50 %</td><td>75 %</td><td>3 / 1</td>"
        assert re.search(rf"<tr>{row}(<td></td>)*<td>{verdict}</td></tr>", section.body)


def test_where_the_gain_came_from(tmp_path: Path) -> None:
    """0.4 -> 0.5 by imitation, -> 0.45 in the simulator, -> 0.7 in the dream, -> 0.75 in the next dream."""
    phases = [("imitation", 0.5), ("sim", 0.45), ("dream", 0.7), ("dream", 0.75)]
    result = {"name": "mix", "before": 0.4, "reward": [0, 1], "sim_steps": 1000, "gate_steps": 20, "minutes": 1.25}
    result["phases"] = [{"phase": p, "accepted": True, "success": rate, "rounds": 1.0} for p, rate in phases]
    make_run(tmp_path)
    (tmp_path / RESULTS).write_text(json.dumps([result]))
    text = checked(write_report(tmp_path))
    for row in ("from imitation</td><td>+10.0", "from the simulator</td><td>-5.0", "from the dream</td><td>+30.0"):
        assert f"<tr><td>{row}</td></tr>" in text
    assert "<h2>The largest part came from the dream: +30.0 points, of +35.0 in all</h2>" in text
    steps = "1,020 of at most 100,000 simulator steps, all in: 1,000 to train and 20 for gates"
    assert f"<h2>{steps}, in 1.2 minutes</h2>" in text and "With white noise" not in text
    (tmp_path / RESULTS).write_text(json.dumps([result | {"with_noise": 0.7}]))
    noisy = "With white noise of 0.001 (standard deviation) on every feature and step, the trained policy succeeds in"
    assert f"{noisy} 70.0 %." in checked(write_report(tmp_path))
    (tmp_path / RESULTS).write_text(json.dumps([result | {"before": 2}]))
    with pytest.raises(UserError, match=r"results.json: it\[0\].before=2, expected a number from 0 to 1; delete it"):
        write_report(tmp_path)


UNITS = ["error of the object, cm", "amount of movement predicted, m", "prediction error, m", "expected error, m"]
OTHERS = [
    "error of the state, normalised units",
    *(f"{name}, normalised units" for name in ("amount of movement predicted", "prediction error", "expected error")),
]


@pytest.mark.parametrize(
    ("unit", "part", "shown"),
    [("m", "hand_pos", UNITS), ("normalised units", "object_pos", OTHERS)]
    + [(None, "object_pos", UNITS), (None, "hand_pos", OTHERS)],  # older runs do not say it
)
def test_errors_are_labelled_in_their_unit(tmp_path: Path, unit: str | None, part: str, shown: list[str]) -> None:
    make_run(tmp_path)
    pairs = json.loads((tmp_path / PAIRS).read_text())
    pairs["examples"][0]["parts"] = {part: pairs["examples"][0]["parts"]["hand_pos"]}
    (tmp_path / PAIRS).write_text(json.dumps(pairs | ({"unit": unit} if unit else {})))
    text = checked(write_report(tmp_path))
    assert all(f">{label}<" in text for label in shown)
    assert not any(f">{label}<" in text for label in (UNITS if shown is OTHERS else OTHERS))


def test_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path)
    pairs = json.loads((tmp_path / PAIRS).read_text())
    (tmp_path / PAIRS).write_text(json.dumps(pairs | {"unit": "<b>"}))
    with pytest.raises(
        UserError, match=r"pairs.json: unit='<b>', expected m, normalised units or units of the state; delete it"
    ):
        write_report(tmp_path)


def test_the_unit_of_an_error_is_that_of_what_is_compared(
    model: WorldActionModel, image_model: WorldActionModel
) -> None:
    assert (error_unit(model), error_unit(image_model)) == ("m", "normalised units")
    image_model.codec.state.fit(torch.randn(100, image_model.frame_dim, generator=torch.Generator().manual_seed(0)))
    frames = torch.zeros(2, image_model.frame_dim)
    frames[1] = 3 * image_model.codec.state.std  # three standard deviations in each number of state and latents
    error = position_error(image_model, frames[:1], frames[1:])
    assert error.item() == pytest.approx(3 * math.sqrt(image_model.frame_dim), rel=1e-4)


def test_probabilities_are_drawn_from_0_to_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: kept.append(figure))
    curves = {"hand_pos": torch.rand(9, 3), "success probability": 1e-3 * torch.rand(9)}
    draw_dream(curves, curves, 4, "title", tmp_path / "dream.png")
    axes = kept[0].get_axes()
    assert axes[-1].get_ylim() == (-0.02, 1.02) and all(a.get_ylim() != (-0.02, 1.02) for a in axes[:-1])


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report: .* holds no training; expected runs/NAME/TIME-s0"):
        write_report(tmp_path)
