"""Calibrate the trust of a finished checkpoint again, without training it.

    python benchmarks/recalibrate.py CHECKPOINT FOLDER [EPISODES]

Collects the held-out episodes of its stage (those of the scripts, and for stage `tune` those of its own policy) into
EPISODES, by default FOLDER-episodes, fits new trust heads to their dreams as the stage does, and writes the checkpoint
to FOLDER. Only the heads change, and in `config.json` and the card the column `trust` and the command that made the
heads. The seeds are those of the stage, so the same checkpoint gets the same heads. For checkpoints that were made in a
simulator by a preset.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rl.compose import compose
from rl.report.card import finite, model_card
from rl.stages.collect import SOURCES
from rl.stages.config import PretrainConfig, TuneConfig
from rl.stages.episodes import collect_heldout, roll_out
from rl.stages.images import encoded_episodes, with_images
from rl.stages.recorded import heldout_store
from rl.stages.run import DEMONSTRATIONS
from rl.stages.trust import calibrate_trust
from world_model.checkpoint import find_checkpoint
from world_model.data.episodes import Episode, EpisodeStore
from world_model.wam.model import WorldActionModel
from world_model.wam.store import half_precision, load_model_and_config, save_model


def main() -> None:
    torch.set_num_threads(1)
    name, out = sys.argv[1], Path(sys.argv[2])
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else out.with_name(f"{out.name}-episodes")
    model, config = load_model_and_config(name)
    stage = preset_of(config, "tune" if config["stage"] == "tune" else "pretrain")
    episodes = heldout(model, config, folder)
    config["trust_command"] = f"python benchmarks/recalibrate.py {name} FOLDER"
    config["metrics"]["trust"] = finite(calibrate_trust(model, episodes, stage.trust_steps))
    if stage.half:
        half_precision(model)
    found = config["metrics"]["trust"]["median"]
    print(f"trust {found['rho']:+.2f}, movement {found['movement']:+.2f}: medians over the tasks, in three folds")
    write(model, config, name, out, stage.half)


def preset_of(config: dict[str, Any], verb: str) -> PretrainConfig | TuneConfig:
    """Return the config of the stage that made the checkpoint, or of the pretraining before it, by its command."""
    schema = {"pretrain": PretrainConfig, "tune": TuneConfig}[verb]
    command = config["command"].split()
    if command[1] == verb:
        return compose(command[2], command[3:], schema)
    return compose(config["parent"], [], schema)


def heldout(model: WorldActionModel, config: dict[str, Any], folder: Path) -> list[Episode]:
    """Collect the held-out episodes of the stage that are not in `folder` yet, and return them."""
    store, own = EpisodeStore(folder / "scripts"), EpisodeStore(folder / "policy")
    before = preset_of(config, "pretrain")
    assert isinstance(before, PretrainConfig)
    collect_heldout(before, store)
    if model.cameras:
        tasks = model.spec.tasks
        episodes, images = with_images(before.env, heldout_store(store), model.config, tasks, SOURCES)
        episodes = encoded_episodes(model, before.env, episodes, images)
    else:
        episodes = heldout_store(store).load(model.spec.tasks)
    if config["stage"] == "tune":
        tuned = preset_of(config, "tune")
        assert isinstance(tuned, TuneConfig)
        roll_out(replace(tuned, n_policy=0), model, tuned.env.tasks or model.spec.tasks, own)
        episodes += heldout_store(own).load(features=model.spec.features)
    return episodes


def write(model: WorldActionModel, config: dict[str, Any], name: str, out: Path, half: bool) -> None:
    """Write the checkpoint with its new heads, and with the demonstrations that it had."""
    ours = {*model.to_config(), "stage", "parent", "schema_version"}
    about = {key: value for key, value in config.items() if key not in ours}
    card = model_card(out.name, config["stage"], config["parent"], model.spec.tasks, about)
    demonstrations = find_checkpoint(name) / DEMONSTRATIONS
    extra = {DEMONSTRATIONS: demonstrations.read_bytes()} if demonstrations.exists() else {}
    save_model(out, model, config["stage"], config["parent"], about, card, extra, half)


if __name__ == "__main__":
    main()
