"""Pages of `eval` and `rank`: their figures are those of the episodes, and what users wrote is escaped."""

from __future__ import annotations

import numpy as np

from rl.ranking import Ranking
from rl.rounds.evaluate import EpisodeResult
from rl.verbs.eval import table
from rl.verbs.pages import eval_page, rank_page


def episodes(task: str, hits: str) -> list[EpisodeResult]:
    return [EpisodeResult(task, seed, hit == "1", 10, 0.0) for seed, hit in enumerate(hits)]


def test_an_evaluation_in_one_place_says_the_share_and_its_interval() -> None:
    sim = {"push": episodes("push", "1110")}
    page = eval_page("runs/a", sim, {"push": []}, {}, [table(sim, {"push": []})])
    assert "75.0 % [30.1, 95.4] in the simulator" in page and "4 episodes in the simulator." in page
    assert page.count("<section>") == 1 and "in the dream" not in page
    assert "75.0 [30.1, 95.4]" in page and "<title>simulator: 75.0 [30.1, 95.4]</title>" in page


def test_both_places_are_compared_episode_by_episode() -> None:
    sim = {"push": episodes("push", "1100"), "reach": episodes("reach", "1111")}
    dream = {"push": episodes("push", "1010"), "reach": episodes("reach", "1111")}
    page = eval_page("a", sim, dream, {}, [table(sim, dream)])
    assert "6 of 8 episodes ended alike in both" in page and "Most on reach, least on push" in page
    assert "<td>dream succeeds</td><td>5</td><td>1</td>" in page and "<td>dream fails</td><td>1</td><td>1</td>" in page


def test_without_success_in_the_simulator_the_page_has_the_reward() -> None:
    sim = {"push": [EpisodeResult("push", seed, False, 10, reward, False) for seed, reward in enumerate((1.0, 2.0))]}
    page = eval_page("a", sim, {"push": []}, {}, [table(sim, {"push": []})])
    assert "a mean reward of 1.5 in the simulator" in page and "Reward of a on push." in page
    assert "<td>push</td><td>2</td><td>1.5</td>" in page and page.count("<section>") == 1
    assert "0.0 %" not in page and "How often does it succeed?" not in page


def test_without_success_in_the_simulator_the_dream_is_shown_alone() -> None:
    sim = {"push": [EpisodeResult("push", 0, False, 10, 3.0, False)]}
    dream = {"push": episodes("push", "1")}
    page = eval_page("a", sim, dream, {}, [table(sim, dream)])
    assert "How often does it succeed?" in page and "How much reward is in an episode?" in page
    assert "ended alike in both" not in page and "<title>simulator:" not in page


def test_a_page_needs_no_network_and_runs_no_script() -> None:
    task = "<script>alert(1)</script>"
    sim = {task: episodes(task, "10")}
    page = eval_page("<b>a</b>&", sim, {task: []}, {}, [table(sim, {task: []})])
    assert "<script" not in page and "<b>" not in page and "&lt;script&gt;" in page
    assert 'src="http' not in page and 'href="http' not in page


def test_a_ranking_begins_with_the_best_and_how_sure_that_is() -> None:
    ranking = Ranking(order=[1, 0], is_right=0.9, beats_next=[0.9], is_best=[0.1, 0.9], runner_up=0)
    outcomes = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]])
    sim = {"push": episodes("push", "1")}
    page = rank_page(["a", "b"], outcomes, ranking, table(sim, {"push": []}), ["the whole order is right"])
    assert (
        "<h2>b, then a</h2>" in page and "It is the best of 2 with probability 0.90. The whole order is right." in page
    )
    assert page.index("dream: 75.0 [30.1, 95.4]") < page.index("dream: 25.0 [4.6, 69.9]")
