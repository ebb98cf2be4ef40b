"""Transitions small enough to work out by hand."""

import pytest
import torch

from rewards import Transition


@pytest.fixture
def t() -> Transition:
    """Three environments, state = hand_pos (3), gripper (1), object_pos (3), two action dimensions."""
    state = torch.zeros(3, 7)
    next_state = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3],
            [2.0, 0.0, 0.0, 0.0, 0.4, 0.5, 0.6],
            [4.0, -5.0, 0.5, 0.0, 0.7, 0.8, 0.9],
        ]
    )
    history = torch.tensor(
        [
            [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]],
            [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
            [[0.0, 0.0], [1.0, 0.0], [0.0, 0.5]],
        ]
    )
    return Transition(
        state=state,
        next_state=next_state,
        action=history[:, -1],
        action_history=history,
        success=torch.tensor([False, True, False]),
        terminated=torch.tensor([False, True, False]),
        elapsed=torch.tensor([4, 17, 1]),
        task=torch.zeros(3, dtype=torch.long),
        slices={"hand_pos": slice(0, 3), "gripper": slice(3, 4), "object_pos": slice(4, 7)},
        progress=torch.tensor([0.25, 0.5, 0.5]),
        next_progress=torch.tensor([0.5, 1.0, 0.25]),
        task_reward=torch.tensor([0.1, 10.0, -1.0]),
    )
