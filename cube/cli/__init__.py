"""The command line. See DESIGN.md."""

from __future__ import annotations


def main() -> None:
    """The process has done what its arguments said, and exits with interface.md's codes."""
    try:
        from cube.cli.root import run
    except KeyboardInterrupt:  # Ctrl-C before anything was begun
        raise SystemExit(130) from None
    raise SystemExit(run())
