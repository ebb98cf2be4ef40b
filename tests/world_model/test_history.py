"""Delayed actions, the history of actions and sliding windows, worked out by hand."""

import torch

from world_model.history import ActionDelay, ActionHistory, window

CPU = torch.device("cpu")


def chunk(*values: float) -> torch.Tensor:
    """A chunk of one-dimensional actions of one environment."""
    return torch.tensor(values)[None, :, None]


def test_an_action_is_executed_as_many_steps_later() -> None:
    delay = ActionDelay(1, 2, 1, CPU)
    assert delay(chunk(1, 2, 3)).flatten().tolist() == [0, 0, 1]
    assert delay(chunk(4)).flatten().tolist() == [2]  # a chunk shorter than the delay
    assert delay(chunk(5, 6)).flatten().tolist() == [3, 4]
    delay.reset(torch.tensor([True]))
    assert delay(chunk(7, 8, 9)).flatten().tolist() == [0, 0, 7]
    without = ActionDelay(1, 0, 1, CPU)
    assert without(chunk(1, 2)).flatten().tolist() == [1, 2]


def test_the_history_holds_executed_actions_and_begins_with_the_first_one() -> None:
    history = ActionHistory(2, 1, CPU)
    first = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    assert history.before(first)[..., 0].tolist() == [[1, 1], [4, 4]]
    history.add(first, n_executed=torch.tensor([3, 1]))
    assert history.before(first)[..., 0].tolist() == [[2, 3], [4, 4]]
    history.add(first[:, :1], n_executed=torch.tensor([1, 1]))
    assert history.before(first)[..., 0].tolist() == [[3, 1], [4, 4]]
    history.reset(torch.tensor([False, True]))
    assert history.before(first + 10)[..., 0].tolist() == [[3, 1], [14, 14]]


def test_a_window_of_images_begins_at_the_shift_of_its_row() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(2, 5, 1, 1).repeat(1, 1, 2, 3)
    newest = window(images, torch.tensor([0, 3]), 2)
    assert newest.shape == (2, 2, 2, 3) and newest[..., 0, 0].tolist() == [[0, 1], [8, 9]]
