"""Reproducible experiments in inference-time scaling with several language models."""

__version__ = "0.1.0"
