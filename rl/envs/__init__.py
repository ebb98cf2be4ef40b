"""Places to act in: simulators behind the batched contract of `world_model.env`, and adapters to other libraries."""
