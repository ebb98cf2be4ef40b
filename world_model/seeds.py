"""Seeds that the world model adds to those of episodes; `rl.seeds` says which episodes are used for what."""

NOISE_SEED = 2**31
"""Added to the seed of an episode for its observation noise, which has to differ from the noise of the policy.

Seeds of episodes are below it.
"""
