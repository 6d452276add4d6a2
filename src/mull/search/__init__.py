"""Strategies: how test-time compute is spent on one question. Each is plain async code and returns a `Trace`."""
