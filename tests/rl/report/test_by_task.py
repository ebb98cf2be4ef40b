"""The table of tasks of a run: verdicts by hand, and what stands in terminal and card."""

from rich.console import Console

from rl.report.by_task import in_words, markdown, task_rows, terminal
from rl.rounds.evaluate import EpisodeResult


def results(**outcomes: list[int]) -> list[EpisodeResult]:
    return [EpisodeResult(task, i, bool(of), 10, 0.0) for task, seeds in outcomes.items() for i, of in enumerate(seeds)]


def test_rows_by_hand() -> None:
    before = results(hammer=[0] * 10, push=[1] * 10, assembly=[0, 1] * 5)
    after = results(hammer=[1] * 8 + [0] * 2, push=[0] * 9 + [1], assembly=[1, 0, 1, 1] + [0, 1] * 3)
    rows = task_rows(before, after)
    # hammer: 2 ** -8 < .05 / 3; push: 2 ** -9; assembly: won 2, lost 1, p = 1 / 2
    assert [row.cells for row in rows] == [
        ("hammer", "10", "0 %", "80 %", "8 / 0", "better"),
        ("assembly", "10", "50 %", "60 %", "2 / 1", ""),
        ("push", "10", "100 %", "10 %", "0 / 9", "worse"),
    ]
    assert in_words(rows) == "1 of 3 tasks surely better, 1 worse: push"
    assert "| push | 10 | 100 % | 10 % | 0 / 9 | worse |" in markdown(rows)


def test_without_success_the_rewards_are_compared() -> None:
    def rewarded(**rewards: list[float]) -> list[EpisodeResult]:
        of = [(task, i, value) for task, values in rewards.items() for i, value in enumerate(values)]
        return [EpisodeResult(task, seed, False, 10, reward, has_success=False) for task, seed, reward in of]

    before = rewarded(hammer=[1.0] * 8, push=[2.0] * 3)
    after = rewarded(hammer=[3.0] * 7 + [1.0], push=[1.0, 2.0, 4.5])
    rows = task_rows(before, after)
    # hammer: 7 won of 7, 2 ** -7 < .05 / 2, means 8 / 8 and 22 / 8; push: 1 won, 1 lost, 6 / 3 and 7.5 / 3
    assert [row.cells for row in rows] == [
        ("hammer", "8", "1", "2.75", "7 / 0", "better"),
        ("push", "3", "2", "2.5", "1 / 1", ""),
    ]


def test_a_change_that_one_test_would_call_clear_is_not_among_many() -> None:
    # 5 of 5 is 1 / 32 < .05, but not below .05 / 2
    found = task_rows(results(a=[0] * 5, b=[0] * 5), results(a=[1] * 5, b=[0] * 5))
    assert [row.verdict for row in found] == ["", ""]


def test_the_name_of_a_task_may_be_any_sentence() -> None:
    sentence = "Push the [red] cube | gently"
    rows = task_rows(results(**{sentence: [0] * 5, "push": [0] * 5}), results(**{sentence: [1] * 5, "push": [0] * 5}))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(terminal(rows))
    assert sentence in captured.get()
    assert {line.count("|") - line.count("\\|") for line in markdown(rows).splitlines() if line.startswith("|")} == {7}


def test_a_single_task_has_no_table() -> None:
    assert task_rows(results(push=[0, 1]), results(push=[1, 1])) == [] and markdown([]) == ""
