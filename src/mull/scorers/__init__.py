"""Scorers: what judges a thought without the reference answer."""
