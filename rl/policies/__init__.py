"""Policies: the interfaces for training, acting and export, and the built-in policies."""
