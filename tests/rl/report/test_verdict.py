"""The verdict on a run, from results files made by hand: the sentence says what the table says, and nothing more."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crafted.runs import make_run as make_whole_run
from rl.build import check_simulator
from rl.compose import compose, to_yaml
from rl.config import TrainConfig
from rl.report.data import BAD_NUMBERS, PAIRS, read_run
from rl.report.page import TONES, write_report
from rl.report.results import RESULTS
from rl.report.verdict import episodes_needed, verdict_of
from rl.rounds.evaluate import EpisodeResult
from rl.runs.verdict import LABELS, VERDICT, RunVerdict, read_verdict, save_verdict
from rl.statistics import paired_gain

MIX = "mix", "env.tasks=[push]"


def outcomes(n_solved: int, n: int = 100) -> list[bool]:
    """The first episodes succeed, so that two runs of these differ in as few episodes as they can."""
    return [i < n_solved for i in range(n)]


def make_run(
    folder: Path,
    runs: dict[str, tuple[Sequence[bool], Sequence[bool]]],
    config: Sequence[str] = MIX,
    rows: Sequence[dict[str, Any]] = ({"eval/success": 0.4},),
    paired: tuple[int, int, int, int] | None = None,
) -> Path:
    """Write the files of a run.

    `runs`: run or control -> success of each episode before and after. `paired`: episodes that succeed in both, in the
    simulator alone, in the dream alone, and in neither.
    """
    make_whole_run(folder)
    (folder / RESULTS).unlink()
    preset, *overrides = config
    (folder / "config.yaml").write_text(to_yaml(compose(preset, overrides, TrainConfig)))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, **row}) + "\n" for i, row in enumerate(rows)))
    episode = {"task": "push", "n_steps": 5, "reward": 0.0, "place": "sim"}
    lines = [
        json.dumps(episode | {"run": name, "phase": phase, "seed": seed, "success": success})
        for name, found in runs.items()
        for phase, successes in zip(("before", "after"), found, strict=True)
        for seed, success in enumerate(successes)
    ]
    (folder / "eval.jsonl").write_text("".join(line + "\n" for line in lines))
    if paired is None:
        (folder / PAIRS).unlink()
        return folder
    both, sim_only, dream_only, neither = paired
    n = sum(paired)
    pairs = json.loads((folder / PAIRS).read_text())
    sim = [i < both + sim_only for i in range(n)]
    dream = [i < both or both + sim_only <= i < n - neither for i in range(n)]
    places = [[EpisodeResult("push", i, hit, 5, 0.0) for i, hit in enumerate(hits)] for hits in (sim, dream)]
    pairs["gap"] = paired_gain(*places)
    counts = dict(zip(("both", "sim_only", "dream_only", "neither"), paired, strict=True))
    pairs["summary"] |= {"n": n, "sim": (both + sim_only) / n, "dream": (both + dream_only) / n, **counts}
    (folder / PAIRS).write_text(json.dumps(pairs))
    return folder


def judged(folder: Path, *args: Any, **kwargs: Any) -> RunVerdict:
    return verdict_of(read_run(make_run(folder, *args, **kwargs)))


def test_gain_beyond_the_controls(tmp_path: Path) -> None:
    """40 -> 80 of 100, where the better control ends at 60: +40 points, and +20 beside that control."""
    runs = {"mix": (outcomes(40), outcomes(80)), "anchor": (outcomes(40), outcomes(45))}
    runs["filtered_bc"] = outcomes(40), outcomes(60)
    found = judged(tmp_path, runs, (*MIX, "controls=[anchor,filtered_bc]"), paired=(75, 5, 5, 15))
    assert found.kind == "gain"
    # 40 won and 0 lost of 100, 20 won and 0 lost: Tango's intervals
    assert found.sentence == (
        "Success in the simulator rose from 40.0 % to 80.0 % (+40.0 points [+30.9, +49.8] on 100 fresh episodes), "
        "+20.0 points [+13.3, +28.9] more than the best control without RL, filtered_bc."
    )
    assert found.next_command == f"wamtune train {tmp_path}/config.yaml seed=1"


def test_a_gain_that_a_control_reaches_too_is_not_one_of_reinforcement_learning(tmp_path: Path) -> None:
    runs = {"mix": (outcomes(40), outcomes(80)), "filtered_bc": (outcomes(40), outcomes(79))}
    found = judged(tmp_path, runs, (*MIX, "controls=[filtered_bc]"))
    assert found.kind == "control"
    assert "but the control filtered_bc, without RL, gained as much (difference +1.0 points [" in found.sentence


def test_a_control_that_is_reinforcement_learning_is_no_rival(tmp_path: Path) -> None:
    runs = {"mix": (outcomes(40), outcomes(80)), "unsafe_dream": (outcomes(40), outcomes(90))}
    found = judged(tmp_path, runs, (*MIX, "controls=[unsafe_dream]"))
    assert found.kind == "gain" and "no control was run beside it" in found.sentence
    assert found.next_command.endswith("controls=anchor,filtered_bc")


def test_a_control_that_has_not_finished_is_named(tmp_path: Path) -> None:
    runs = {"mix": (outcomes(40), outcomes(80)), "anchor": (outcomes(40), outcomes(45))}
    found = judged(tmp_path, runs, (*MIX, "controls=[anchor,filtered_bc]"))
    assert found.kind == "gain" and found.sentence.endswith("anchor; not all controls have finished.")


def test_loss(tmp_path: Path) -> None:
    found = judged(tmp_path, {"mix": (outcomes(60), outcomes(30))}, paired=(30, 0, 0, 70))
    assert found.kind == "loss"
    assert found.sentence == (
        "Success in the simulator fell from 60.0 % to 30.0 % (-30.0 points [-39.6, -21.9] on 100 fresh episodes)."
    )
    assert found.next_command.endswith("ppo.learning_rate=0.0001")


def test_too_few_episodes(tmp_path: Path) -> None:
    """2 won and 1 lost of 20: +5 points, whose interval holds 0."""
    before, after = outcomes(10, 20), [False, *outcomes(11, 19)]
    found = judged(tmp_path, {"mix": (before, after)}, paired=(10, 0, 0, 10))
    gain, low, high = paired_gain(
        *([EpisodeResult("", i, s, 0, 0.0) for i, s in enumerate(x)] for x in (before, after))
    )
    assert gain == pytest.approx(0.05) and low < 0 < high
    assert found.kind == "unclear" and found.label == "Too few episodes to say"
    assert "went from 50.0 % to 55.0 % (+5.0 points [" in found.sentence
    n = -(-20 * ((gain - low) / gain) ** 2 // 100) * 100  # the interval narrows with the root of the episodes
    assert f"clear from about {n:.0f} episodes on" in found.sentence
    assert found.next_command.endswith(f"eval.n_episodes={n:.0f}")


def test_a_change_of_nothing_needs_no_number_of_episodes() -> None:
    before, after = ([EpisodeResult("", i, s, 0, 0.0) for i, s in enumerate(x)] for x in ([True, False], [False, True]))
    assert episodes_needed(before, after) is None


def test_an_environment_that_never_reports_success_has_no_rate(tmp_path: Path) -> None:
    """Rewards 0 before and 1, 2, 3 after: the mean change is 2, its deviation 1, so 2 +- 4.303 / sqrt(3) = 2.484."""
    folder = make_run(tmp_path, {"mix": ([False] * 3, [False] * 3)}, ("sim", "env.tasks=[push]", "name=mix"))
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    changed = [row | {"reward": float(row["seed"] + 1) if row["phase"] == "after" else 0.0} for row in rows]
    changed = [row | {"has_success": False} for row in changed]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    found = verdict_of(read_run(folder))
    assert found.label == "No success in this environment" and found.next_command.endswith("total_timesteps=200000")
    assert found.sentence == (
        "The environment has no is_success in its info, so there is no success rate; its own reward of an episode "
        "went from 0 to 2 (+2 [-0.4841, +4.484] on 3 fresh episodes)."
    )
    page = write_report(folder).read_text()
    assert "reward before" in page and "When did success rise?" not in page


def test_without_a_success_the_reward_is_shown(tmp_path: Path) -> None:
    """Some tasks, such as Pendulum-v1, have none. The rewards of three episodes are 0 before and 1, 2, 3 after."""
    folder = make_run(tmp_path, {"mix": ([False] * 3, [False] * 3)}, ("sim", "env.tasks=[push]", "name=mix"))
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    changed = [row | {"reward": float(row["seed"] + 1) if row["phase"] == "after" else 0.0} for row in rows]
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    found = verdict_of(read_run(folder))
    assert (found.kind, found.label) == ("unsolved", "No episode succeeded")
    assert found.sentence == (
        "None of 3 fresh episodes succeeded, before training or after it, and the simulator's own reward of an episode "
        "went from 0 to 2; the run used no dream."
    )


def test_the_dream_was_too_optimistic(tmp_path: Path) -> None:
    """Of 100 paired episodes 85 succeed in the dream, 40 in the simulator, and training changed little."""
    found = judged(tmp_path, {"mix": (outcomes(40), outcomes(42))}, paired=(38, 2, 47, 13))
    assert found.kind == "dream"
    assert found.sentence.startswith(
        "The dream showed 85.0 % success in the same 100 episodes, where the simulator gave 40.0 %, "
        "and success went from 40.0 % to 42.0 % (+2.0 points ["
    )
    assert found.next_command.endswith("dream.n_episodes=50")


OWN = "own", "env.max_steps=40"
"""A run of recorded episodes, which has no simulator."""


def rolled_back(challenger: float) -> list[dict[str, Any]]:
    """Return the rows of a dream that showed 0.9, and of the gate that rolled its policy back."""
    gate = {"gate/in_dream": 1.0, "gate/accepted": 0.0, "gate/challenger": challenger, "gate/champion": 0.4}
    return [{"eval/success": 0.4}, {"rollout/dream_success": 0.9}, gate | {"gate/n_episodes": 50.0}]


@pytest.mark.parametrize(
    ("before", "after", "rows", "sentence", "command"),
    [
        (0, 0, (), "before training or after it, and the reward of an episode went from 0 to 0.", "n_rounds=8"),
        (40, 80, (), "Success in a dream of what was recorded rose from 40.0 % to 80.0 % (", "controls="),
        (
            40,
            41,
            rolled_back(0.4),
            "The dream of training showed 90.0 % success of a new policy, where a dream of what was recorded gave 40.0",
            "dream.ref_kl_coef=0.01",
        ),
        (
            40,
            80,
            rolled_back(0.4),
            "; the dream of training was too optimistic: it showed 90.0 % success of a new policy, a dream of what was "
            "recorded 40.0 %.",
            "controls=",
        ),
    ],
)
def test_recorded_episodes_have_no_simulator(
    before: int, after: int, rows: list[dict[str, Any]], sentence: str, command: str, tmp_path: Path
) -> None:
    rows = [*rows] or [{"eval/success": 0.4}]
    folder = make_run(tmp_path, {"own": (outcomes(before), outcomes(after))}, OWN, rows)
    found = verdict_of(read_run(folder))
    assert sentence in found.sentence and command in found.next_command
    assert "simulator" not in found.sentence and "dream.n_episodes" not in found.next_command
    preset, *overrides = [word for word in found.next_command.split()[2:] if "=" in word or word.endswith(".yaml")]
    check_simulator(compose(Path(preset), overrides, TrainConfig))  # such a run is accepted


def test_the_report_of_recorded_episodes_names_no_simulator(tmp_path: Path) -> None:
    folder = make_run(tmp_path, {"own": (outcomes(40), outcomes(80))}, OWN, rolled_back(0.4))
    phase = {"phase": "dream", "accepted": True, "success": 0.8, "rounds": 1}
    outcome = {"name": "own", "before": 0.4, "phases": [phase], "reward": [0.4, 0.8], "sim_steps": 0, "gate_steps": 0}
    (folder / RESULTS).write_text(json.dumps([outcome | {"minutes": 2.0, "with_noise": None}]))
    page = write_report(folder).read_text()
    shown = re.sub(r"<[^>]*>", " ", page.partition("<p class=question>How is it repeated?")[0].partition("<body")[2])
    assert shown.count("simulator") == 1 and "2.0 minutes, without a simulator" in shown


def test_an_optimistic_dream_is_mentioned_beside_a_gain(tmp_path: Path) -> None:
    found = judged(tmp_path, {"mix": (outcomes(40), outcomes(80))}, paired=(60, 0, 30, 10))
    assert found.kind == "gain"
    assert "; the dream was too optimistic: it showed 90.0 % success in the same 100 episodes" in found.sentence


GATE = {"gate/in_dream": 1.0, "gate/accepted": 0.0, "gate/champion": 0.4, "gate/n_episodes": 24.0}


@pytest.mark.parametrize(
    ("challenger", "kind", "words"),
    [
        (0.25, "dream", "showed 90.0 % success of a new policy, where the simulator gave 25.0 %"),
        # Wilson's interval of 20 of 24 is 64 to 93 %: the dream may have been right
        (
            20 / 24,
            "unchanged",
            "stayed at 40.0 % [30.9, 49.8] of 100 episodes: the gates rolled back every new policy (1)",
        ),
    ],
)
def test_what_gates_rolled_back(challenger: float, kind: str, words: str, tmp_path: Path) -> None:
    rows = [{"rollout/dream_success": 0.9}, GATE | {"gate/challenger": challenger}]
    found = judged(tmp_path, {"mix": (outcomes(40), outcomes(40))}, rows=rows)
    assert (found.kind, words in found.sentence) == (kind, True), found


def test_no_dream(tmp_path: Path) -> None:
    """A run in the simulator alone is judged by its gain, and says that there was no dream."""
    config = "sim", "env.tasks=[push]", "name=mix"
    found = judged(tmp_path, {"mix": (outcomes(40), outcomes(80))}, config)
    assert found.kind == "gain" and found.sentence.endswith("; no control was run beside it; the run used no dream.")
    found = judged(tmp_path, {"mix": (outcomes(40), outcomes(41))}, config)
    assert found.kind == "unclear" and found.sentence.endswith("; the run used no dream.")


def test_a_broken_run(tmp_path: Path) -> None:
    found = judged(tmp_path / "a", {})
    assert found.kind == "unfinished" and "before training, success was 40.0 %" in found.sentence
    assert found.next_command == f"wamtune train {tmp_path / 'a'}"
    folder = make_run(tmp_path / "b", {})
    (folder / BAD_NUMBERS).write_bytes(b"")
    found = verdict_of(read_run(folder))
    assert found.kind == "stopped" and found.next_command.endswith("on_bad_numbers=go_back")


CASES: dict[str, Callable[[Path], Path]] = {
    "gain": lambda f: make_run(f, {"mix": (outcomes(40), outcomes(80))}),
    "loss": lambda f: make_run(f, {"mix": (outcomes(60), outcomes(30))}),
    "unclear": lambda f: make_run(f, {"mix": (outcomes(10, 20), outcomes(11, 20))}),
    "dream": lambda f: make_run(f, {"mix": (outcomes(40), outcomes(42))}, paired=(38, 2, 47, 13)),
    "no dream": lambda f: make_run(f, {"mix": (outcomes(40), outcomes(80))}, ("sim", "env.tasks=[push]", "name=mix")),
    "unfinished": lambda f: make_run(f, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_begins_with_the_verdict_and_its_table_says_the_same(case: str, tmp_path: Path) -> None:
    folder = CASES[case](tmp_path)
    found = verdict_of(read_run(folder))
    page = write_report(folder).read_text()
    head, _, rest = page.partition("<section>")
    assert f"<p class=label>{LABELS[found.kind]}</p><p>{found.sentence}</p>" in head
    assert re.findall(r"--tone: var\(--(\w+)\)", page) == [TONES[found.kind]]  # one colour
    line = re.search(r"<tr><td>mix</td><td>([\d.]+ %) .*?</td><td>([\d.]+ %) .*?</td><td>(\S+) (\[.*?\])</td>", rest)
    if case == "unfinished":
        assert line is None and "Not evaluated yet" in rest
        return
    assert line is not None
    for cell in line.groups():
        assert cell in found.sentence


def test_a_saved_verdict_is_read_again(tmp_path: Path) -> None:
    assert read_verdict(tmp_path) is None
    verdict = RunVerdict("loss", "Success fell.", "wamtune train x.yaml")
    save_verdict(tmp_path, verdict)
    assert read_verdict(tmp_path) == verdict and str(verdict) == "Loss. Success fell."


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"kind": "best", "sentence": "", "next_command": ""}']
    + [json.dumps({"kind": "gain", "sentence": text, "next_command": ""}) for text in ("\x1b[31m", 1, "x" * 3000)],
)
def test_a_damaged_verdict_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / VERDICT).write_text(content)
    assert read_verdict(tmp_path) is None
