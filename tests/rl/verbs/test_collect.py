"""`wamtune collect`: episodes of scripted experts in a new folder."""

from __future__ import annotations

import pytest

from rl import cli
from rl.seeds import EXPERT, RANDOM
from rl.stages.collect import collect_scripted
from world_model.data.episodes import EpisodeStore

pytestmark = pytest.mark.usefixtures("elsewhere")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that must fail and leave no episodes."""
    assert cli.main(["collect", *words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and not EpisodeStore("e").shards
    return line.removeprefix("wamtune: ").strip()


def test_the_expert_is_recorded_and_nothing_is_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["collect", "e", "env.tasks=drawer-open,button-press-topdown", "n_episodes=2"]
    assert cli.main([*words, "env.instructions={drawer-open: Open it.}"]) == 0
    assert "4 episodes, 4 of them successful, are in e" in capsys.readouterr().out
    store = EpisodeStore("e")
    found = store.load()
    assert {(e.task, e.seed, e.source) for e in found} == {
        (task, EXPERT.start + i, "expert") for task in ("drawer-open", "button-press-topdown") for i in range(2)
    }
    assert store.spec.instructions == {
        "drawer-open": "Open it.",
        "button-press-topdown": "Press the button on the top of the box.",
    }
    (again,) = collect_scripted("expert", ["drawer-open"], 1)
    mine = next(e for e in found if (e.task, e.seed) == (again.task, again.seed))
    assert mine.state.equal(again.state) and mine.action.equal(again.action)
    assert cli.main(words) == 2
    assert capsys.readouterr().err == "wamtune: e is there already and was not touched; choose another folder\n"
    assert len(EpisodeStore("e")) == 4


def test_random_motion_needs_no_expert(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["e", "env.id=Pendulum-v1", "n_episodes=2"]
    assert refused(capsys, *words) == (
        "sim: 'Pendulum-v1' has no scripted expert; only Meta-World tasks have one; record random motion: "
        "source=random in collect, n_expert=0 n_noisy=0 n_random=200 in pretrain"
    )
    assert cli.main(["collect", *words, "source=random", "seed=7"]) == 0
    assert [(e.task, e.source, e.seed) for e in EpisodeStore("e").load()] == [
        ("Pendulum-v1", "random", 7),
        ("Pendulum-v1", "random", 8),
    ]
    assert RANDOM.start not in (7, 8)
    assert [e.length for e in EpisodeStore("e").load()] == [150, 150]
    assert cli.main(["collect", "short", *words[1:], "source=random", "max_steps=12"]) == 0
    assert [e.length for e in EpisodeStore("short").load()] == [12, 12]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "e env.id=Pendulum-v1 env.max_steps=9",
            "unknown key 'env.max_steps' on the command line; did you mean 'max_steps'?",
        ),
        ("e env.id=Pendulum-v1 max_steps=0", "max_steps=0: expected at least 1"),
        ("", "collect needs a new folder: wamtune collect runs/episodes/push env.tasks=push"),
        ("env.tasks=push", "collect needs a new folder: wamtune collect runs/episodes/push env.tasks=push"),
        ("e", "env.tasks=[]: expected at least one task; add env.tasks=push or others to the command"),
        ("e env.simulator=metaworld env.id=Pendulum-v1", "env.tasks=[]: env.id=Pendulum-v1 needs at least one task; "
         "add env.tasks=... to the command"),
        ("e env.tasks=pusch", "task 'pusch' is unknown to Meta-World; did you mean 'push'?"),
        ("e env.tasks=push n_episodes=0", "n_episodes=0: expected at least 1"),
        ("e env.tasks=push source=policy", "source='policy' on the command line: expected one of expert, noisy, "
         "random"),
        ("e env.tasks=push n_episode=3", "unknown key 'n_episode' on the command line; did you mean 'n_episodes'?"),
        ("e env.tasks=push env.simulator=recorded", "env.simulator=recorded: it simulates nothing, so there is nothing "
         "to record"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *words.split()) == line
