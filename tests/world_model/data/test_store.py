"""A store may hold more features than a model reads: they are left out; a missing one is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards.errors import UserError
from world_model.data.episodes import Episode, EpisodeStore
from world_model.data.shards import in_shards
from world_model.spec import Feature, Spec

IMAGE = Feature((4, 4, 3), dtype="uint8")
SPEC = Spec({"state": Feature((2,))}, (-1.0,), (1.0,), ("push", "pick"), 10.0)
SEEING = replace(SPEC, features={**SPEC.features, "images.front": IMAGE})


def episode(length: int = 5, every: int = 2) -> Episode:
    n_images = -(-length // every) + 1
    obs = {
        "state": torch.randn(length + 1, 2),
        "images.front": torch.randint(256, (n_images, 4, 4, 3), dtype=torch.uint8),
    }
    never = torch.zeros(length, dtype=torch.bool)
    return Episode(obs, torch.zeros(length, 1), never, "push", "import", length, every={"images.front": every})


def test_features_that_a_model_does_not_read_are_left_out(tmp_path: Path) -> None:
    store, recorded = EpisodeStore(tmp_path), episode()
    store.append([recorded], SEEING)
    store.check_fits(SPEC, "here")
    (found,) = store.load(features=SPEC.features)
    assert found.obs.keys() == {"state"} and found.every == {} and torch.equal(found.state, recorded.state)
    found.check_fits(SPEC, "here")
    store.check_fits(replace(SEEING, features=SEEING.features | {"images.front": replace(IMAGE, every=5)}), "here")
    (found,) = store.load(features=SEEING.features)
    assert torch.equal(found.obs["images.front"], recorded.obs["images.front"]) and found.every == recorded.every


def test_a_feature_that_is_missing_or_of_another_size_is_named(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([episode()], SEEING)
    for name, feature, line in (
        ("images.side", IMAGE, "the checkpoint reads images.side of size 4 x 4 x 3, its episodes have only state, im"),
        ("images.front", Feature((8, 8, 3), dtype="uint8"), "of size 8 x 8 x 3, its episodes have 4 x 4 x 3; name"),
        ("state", Feature((3,)), "other features, bounds or rate than the checkpoint's: state of size 2, not 3; name"),
    ):
        with pytest.raises(UserError, match=line) as error:
            store.check_fits(replace(SEEING, features=SEEING.features | {name: feature}), "here")
        assert str(error.value).startswith("here: ") and "\n" not in str(error.value)
    others = ({"control_hz": 20.0}, "control_hz 10.0, not 20"), ({"action_high": (2.0,)}, r"high \(1.0,\), not \(2.0")
    for other, line in others:
        with pytest.raises(UserError, match=line):
            store.check_fits(replace(SEEING, **other), "here")
    with pytest.raises(UserError, match="other features, bounds or rate"):  # to append, all features must be the same
        store.append([replace(episode(), obs={"state": torch.zeros(6, 2)}, every={})], SPEC)


def test_instructions_of_all_shards(tmp_path: Path) -> None:
    store = EpisodeStore(tmp_path)
    store.append([episode()], replace(SEEING, instructions={"push": "Push it."}))
    store.append([episode()], replace(SEEING, instructions={"push": "Push it again.", "pick": "Pick it."}))
    assert store.spec.instructions == {"push": "Push it.", "pick": "Pick it."}


def test_images_count_for_the_size_of_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    one = 4 * 6 * 2 + 4 * 4 * 4 * 3 + 4 * (5 + 2 * 5)  # bytes of states, of four images, of actions and of two values
    monkeypatch.setattr("world_model.data.shards.SHARD_BYTES", 2 * one)
    assert [len(group) for group in in_shards([episode() for _ in range(5)])] == [2, 2, 1]


def test_who_acted_is_stored_beside_episodes_that_do_not_say_it(tmp_path: Path) -> None:
    who = torch.tensor([0, 1, 1, 2, 0], dtype=torch.uint8)
    store = EpisodeStore(tmp_path)
    store.append([replace(episode(), control=who), episode(4)], SEEING)
    store.append([episode(3)], SEEING)
    first, second, third = store.load()
    assert first.control is not None and torch.equal(first.control, who)
    assert second.control is None and third.control is None
    with pytest.raises(UserError, match=r"control has shape \(4,\), expected \(5,\)"):
        store.append([replace(episode(), control=who[:4])], SEEING)


def test_numbers_in_double_precision_are_stored_in_single(tmp_path: Path) -> None:
    store, recorded = EpisodeStore(tmp_path), episode()
    wide = replace(recorded, obs=recorded.obs | {"state": recorded.state.double()}, action=recorded.action.double())
    store.append([wide], SEEING)
    (found,) = store.load()
    assert torch.equal(found.state, recorded.state) and found.obs["images.front"].dtype == torch.uint8
    bright = replace(recorded, obs=recorded.obs | {"images.front": recorded.obs["images.front"] / 255})
    with pytest.raises(UserError, match=r"images.front is torch.float32, expected torch.uint8, from 0 to 255"):
        store.append([bright], SEEING)
