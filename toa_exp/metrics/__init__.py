"""Metrics: how good an answer is, judged apart from the reward that selected it."""
