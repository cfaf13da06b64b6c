"""Servers: models and rewards of a configuration behind HTTP, and the processes that they run in."""
