"""Robots: the interface to a policy, a fake robot for tests, and robots behind rosbridge."""
