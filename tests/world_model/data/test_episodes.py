"""Episodes come back from disk bit by bit, and a damaged shard is named."""

from dataclasses import replace

import pytest
import torch

from rewards.errors import UserError
from world_model.data.episodes import Episode, EpisodeStore
from world_model.spec import Feature, Spec

SPEC = Spec({"state": Feature((5,), "m", {"object_pos": (2, 5)})}, (-1.0,) * 2, (1.0,) * 2, ("push", "pick"), 80.0)


def make_episode(length: int, task: str = "push", source: str = "expert", reward: bool = True) -> Episode:
    generator = torch.Generator().manual_seed(length)
    return Episode(
        obs={"state": torch.randn(length + 1, 5, generator=generator)},
        action=torch.rand(length, 2, generator=generator),
        success=torch.arange(length) == 1,
        task=task,
        source=source,
        seed=2**40 + length,
        task_reward=torch.rand(length, generator=generator) if reward else None,
    )


def assert_same(got: Episode, expected: Episode) -> None:
    for name in ("state", "action", "success", "task_reward"):
        mine, theirs = getattr(got, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        assert theirs is None or (mine.dtype == theirs.dtype and torch.equal(mine, theirs)), name
    assert (got.task, got.source, got.seed) == (expected.task, expected.source, expected.seed)


def test_success_ever_and_at_the_end_differ() -> None:
    episode = make_episode(4)
    assert (episode.length, episode.is_success) == (4, True)
    assert not make_episode(1).is_success


def test_round_trip_over_several_shards(tmp_path) -> None:
    episodes = [make_episode(3), make_episode(4, reward=False), make_episode(1, "pick", "random")]
    store = EpisodeStore(tmp_path / "new" / "store")
    assert len(store) == 0
    store.append(episodes[:2], SPEC)
    store.append([], SPEC)
    store.append(episodes[2:], SPEC)
    assert [shard.name for shard in store.shards] == ["episodes-000000.safetensors", "episodes-000001.safetensors"]
    for got, expected in zip(EpisodeStore(store.folder).load(), episodes, strict=True):
        assert_same(got, expected)
    assert len(store) == 3
    assert store.spec == SPEC
    assert store.count() == {("push", "expert", True): 2, ("pick", "random", False): 1}


def test_load_selects_tasks_and_sources(tmp_path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([make_episode(2), make_episode(3, "pick"), make_episode(4, "pick", "noisy")], SPEC)
    assert [e.length for e in store.load(tasks=["pick"])] == [3, 4]
    assert [e.length for e in store.load(sources=["expert"])] == [2, 3]
    assert [e.length for e in store.load(tasks=["pick"], sources=["noisy"])] == [4]
    assert store.load(tasks=["door-open"]) == []


def test_the_spec_of_a_store_has_the_tasks_of_all_shards(tmp_path) -> None:
    store = EpisodeStore(tmp_path)
    for task in ("pick", "push"):
        store.append([make_episode(2, task)], Spec(SPEC.features, SPEC.action_low, SPEC.action_high, (task,), 80.0))
    assert store.spec.tasks == ("pick", "push")


def test_a_loaded_episode_may_be_changed(tmp_path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([make_episode(2), make_episode(3)], SPEC)
    first, second = store.load()
    first.state.zero_()
    assert_same(second, make_episode(3))


def test_an_unfinished_shard_is_ignored_and_overwritten(tmp_path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([make_episode(2)], SPEC)
    (tmp_path / ".episodes-000001.safetensors.tmp").write_bytes(b"half of a sh")
    assert len(store) == len(store.load()) == 1
    store.append([make_episode(3)], SPEC)
    assert [e.length for e in store.load()] == [2, 3]
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([make_episode(6)], SPEC)
    (shard,) = store.shards
    whole = shard.read_bytes()
    for at in range(0, len(whole), 7):
        shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=r"episodes-000000\.safetensors: "):
            store.load()


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_a_truncated_shard_is_named(tmp_path, size: int) -> None:
    store = EpisodeStore(tmp_path)
    store.append([make_episode(6)], SPEC)
    (shard,) = store.shards
    shard.write_bytes(shard.read_bytes()[:size])
    for read in (store.load, store.count):
        with pytest.raises(UserError) as error:
            read()
        assert str(error.value) == f"{shard}: the file is damaged; delete it and collect its episodes again"


def test_bad_episodes_are_refused_before_anything_is_written(tmp_path) -> None:
    store = EpisodeStore(tmp_path)
    cases = []
    for change, line in [
        ({"obs": {"state": torch.zeros(3, 5)}}, r"state has shape \(3, 5\), expected \(4, 5\)"),
        ({"success": torch.zeros(2, dtype=torch.bool)}, r"success has shape \(2,\), expected \(3,\)"),
        ({"task": "fly"}, "task 'fly' is unknown; the known tasks are push, pick"),
        ({"action": torch.tensor([[0.0, 0], [0, float("nan")], [0, 0]])}, "action is not finite at step 1"),
    ]:
        episode = make_episode(3)
        for name, value in change.items():
            setattr(episode, name, value)
        cases.append((episode, line))
    for episode, line in cases:
        with pytest.raises(UserError, match=line):
            store.append([make_episode(2), episode], SPEC)
    assert list(tmp_path.iterdir()) == []


def test_a_store_holds_one_kind_of_robot(tmp_path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([make_episode(2)], SPEC)
    with pytest.raises(UserError, match="other features, bounds or rate"):
        store.append([make_episode(2)], Spec(SPEC.features, (-2.0,) * 2, (2.0,) * 2, SPEC.tasks, 80.0))


def test_an_empty_store_has_no_spec(tmp_path) -> None:
    with pytest.raises(UserError, match="no episodes here"):
        _ = EpisodeStore(tmp_path / "nothing").spec


def with_images(length: int, every: int) -> Episode:
    """An episode with a camera whose image is full of the number of the frame that it shows."""
    episode = make_episode(length)
    frames = torch.tensor([*range(0, length, every), length], dtype=torch.uint8)
    images = frames.view(-1, 1, 1, 1).repeat(1, 2, 4, 3)
    return replace(episode, obs={**episode.obs, "images.front": images}, every={"images.front": every})


def test_a_slow_camera_has_a_row_for_each_new_image_and_for_the_end() -> None:
    episode = with_images(7, every=3)
    assert episode.obs["images.front"][:, 0, 0, 0].tolist() == [0, 3, 6, 7]
    assert episode.rows_of("images.front").tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert episode.rows_of("state").tolist() == list(range(8))
    assert with_images(6, every=3).rows_of("images.front").tolist() == [0, 0, 0, 1, 1, 1, 2]
    part = episode.cut(3, 5)
    assert part.length == 2 and torch.equal(part.state, episode.state[3:6])
    assert part.obs["images.front"][:, 0, 0, 0].tolist() == [3, 3]  # the image that is held in frame 5
    assert torch.equal(part.action, episode.action[3:5]) and part.task_reward is not None


@pytest.mark.parametrize("before", [1, 2])
def test_a_slowed_camera_keeps_the_images_that_it_would_have_shown(before: int) -> None:
    slow = with_images(7, before).slowed("images.front", 4)
    assert slow.obs["images.front"][:, 0, 0, 0].tolist() == [0, 4, 7] and slow.every == {"images.front": 4}
    assert slow.rows_of("images.front").tolist() == [0, 0, 0, 0, 1, 1, 1, 2] and slow.obs["state"].shape[0] == 8


def test_images_come_back_from_disk(tmp_path) -> None:
    spec = replace(SPEC, features={**SPEC.features, "images.front": Feature((2, 4, 3), dtype="uint8", every=3)})
    episodes = [with_images(7, every=3), with_images(4, every=1)]
    EpisodeStore(tmp_path).append(episodes, spec)
    for got, expected in zip(EpisodeStore(tmp_path).load(), episodes, strict=True):
        assert_same(got, expected)
        assert torch.equal(got.obs["images.front"], expected.obs["images.front"])
        assert got.every.get("images.front", 1) == expected.every["images.front"]
    assert EpisodeStore(tmp_path).spec == spec
    wrong = replace(episodes[0], every={})
    with pytest.raises(UserError, match=r"images.front has shape \(4, 2, 4, 3\), expected \(8, 2, 4, 3\)"):
        EpisodeStore(tmp_path).append([wrong], spec)
    with pytest.raises(UserError, match=r"it has no 'images.front', it has state; leave the episode out"):
        EpisodeStore(tmp_path).append([make_episode(3)], spec)
