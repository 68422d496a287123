"""Cube: a container orchestrator in one process, identical on every host."""

__version__ = "0.1.0"
