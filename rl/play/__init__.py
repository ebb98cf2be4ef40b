"""The dream in a browser: a person drives it beside the simulator."""
