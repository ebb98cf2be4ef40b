"""Which seeds are used for what: a range of its own for every use, so that nothing is judged on what it learned from.

A seed names an episode of a simulator: where it begins, and the noise that the policy decides with.

| range | episodes |
|---|---|
| `EXPERT` | of the scripted expert, to pretrain on; the demonstrations are the first of them |
| `NOISY` | of the expert with noise on its actions, to pretrain on |
| `RANDOM` | of random motion, to pretrain on |
| `POLICY` | of the tuned policy, to refit the world decoder on |
| `HELDOUT` | of expert and noisy expert, to measure the two stages on; never trained on |
| `HELDOUT_POLICY` | of the tuned policy, for the same |
| `STAGE_EVAL` | of the success table of a tuned checkpoint |
| `GATE` | of the gates of a run, in blocks |
| `EVAL` | of the evaluation before and after a run, and of `wamtune eval` and `wamtune dream` |
| `EXPLORE` | collected for a refit, exploring |
| `START` | only reset, for dreams to begin from |

PPO and a dream draw the seeds of their own episodes at random from 0 to 2**31 - 1. An episode of an evaluation of 200
is among 10,000 such draws with a probability of 0.1 %.

On a robot a seed names a scene. `run` records those from `seed` on; a comparison takes its own, from `COMPARE` on.
Noise on observations is drawn with `world_model.seeds.NOISE_SEED` added to the seed of the episode.

The last four numbers of this file are no episodes; random generators begin from them.
"""

from __future__ import annotations

EXPERT = range(0, 100_000)
NOISY = range(100_000, 200_000)
RANDOM = range(200_000, 300_000)
POLICY = range(300_000, 400_000)
HELDOUT = range(500_000, 501_000)
HELDOUT_POLICY = range(501_000, 600_000)
STAGE_EVAL = range(700_000, 800_000)
GATE = range(1_000_000, 2_000_000)
EVAL = range(2_000_000, 50_000_000)
EXPLORE = range(50_000_000, 100_000_000)
START = range(100_000_000, 2**31)

OF_SOURCE = {"expert": EXPERT, "noisy": NOISY, "random": RANDOM, "policy": POLICY}
"""Source of a recorded episode -> its seeds."""

COMPARE = 1_000_000
"""First scene of a comparison on a robot at the earliest: policies learn from those of `run`, which begin at 0."""

JUDGE_REFIT = 1_000_003
"""Added to the seed of a run for the refit of the judging dream, which must not be the one that is trained in."""

GO_BACK = 1_000
"""Added to the seed of a run, times the number of returns to a saved state, for other random numbers than before."""

CALLBACK_EVAL = 2**40
"""Of the episodes of a callback that evaluates; the `seed` of a run, from which it draws its own, is never so large."""

CAMERA = 0
"""Of the cameras that disturb recorded episodes, see `rl.stages.images.see_disturbed`."""
