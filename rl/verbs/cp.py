"""`wamtune cp`: make a preset or a checkpoint one's own, and carry episodes to LeRobot and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rewards.errors import UserError
from rl.compose import find_preset, list_presets
from rl.deploy.lerobot import INFO, export_lerobot, import_lerobot
from world_model.checkpoint import CONFIG, builtin_checkpoints, checkpoint_files, load_checkpoint
from world_model.episodes import EpisodeStore
from world_model.files import write_atomically, write_folder
from world_model.runs import newest_runs


def run(words: list[str]) -> None:
    """Copy `words[0]` to `words[1]`."""
    if len(words) != 2:
        raise UserError("cp needs a name and a destination, for example `wamtune cp demo mine.yaml`")
    name, final = words[0], Path(words[1])
    if (convert := _conversion(Path(name))) is not None:
        if final.exists():
            raise UserError(f"{final} is there already and was not touched; choose another destination")
        print(convert(Path(name), final))
        return
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
        write_atomically(final, find_preset(name).read_bytes())
    else:
        load_checkpoint(name)  # a damaged one is refused, not spread
        write_folder(final, checkpoint_files(name))
    print(f"{'preset' if as_preset else 'checkpoint'} {name} copied to {final}")


def _conversion(folder: Path) -> Callable[[Path, Path], str] | None:
    """How to carry a folder of episodes over; None for anything else, such as a checkpoint with episodes beside it."""
    if (folder / INFO).is_file():
        return _from_lerobot
    return _to_lerobot if EpisodeStore(folder).shards and not (folder / CONFIG).is_file() else None


def _to_lerobot(folder: Path, final: Path) -> str:
    store = EpisodeStore(folder)
    episodes = store.load()
    export_lerobot(episodes, store.spec, final)
    return f"{len(episodes)} episodes of {folder} are now a LeRobot dataset in {final}"


def _from_lerobot(folder: Path, final: Path) -> str:
    episodes, spec = import_lerobot(folder)
    EpisodeStore(final).append(episodes, spec)
    return f"the LeRobot dataset {folder} is now {len(episodes)} episodes in {final}"
