"""The rounds of post-training: phases, gates, evaluation, dreams."""
