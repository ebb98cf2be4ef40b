"""Policies of LeRobot as denoisers; this package needs the extra `lerobot`, which only its functions import."""
