"""Policies: what PPO trains, what acts, and the built-in ones."""
