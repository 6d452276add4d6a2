"""Sampling: the `Sampler` contract, the local continuous-batching engine, and a scripted fake."""
