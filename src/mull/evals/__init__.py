"""Metrics with intervals, curves and fits, behaviour counts, evidence files, and the HTML report."""
