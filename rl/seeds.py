"""Ranges of seeds: every use has its own range, so that no policy is evaluated on episodes it was trained on.

A seed names an episode of a simulator: its first state, and the noise of the policy's decisions.

| range | episodes |
|---|---|
| `EXPERT` | of the scripted expert, for pretraining; the demonstrations are the first of them |
| `NOISY` | of the expert with noise on its actions, for pretraining |
| `RANDOM` | of random motion, for pretraining |
| `POLICY` | of the tuned policy, for the refit of the world decoder |
| `HELDOUT` | of expert and noisy expert, for measuring the two stages; never trained on |
| `HELDOUT_POLICY` | of the tuned policy, for the same |
| `STAGE_EVAL` | of the success table of a tuned checkpoint |
| `GUARD` | of the pairs with which a gate looks again at single tasks |
| `GATE` | of the gates of a run, in blocks |
| `EVAL` | of the evaluation before and after a run, and of `wamtune eval` and `wamtune dream` |
| `EXPLORE` | exploring episodes, collected for a refit |
| `TWIN` | only reset: fresh starts of dreams beside the twins of a gate |
| `TWIN_EVAL` | the same for `wamtune eval` |
| `START` | only reset: the first states of dreams |

PPO and dreams draw the seeds of their own episodes at random from 0 to 2**31 - 1. The probability that 10,000 such
draws contain any episode of an evaluation of 200 is 0.1 %.

On a robot a seed names a scene. `run` records the scenes from `seed` on; a comparison uses those from `COMPARE` on.
Noise on observations is drawn with `world_model.seeds.NOISE_SEED` added to the seed of the episode.

The last four numbers of this file are not episodes but offsets and seeds of random generators.
"""

from __future__ import annotations

EXPERT = range(0, 100_000)
NOISY = range(100_000, 200_000)
RANDOM = range(200_000, 300_000)
POLICY = range(300_000, 400_000)
HELDOUT = range(500_000, 501_000)
HELDOUT_POLICY = range(501_000, 600_000)
STAGE_EVAL = range(700_000, 800_000)
GUARD = range(800_000, 1_000_000)
GATE = range(1_000_000, 2_000_000)
EVAL = range(2_000_000, 50_000_000)
EXPLORE = range(50_000_000, 60_000_000)
TWIN = range(60_000_000, 80_000_000)
TWIN_EVAL = range(80_000_000, 100_000_000)
START = range(100_000_000, 2**31)

OF_SOURCE = {"expert": EXPERT, "noisy": NOISY, "random": RANDOM, "policy": POLICY}
"""Source of a recorded episode -> its seeds."""

COMPARE = 1_000_000
"""Smallest scene of a comparison on a robot. Policies may be trained on the scenes of `run`, which begin at 0."""

JUDGE_REFIT = 1_000_003
"""Added to the seed of a run for the refit of the dream that evaluates, which must differ from the training dream."""

GO_BACK = 1_000
"""Added to the seed of a run once per return to a saved state, so that the random numbers differ from before."""

CALLBACK_EVAL = 2**32 - 1
"""Seed of the evaluation environment of a callback; larger than any `seed` of a run, so that they never coincide.

Torch's generator on the CPU takes the seed modulo 2**32, so this is the largest one that it can have.
"""

CAMERA = 0
"""Seed of the disturbed cameras, see `rl.stages.images.encode_disturbed`."""
