"""`wamtune cp`: copy presets and checkpoints, also from and to the Hub, and convert for LeRobot and back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rl.compose import compose, find_preset, list_presets
from rl.policies.saving import about_brought, is_brought
from rl.policies.wam import load_actor
from rl.report.hub_card import with_front_matter
from rl.verbs.options import DatasetOptions, HubOptions
from world_model.checkpoint import (
    CONFIG,
    README,
    builtin_checkpoints,
    checkpoint_files,
    find_checkpoint,
    load_checkpoint,
    with_file,
)
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import EpisodeStore
from world_model.data.lerobot import INFO, export_lerobot, import_lerobot
from world_model.data.shards import in_shards
from world_model.files import JSON_BYTES, read_file, write_atomically, write_folder
from world_model.hub import PATTERNS, PREFIX, is_hub_name, is_shared, parse_hub_name, upload
from world_model.runs import newest_runs
from world_model.wam.lerobot import lerobot_files


def run(words: list[str]) -> None:
    """Copy or convert `words[0]` to `words[1]`; further words are keys of an upload, or of a conversion."""
    if len(words) < 2:
        raise UserError("cp needs a name and a destination, for example `wamtune cp demo mine.yaml`")
    if words[1].startswith(PREFIX):
        _publish(words[0], words[1], compose(None, words[2:], HubOptions))
        return
    name, final, keys = words[0], Path(words[1]), words[2:]
    if any(key.startswith("format=") for key in keys):
        print(_to_lerobot_policy(name, final, keys))
        return
    is_dataset = (Path(name) / INFO).is_file()
    if is_dataset or _holds_episodes(Path(name)):
        _check_is_new(final)
        convert = _from_lerobot if is_dataset else _to_lerobot
        print(convert(Path(name), final, keys))
        return
    if keys:
        raise UserError(
            f"unexpected {keys[0]!r}: only a LeRobot dataset, a folder of episodes and an upload have keys; leave it "
            "out"
        )
    is_preset = name in dict(list_presets())
    is_checkpoint = _is_checkpoint(name)
    if not is_preset and not is_checkpoint:
        raise UserError(f"unknown name {name!r}; expected a preset, a checkpoint or its folder; try `wamtune ls`")
    as_preset = is_preset and (not is_checkpoint or final.suffix in (".yaml", ".yml"))
    if final.is_dir() and not (final / CONFIG).is_file():  # never inside another checkpoint, where nobody looks for it
        final = final / (f"{Path(name).name}.yaml" if as_preset else _folder_name(name))
    _check_is_new(final)
    if as_preset:
        write_atomically(final, read_file(find_preset(name), JSON_BYTES))
    else:
        _checked(name)  # refuse to copy a damaged checkpoint
        write_folder(final, checkpoint_files(name))
    print(f"{'preset' if as_preset else 'checkpoint'} {name} copied to {final}")


def _check_is_new(final: Path) -> None:
    """Refuse a destination that exists, also a link to nothing."""
    if final.exists() or final.is_symlink():
        raise UserError(f"{final} is there already and was not touched; choose another destination")


def _checked(name: str) -> dict[str, Any]:
    """Return the config of a checkpoint; one of a policy that was brought has its values in a file of their own."""
    folder = find_checkpoint(name)
    return about_brought(folder) if is_brought(folder) else load_checkpoint(name)[0]


def _is_checkpoint(name: str) -> bool:
    """Whether a name may mean a checkpoint; loading it tells whether there is one."""
    return name in builtin_checkpoints() or Path(name).is_dir() or bool(newest_runs(name)) or is_hub_name(name)


def _folder_name(name: str) -> str:
    return parse_hub_name(name).repo.partition("/")[2] if is_hub_name(name) else Path(name).resolve().name


def _publish(name: str, destination: str, options: HubOptions) -> None:
    """Upload a checkpoint, with the front matter that the Hub reads in its model card."""
    repo = parse_hub_name(destination).repo
    if not _is_checkpoint(name) or _holds_episodes(Path(name)):
        raise UserError(f"{name}: expected a checkpoint or a run to upload; see `wamtune ls checkpoints`")
    config = _checked(name)  # refuse to publish a damaged checkpoint
    files = checkpoint_files(name)
    if left_out := [file for file in files if not is_shared(file)]:
        raise UserError(f"{name}: it lists {left_out[0]!r}; only {', '.join(PATTERNS)} are uploaded, take that one out")
    text = files.get(README, b"").decode("utf-8", "replace")
    card = with_front_matter(text, config, repo.partition("/")[2], options.license)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "checkpoint")
        write_folder(folder, with_file(files, README, card.encode()))
        address = upload(folder, destination, private=options.private)
    print(f"checkpoint {name} uploaded to {address}")


def _holds_episodes(folder: Path) -> bool:
    """Whether a folder holds episodes and is not a checkpoint, which may hold demonstrations."""
    return bool(EpisodeStore(folder).shards) and not (folder / CONFIG).is_file()


def _to_lerobot_policy(name: str, final: Path, keys: list[str]) -> str:
    """Write a checkpoint as a policy of LeRobot."""
    if keys != ["format=lerobot"]:
        raise UserError(f"cp {name}: expected format=lerobot and no other key, got {' '.join(keys)}")
    _check_is_new(final)
    model = load_actor(name)
    n_denoising_steps, n_action_steps = model.policy_steps
    card = checkpoint_files(name).get(README, b"").decode(errors="replace")
    write_folder(final, lerobot_files(model, n_denoising_steps, n_action_steps or model.chunk_size, card))
    return f"checkpoint {name} is now a policy of LeRobot in {final}; its README.md has the command"


def _to_lerobot(folder: Path, final: Path, keys: list[str]) -> str:
    from rl.verbs.dataset import dataset_of  # late: the simulators take a second to import

    spec, episodes = dataset_of(EpisodeStore(folder), compose(None, keys, DatasetOptions))
    return f"{export_lerobot(episodes, spec, final)} episodes of {folder} are now a LeRobot dataset in {final}"


def _from_lerobot(folder: Path, final: Path, keys: list[str]) -> str:
    episodes, spec = import_lerobot(folder, compose(None, keys, ColumnsConfig))
    for group in in_shards(episodes):
        EpisodeStore(final).append(group, spec)
    return f"the LeRobot dataset {folder} is now {len(episodes)} episodes in {final}"
