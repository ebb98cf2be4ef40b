"""Isaac Lab as a simulator."""
