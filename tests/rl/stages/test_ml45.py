"""The presets of ML45: the five test tasks are in no episode of any stage. And MT50 from images, on two tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl import cli
from rl.compose import compose
from rl.config import TrainConfig
from rl.envs.metaworld.task_sets import ML45, ML45_TEST, MT50
from rl.envs.names import with_task_sets
from rl.runs.folder import read_rows
from rl.stages.config import PretrainConfig, TuneConfig
from rl.stages.recorded import heldout_store
from world_model.data.episodes import EpisodeStore
from world_model.wam.store import load_model

SMALL = (
    "threads=1 n_heldout=1 trust_steps=0 model.width=32 model.world_width=48 model.action_width=32 model.n_layers=1 "
    "model.n_heads=2 model.text={n_buckets: 256, width: 32, n_layers: 1, n_heads: 2} stage.n_steps=2 "
    "stage.batch_size=8 stage.save_every=2"
)
TUNED = (
    "threads=1 n_demos=1 demonstrations.success_only=false n_policy=1 n_policy_heldout=1 n_eval=0 trust_steps=0 "
    "stage.n_steps=2 stage.batch_size=8 stage.save_every=2 refit.n_steps=2 refit.batch_size=8 refit.save_every=2"
)

TRAINED = (
    "threads=1 n_rounds=2 dream.n_rounds=1 total_timesteps=1080 env.n_envs=45 env.max_steps=24 eval.n_episodes=45 "
    "eval.n_paired=0 gate.n_episodes=45 gate.max_episodes=45 gate.n_guard=2 dream.n_envs=90 dream.n_starts=45 "
    "dream.n_updates=2 dream.n_epochs=1 dream.horizon=3 dream.refit_steps=2 ppo.n_steps=3 ppo.n_epochs=1 "
    "ppo.batch_size=64 ppo.bc_batch_size=8 ppo.imitation_steps=2 ppo.critic_warmup_steps=2"
)


def words(text: str) -> list[str]:
    """Split at blanks, but not within braces."""
    head, _, rest = text.partition("{")
    if not rest:
        return text.split()
    inner, _, tail = rest.partition("}")
    *before, last = head.split()
    return [*before, f"{last}{{{inner}}}", *tail.split()]


def test_the_presets_name_the_45_tasks_and_each_other() -> None:
    first = compose("metaworld-ml45-pretrained", [], PretrainConfig)
    second = compose("metaworld-ml45-tuned", [], TuneConfig)
    assert with_task_sets(first.env).tasks == ML45 and not set(ML45) & set(ML45_TEST)
    assert set(ML45) | set(ML45_TEST) == set(MT50)
    # tune acts in the tasks of its checkpoint and reads the folder that pretrain writes
    assert (second.env.tasks, second.checkpoint) == ((), f"runs/{first.name}")
    assert second.episodes == first.episode_folder
    whole = compose("metaworld-mt50-pretrained", [], PretrainConfig)
    assert with_task_sets(whole.env).tasks == MT50 and whole.episode_folder != first.episode_folder
    assert (first.model, first.stage, first.n_expert) == (whole.model, whole.stage, whole.n_expert)


def test_the_preset_of_many_tasks_is_for_all_tasks_of_any_checkpoint() -> None:
    config = compose("multitask", [], TrainConfig)
    assert with_task_sets(config.env).tasks == () and config.steer > 0 and config.gate.n_guard > 0
    assert config.env.n_envs % 50 == config.gate.n_episodes % 50 == config.eval.n_episodes % 50 == 0


@pytest.mark.slow
def test_no_episode_of_any_stage_is_of_a_test_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    few = ["n_expert=1", "n_noisy=1", "n_random=1"]
    assert cli.main(["pretrain", "metaworld-ml45-pretrained", *few, *words(SMALL)]) == 0
    assert cli.main(["tune", "metaworld-ml45-tuned", *words(TUNED)]) == 0
    (tuned,) = Path("runs/metaworld-ml45-tuned").iterdir()
    recorded, own = EpisodeStore("runs/episodes/metaworld-ml45-pretrained"), EpisodeStore(tuned / "episodes")
    for part, sources in (
        (recorded, {"expert", "noisy", "random"}),
        (heldout_store(recorded), {"noisy"}),
        (own, {"policy"}),
        (heldout_store(own), {"policy"}),
    ):
        episodes = part.load()
        assert {(e.task, e.source) for e in episodes} == {(task, source) for task in ML45 for source in sources}
    model = load_model("runs/metaworld-ml45-tuned")
    assert model.spec.tasks == ML45 and not set(model.spec.instructions) & set(ML45_TEST)
    demonstrations = EpisodeStore(tuned / "checkpoints" / "last").load()
    assert {e.task for e in demonstrations} == set(ML45)
    # and one policy is post-trained on all of them
    assert cli.main(["train", "multitask", "checkpoint=runs/metaworld-ml45-tuned", *TRAINED.split()]) == 0
    (run,) = Path("runs/multitask").iterdir()
    card = (run / "checkpoints" / "last" / "README.md").read_text()
    assert all(card.count(f"\n| {task} | 1 |") == 1 for task in ML45)
    rows = read_rows(run / "metrics.jsonl")
    for place in ("dream", "sim"):
        seen = {key.rpartition("/")[2] for row in rows for key in row if key.startswith(f"rollout/{place}_success/")}
        assert seen <= set(ML45) and len(seen) > 30


@pytest.mark.slow
def test_mt50_from_images_reads_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    few = ["env.tasks=[drawer-open,drawer-close]", "n_expert=2", "n_noisy=0", "n_random=1", "codec.n_steps=2"]
    tiny = ["model.image_size=32", "model.patch_dim=4", "codec.batch_size=8", "codec.save_every=2"]
    assert cli.main(["pretrain", "metaworld-mt50-pixels-pretrained", *few, *tiny, *words(SMALL)]) == 0
    assert cli.main(["tune", "metaworld-mt50-pixels-tuned", *words(TUNED)]) == 0
    model = load_model("runs/metaworld-mt50-pixels-tuned")
    assert model.reads_sentences and list(model.cameras) == ["front"] and "object_pos" not in model.spec.vector_slices
