"""`wamtune pretrain`: collect episodes and learn to predict the world."""

from __future__ import annotations

from rl.ppo.distributed import Distributed
from rl.report.card import figures
from rl.stages.config import PretrainConfig
from rl.stages.run import load_state, pretrain
from rl.verbs.begin import begin_together


def run(words: list[str]) -> None:
    """Begin or continue a run and print its measurements.

    If torchrun has started several processes, they train together, and process 0 alone does the rest.
    """
    with Distributed.join() as distributed, distributed.together():
        config, folder, _ = begin_together(distributed, "pretrain", words, PretrainConfig, load_state)
        print(f"pretrain {config.name}; to go on after an interruption: wamtune pretrain {folder.path}", flush=True)
        with folder:
            about = pretrain(config, folder, distributed)
    print(f"\n{figures(about['metrics'])}\n\ncheckpoint: {folder.checkpoints / 'last'}")
