"""`wamtune tune`: learn to act from few demonstrations."""

from __future__ import annotations

from rl.envs.names import shown_name
from rl.ppo.distributed import Distributed
from rl.report.card import figures
from rl.stages.config import TuneConfig
from rl.stages.episodes import simulates
from rl.stages.run import load_state, tune
from rl.verbs.begin import begin_together, tells_how_to_go_on


def run(words: list[str]) -> None:
    """Begin or continue a run and print its measurements.

    If torchrun has started several processes, they train together, and process 0 alone does the rest.
    """
    with Distributed.join() as distributed, distributed.together():
        config, folder, _ = begin_together(distributed, "tune", words, TuneConfig, load_state)
        print(f"tune {config.name}", flush=True)
        if not simulates(config):
            print(f"there is no simulator ({shown_name(config.env)}): no rollouts, and no success rate")
        with folder, tells_how_to_go_on("tune", folder.path):
            about = tune(config, folder, distributed)
    print(f"\n{figures(about['metrics'])}\n\ncheckpoint: {folder.checkpoints / 'last'}")
