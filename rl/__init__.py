"""The last mile: environments, PPO, evaluation and the command line."""
