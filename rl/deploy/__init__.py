"""Run policies on robots: export, control loop, safety limits, recorded sessions and comparisons."""
