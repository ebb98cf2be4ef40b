"""Offsets that the world model adds to episode seeds; `rl.seeds` lists which seeds are used for what."""

NOISE_SEED = 2**31
"""Added to the seed of an episode to seed its observation noise, which must differ from the noise of the policy.

Seeds of episodes are smaller, so the two ranges do not overlap.
"""

PROCESS_SEED = 2_654_435_761
"""Added to a seed once per process of a group, so that each draws other numbers; see `rl.ppo.distributed`.

Torch's generator on the CPU takes the seed modulo 2**32. This number is odd, so all processes have different seeds, and
large, so they are far from the seeds of other runs (it is 2**32 divided by the golden ratio).
"""
