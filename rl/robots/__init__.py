"""Robots: the interface, a fake one, and one behind rosbridge."""
