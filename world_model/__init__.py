"""The world-action model, its episodes, its training stages, its dream and its checkpoints."""
