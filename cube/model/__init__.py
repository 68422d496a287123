"""Frozen values: what every other floor talks about. See DESIGN.md."""
