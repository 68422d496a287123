"""Images by name and by digest."""

from __future__ import annotations

import re

# Of an image's manifest: the same wherever it is pulled from, and never of anything else.
_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-f]{32,128}")


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def digest_in(image: str) -> str:
    """The digest that the reference itself names; empty when it goes by its tag."""
    digest = image.partition("@")[2]
    return digest if is_digest(digest) else ""


def pinned(image: str, digest: str) -> str:
    """The reference of exactly that image. The tag in it is for people."""
    return f"{image}@{digest}" if digest and "@" not in image else image
