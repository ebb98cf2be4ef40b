"""Recorded episodes: on disk, in windows, and from and to LeRobot datasets."""
