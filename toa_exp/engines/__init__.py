"""Engines: what turns a draw into a sample. One file an engine."""
