"""Images by name and by digest."""

from __future__ import annotations

import re

import msgspec

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


DEFAULT_REGISTRY = "docker.io"


def canonical(reference: str) -> str:
    """`registry/path:tag`, or `registry/path@digest` where there is a digest: the same for all ways to
    write it. A digest says which image it is, so a tag beside it does not count."""
    name, _, digest = reference.partition("@")
    first, slash, rest = name.partition("/")
    registry, path = DEFAULT_REGISTRY, name
    if slash and ("." in first or ":" in first or first == "localhost"):
        registry, path = first, rest
    if registry == f"index.{DEFAULT_REGISTRY}":
        registry = DEFAULT_REGISTRY
    path, _, tag = path.partition(":")
    if registry == DEFAULT_REGISTRY and "/" not in path:
        path = f"library/{path}"
    return f"{registry}/{path}@{digest}" if digest else f"{registry}/{path}:{tag or 'latest'}"


def repository(canonical_name: str) -> str:
    """Of a canonical name: without its tag or digest."""
    name = canonical_name.partition("@")[0]
    registry, _, path = name.partition("/")
    return f"{registry}/{path.partition(':')[0]}"


class ImageSeen(msgspec.Struct, frozen=True, kw_only=True):
    """An image on an engine. `names`: its tags and digests, as the engine writes them. `users`: the
    containers that have it, anybody's, those that have ended too. `is_base`: others are built on it."""

    id: str
    names: tuple[str, ...] = ()
    size_bytes: int = 0  # what other images share with it included
    users: tuple[str, ...] = ()
    is_base: bool = False


class ImagePulled(msgspec.Struct, frozen=True, kw_only=True):
    """A pull has given an image this name, which it had not before. `was_here`: it had others."""

    id: str
    name: str  # canonical
    was_here: bool
