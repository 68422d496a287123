"""Compose files: YAML of the compose specification to the tree of a job file, or every error at once."""
