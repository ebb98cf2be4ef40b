"""The two stages before RL: pretrain and tune."""
