"""`wamtune cp`: copy a preset or a checkpoint, and convert episodes to a LeRobot dataset and back."""

from __future__ import annotations

from pathlib import Path

from rewards.errors import UserError
from rl.compose import compose, find_preset, list_presets
from rl.verbs.options import DatasetOptions
from world_model.checkpoint import CONFIG, builtin_checkpoints, checkpoint_files, load_checkpoint
from world_model.data.columns_config import ColumnsConfig
from world_model.data.episodes import EpisodeStore, in_shards
from world_model.data.lerobot import INFO, export_lerobot, import_lerobot
from world_model.files import JSON_BYTES, read_file, write_atomically, write_folder
from world_model.runs import newest_runs


def run(words: list[str]) -> None:
    """Copy or convert `words[0]` to `words[1]`; further words are keys of the import or export of a dataset."""
    if len(words) < 2:
        raise UserError("cp needs a name and a destination, for example `wamtune cp demo mine.yaml`")
    name, final, keys = words[0], Path(words[1]), words[2:]
    is_dataset = (Path(name) / INFO).is_file()
    if is_dataset or _holds_episodes(Path(name)):
        if final.exists():
            raise UserError(f"{final} is there already and was not touched; choose another destination")
        convert = _from_lerobot if is_dataset else _to_lerobot
        print(convert(Path(name), final, keys))
        return
    if keys:
        raise UserError(
            f"unexpected {keys[0]!r}: only a LeRobot dataset and a folder of episodes have keys; leave it out"
        )
    is_preset = name in dict(list_presets())
    is_checkpoint = name in builtin_checkpoints() or Path(name).is_dir() or bool(newest_runs(name))
    if not is_preset and not is_checkpoint:
        raise UserError(f"unknown name {name!r}; expected a preset, a checkpoint or its folder; try `wamtune ls`")
    as_preset = is_preset and (not is_checkpoint or final.suffix in (".yaml", ".yml"))
    if final.is_dir():
        final = final / (f"{Path(name).name}.yaml" if as_preset else Path(name).resolve().name)
    if final.exists() or final.is_symlink():
        raise UserError(f"{final} is there already and was not touched; choose another destination")
    if as_preset:
        write_atomically(final, read_file(find_preset(name), JSON_BYTES))
    else:
        load_checkpoint(name)  # refuse to copy a damaged checkpoint
        write_folder(final, checkpoint_files(name))
    print(f"{'preset' if as_preset else 'checkpoint'} {name} copied to {final}")


def _holds_episodes(folder: Path) -> bool:
    """Whether a folder holds episodes and is not a checkpoint, which may hold demonstrations."""
    return bool(EpisodeStore(folder).shards) and not (folder / CONFIG).is_file()


def _to_lerobot(folder: Path, final: Path, keys: list[str]) -> str:
    from rl.verbs.dataset import dataset_of  # late: the simulators take a second to import

    spec, episodes = dataset_of(EpisodeStore(folder), compose(None, keys, DatasetOptions))
    return f"{export_lerobot(episodes, spec, final)} episodes of {folder} are now a LeRobot dataset in {final}"


def _from_lerobot(folder: Path, final: Path, keys: list[str]) -> str:
    episodes, spec = import_lerobot(folder, compose(None, keys, ColumnsConfig))
    for group in in_shards(episodes):
        EpisodeStore(final).append(group, spec)
    return f"the LeRobot dataset {folder} is now {len(episodes)} episodes in {final}"
