"""`wamtune pretrain`: collect episodes and learn to predict the world."""

from __future__ import annotations

from rl.ppo.distributed import Distributed
from rl.report.card import figures
from rl.stages.config import PretrainConfig
from rl.stages.run import load_state, pretrain
from rl.verbs.begin import begin_together, tells_how_to_go_on


def run(words: list[str]) -> None:
    """Begin or continue a run and print its measurements.

    If torchrun has started several processes, they train together, and process 0 alone does the rest.
    """
    with Distributed.join() as distributed, distributed.together():
        config, folder, _ = begin_together(distributed, "pretrain", words, PretrainConfig, load_state)
        print(f"pretrain {config.name}", flush=True)
        with folder, tells_how_to_go_on("pretrain", folder.path):
            about = pretrain(config, folder, distributed)
    print(f"\n{figures(about['metrics'])}\n\ncheckpoint: {folder.checkpoints / 'last'}")
