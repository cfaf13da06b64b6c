"""Scoring anyone's outputs from a file, without running anything: `toa-exp score`."""
