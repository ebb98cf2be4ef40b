"""Windows of a tiny episode, each index checked by hand."""

from dataclasses import replace

import pytest
import torch

from rewards.errors import UserError
from world_model.data.episodes import Episode
from world_model.data.windows import PROGRESS_DECAY, Windows, progress_labels


def episode(length: int, first: float, success_at: int | None = None, task: str = "a") -> Episode:
    """Frame t is first + t, action t is 10 * (first + t), so that every number says where it came from."""
    state = first + torch.arange(length + 1.0)[:, None]
    success = torch.zeros(length, dtype=torch.bool)
    if success_at is not None:
        success[success_at] = True
    return Episode({"state": state}, 10 * state[:-1], success, task, "random", seed=0)


def with_images(e: Episode, every: int) -> Episode:
    """Add the feature `latents`, whose value is the number of the frame in which it was new."""
    frames = [*range(0, e.length, every), e.length]
    return replace(e, obs={**e.obs, "latents": e.state[frames]}, every={"latents": every} if every > 1 else {})


def test_an_episode_of_another_task_is_one_line():
    with pytest.raises(
        UserError, match=r"^there are episodes of task 'c', which is none of those to learn; known: a, b$"
    ):
        Windows([episode(5, 0.0), episode(5, 0.0, task="c")], ("a", "b"), 2, 3)


def test_windows_of_two_episodes():
    # 5 steps have 3 windows of a chunk of 3; 3 steps have one; 2 steps have none.
    windows = Windows([episode(5, 0.0), episode(2, 50.0), episode(3, 100.0, task="b")], ("a", "b"), 3, 3)
    assert len(windows) == 4
    batch = windows.at(torch.arange(4))
    # At its start an episode repeats its first frame.
    assert batch.context["state"][..., 0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [100, 100, 100]]
    # Action t follows the newest context frame t, frame t + 1 follows action t.
    assert batch.actions[..., 0].tolist() == [[0, 10, 20], [10, 20, 30], [20, 30, 40], [1000, 1010, 1020]]
    assert batch.future["state"][..., 0].tolist() == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [101, 102, 103]]
    assert batch.task.tolist() == [0, 0, 0, 1]


def test_the_end_of_an_episode_with_images_has_a_window_that_is_filled_up():
    # Images after steps 0 and 4: one whole window of 4 steps, and 2 steps up to the success.
    seen, other = (with_images(e, every=4) for e in (episode(6, 0.0, success_at=5), episode(8, 100.0)))
    assert len(Windows([seen, other], ("a",), 2, 4)) == 3  # nothing is left of the second
    windows = Windows([seen, other], ("a",), 2, 4, ends=True)
    batch = windows.at(torch.arange(len(windows)))
    assert batch.context["state"][..., 0].tolist() == [[0, 0], [3, 4], [100, 100], [103, 104]]
    assert batch.actions[..., 0].tolist()[:2] == [[0, 10, 20, 30], [40, 50, 50, 50]]
    assert batch.future["state"][:1, :, 0].tolist() == [[1, 2, 3, 4]] and batch.future["state"][1, :2, 0].tolist() == [
        5,
        6,
    ]
    assert batch.future["state"][1, 2:].isnan().all() and batch.future["state"][2:].isfinite().all()
    assert batch.success[1].tolist() == [0, 1, 1, 1]
    # Without images windows begin at every step, and nothing is left.
    assert len(Windows([episode(6, 0.0)], ("a",), 2, 4, ends=True)) == 3


def test_windows_with_pads_begin_at_every_step_and_do_not_know_what_comes_after_the_end():
    # Episodes of 3 and 2 steps, chunks of 3: the second is shorter than a chunk.
    windows = Windows([episode(3, 0.0, success_at=2), episode(2, 100.0)], ("a",), 2, 3, pads=True)
    batch = windows.at(torch.arange(len(windows)))
    assert batch.context["state"][..., 0].tolist() == [[0, 0], [0, 1], [1, 2], [100, 100], [100, 101]]
    unknown = torch.nan
    expected = [[0, 10, 20], [10, 20, unknown], [20, unknown, unknown], [1000, 1010, unknown], [1010, unknown, unknown]]
    torch.testing.assert_close(batch.actions[..., 0], torch.tensor(expected), equal_nan=True)
    # Frames after the end are the last one, as without pads.
    assert batch.future["state"][1:3, :, 0].tolist() == [[2, 3, 3], [3, 3, 3]]
    assert windows.at(torch.tensor([0])).actions.isfinite().all()  # the episodes themselves are not changed


def test_windows_with_pads_begin_where_an_image_was_taken():
    seen = with_images(episode(6, 0.0), every=4)
    batch = Windows([seen], ("a",), 1, 4, every={"latents": 4}, pads=True).at(torch.arange(2))
    assert batch.context["latents"][..., 0].tolist() == [[0], [4]]
    assert batch.actions[0, :, 0].tolist() == [0, 10, 20, 30]
    assert batch.actions[1, :2, 0].tolist() == [40, 50] and batch.actions[1, 2:].isnan().all()


def test_success_and_progress_belong_to_the_frame_after_the_action():
    # Success after step 3: frame 4 is the first solved one.
    windows = Windows([episode(5, 0.0, success_at=3)], ("a",), 2, 2)
    batch = windows.at(torch.arange(4))
    assert batch.future["state"][..., 0].tolist() == [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert batch.success.tolist() == [[0, 0], [0, 0], [0, 1], [1, 0]]
    d = PROGRESS_DECAY
    expected = torch.tensor([[d**3, d**2], [d**2, d], [d, 1], [1, 1]])
    torch.testing.assert_close(batch.progress, expected)


def test_progress_labels():
    d = PROGRESS_DECAY
    solved = torch.tensor([False, True, False, True])
    torch.testing.assert_close(progress_labels(solved), torch.tensor([d**2, d, 1.0, 1.0, 1.0]))
    assert progress_labels(torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("every", [1, 4])
def test_a_window_has_a_new_image_where_a_chunk_ends(every: int):
    # The model gets a new image every 4 steps, whether the episodes have one for each frame or not.
    episodes = [with_images(episode(length, 0.0), every) for length in (8, 13)]
    windows = Windows(episodes, ("a",), 2, 8, every={"latents": 4})
    begun = range(6) if every == 1 else (0, 4)
    assert windows.start.tolist() == [1, *(11 + t for t in begun)]  # 9 and 14 frames, each after one that is repeated
    for i, t in enumerate(begun, start=1):
        batch = windows.at(torch.tensor([i]))
        assert batch.context["state"][0, :, 0].tolist() == [max(t - 1, 0), t]
        assert batch.context["latents"][0, :, 0].tolist() == [max(t - 4, 0), t]
        assert batch.future["state"][0, :, 0].tolist() == [t + j for j in range(1, 9)]
        assert batch.future["latents"][0, :, 0].tolist() == [t, t, t, t + 4, t + 4, t + 4, t + 4, t + 8]


def test_images_stay_bytes_and_three_context_frames_hold_two_images():
    e = episode(8, 0.0)
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 2, 2, 3)  # new in frames 0, 4 and 8
    e = replace(e, obs={**e.obs, "images.front": images}, every={"images.front": 4})
    batch = Windows([e], ("a",), 3, 4, every={"images.front": 4}, ends=True).at(torch.tensor([1]))
    assert batch.context["images.front"].shape == (1, 3, 2, 2, 3)
    assert batch.context["images.front"].dtype == torch.uint8
    assert batch.context["images.front"][0, :, 0, 0, 0].tolist() == [0, 0, 1]
    assert batch.future["images.front"][0, :, 0, 0, 0].tolist() == [1, 1, 1, 2]
    assert batch.obs.keys() == {"state", "images.front", "task"}


def test_samples_are_whole_windows_and_repeat_with_the_seed():
    windows = Windows([episode(9, 0.0), episode(6, 100.0)], ("a",), 2, 4)
    one, two = (windows.sample(200, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one.context["state"], two.context["state"]) and torch.equal(one.actions, two.actions)
    newest = one.context["state"][:, -1:]
    assert torch.equal(one.future["state"], newest + torch.arange(1.0, 5)[:, None])  # never across two episodes
    assert torch.equal(one.actions, 10 * (one.future["state"] - 1))
    assert newest.unique().numel() == len(windows)


def test_episodes_that_are_too_short_are_refused():
    with pytest.raises(UserError, match="none of 2 episodes has 4 steps or more"):
        Windows([episode(3, 0.0), episode(2, 0.0)], ("a",), 2, 4)
