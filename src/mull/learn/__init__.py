"""Learning: from graded traces to samples, batches, losses and parameter updates. Pure functions all the way."""
