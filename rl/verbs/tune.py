"""`wamtune tune`: learn to act from few demonstrations."""

from __future__ import annotations

from rl.cli import keys_of
from rl.config import RECORDED
from rl.model_card import figures
from rl.stage_config import TuneConfig
from rl.stages import load_state, tune
from rl.verbs.begin import begin

HELP = f"""wamtune tune PRESET | RUN_FOLDER [key=value ...]

Teach a pretrained checkpoint to act from few demonstrations per task, roll the policy out, refit the world decoder on
what it met, and measure success in the simulator. With id=recorded there is no simulator: nothing is rolled out, and
the policy is measured on held-out demonstrations alone. Given a run folder, go on where that run stopped.

Keys:
{keys_of(TuneConfig)}

Examples:
  wamtune tune metaworld-tuned
  wamtune tune metaworld-tuned name=push tasks=[push] n_demos=5
"""


def run(words: list[str]) -> None:
    """Begin or continue a run and print what was measured."""
    config, folder, _ = begin("tune", words, TuneConfig, load_state)
    print(f"tune {config.name}; to go on after an interruption: wamtune tune {folder.path}", flush=True)
    if config.id == RECORDED:
        print("there is no simulator (id=recorded): no rollouts, and no success rate")
    with folder:
        about = tune(config, folder)
    print(f"\n{figures(about['metrics'])}\n\ncheckpoint: {folder.checkpoints / 'last'}")
