"""mull: an open o1. Learn to think by reinforcement learning, verify exactly, and meter all of it."""

__version__ = "0.1.0"
