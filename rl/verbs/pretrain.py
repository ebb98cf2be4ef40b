"""`wamtune pretrain`: collect episodes and learn to predict the world."""

from __future__ import annotations

from rl.cli import keys_of
from rl.model_card import figures
from rl.stage_config import PretrainConfig
from rl.stages import load_state, pretrain
from rl.verbs.begin import begin

HELP = f"""wamtune pretrain PRESET | RUN_FOLDER [key=value ...]

Collect episodes of scripted experts, clean and noisy, and of random motion, and train a world-action model to predict
what actions bring about. With id=recorded nothing is collected: it learns from the folder `episodes`, into which
`dataset`, a LeRobot v3.0 dataset, is imported first. One of five episodes of a task is then held out. It learns no
policy: that is `wamtune tune`. Given a run folder, go on where that run stopped.

Keys:
{keys_of(PretrainConfig)}

Examples:
  wamtune pretrain metaworld-pretrained
  wamtune pretrain own-pretrained dataset=datasets/mine columns.success=all
"""


def run(words: list[str]) -> None:
    """Begin or continue a run and print what was measured."""
    config, folder, _ = begin("pretrain", words, PretrainConfig, load_state)
    print(f"pretrain {config.name}; to go on after an interruption: wamtune pretrain {folder.path}", flush=True)
    with folder:
        about = pretrain(config, folder)
    print(f"\n{figures(about['metrics'])}\n\ncheckpoint: {folder.checkpoints / 'last'}")
