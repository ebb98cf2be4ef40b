"""Meta-World as a simulator: tasks, cameras, domain randomisation, a fit to recorded episodes, a simulated robot."""
