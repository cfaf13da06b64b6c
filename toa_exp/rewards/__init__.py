"""Rewards: what scores a text. One file a reward."""
