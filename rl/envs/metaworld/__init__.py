"""Meta-World as a simulator: tasks, cameras, events, a simulated robot."""
