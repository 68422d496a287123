"""The command line. See DESIGN.md."""


def main() -> None:
    """The process has done what its arguments said, and exits with interface.md's codes."""
    raise SystemExit("not built yet")
