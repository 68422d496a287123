"""Each outside library, and the operating system, behind a port. See DESIGN.md."""
