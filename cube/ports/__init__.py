"""Protocols between the machines' world and the outside. The docstrings are the contracts that
tests/contract runs against each fake and each real thing. See DESIGN.md."""
