"""The composition root: the only place where concrete meets abstract. See DESIGN.md."""
