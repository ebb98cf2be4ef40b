"""Sweeps: many trainings that differ in a few keys, and which of them was best."""
