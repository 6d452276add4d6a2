"""Tasks: seeded problems whose answers, and each step towards them, can be checked exactly."""
