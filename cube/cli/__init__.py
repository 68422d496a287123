"""The command line. See DESIGN.md."""

from __future__ import annotations


def main() -> None:
    """The process has done what its arguments said, and exits with interface.md's codes."""
    from cube.cli.root import run

    raise SystemExit(run())
