"""The built-in world-action model: network, training, metrics, checkpoints."""
