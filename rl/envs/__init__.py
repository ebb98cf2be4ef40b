"""Environments: simulators that implement `world_model.env.BatchedEnv`, and adapters to other libraries."""
