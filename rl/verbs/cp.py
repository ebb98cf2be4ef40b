"""`wamtune cp`: make a preset or a checkpoint one's own."""

from __future__ import annotations

from pathlib import Path

from rewards.errors import UserError
from rl.compose import find_preset, list_presets
from world_model.checkpoint import builtin_checkpoints, checkpoint_files, load_checkpoint
from world_model.files import write_atomically, write_folder

HELP = """wamtune cp NAME DEST

Copy a preset to a file DEST, or a checkpoint to a folder DEST, to change it or carry it away. What is there is never
overwritten. A name that is both is copied as a preset when DEST ends with .yaml, otherwise as a checkpoint.

Examples:
  wamtune cp demo mine.yaml
  wamtune cp metaworld-tuned robot/policy
"""


def run(words: list[str]) -> None:
    """Copy `words[0]` to `words[1]`."""
    if len(words) != 2:
        raise UserError("cp needs a name and a destination, for example `wamtune cp demo mine.yaml`")
    name, final = words[0], Path(words[1])
    is_preset, is_checkpoint = name in dict(list_presets()), name in builtin_checkpoints() or Path(name).is_dir()
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
