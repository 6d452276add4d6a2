"""Graders: they know the reference. Nothing in here is shown to a strategy or a scorer."""
