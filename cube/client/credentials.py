"""What a client shows, and whom it believes: found where the agent of the same user has left it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cube.model.places import (
    CA_FILE,
    NODE_CERTIFICATE_FILE,
    NODE_KEY_FILE,
    OPERATOR_TOKEN_FILE,
    default_data_dir,
)

TOKEN_BYTES_MAX = 1_024


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """`ca_file` None: the system's CAs are believed. `is_found`: the token was found, not given; it
    goes only to who has proved to be a node of the cluster. `node_files`: certificate and key of the
    node whose data directory this user can read; a node may read all."""

    token: str | None = None
    ca_file: str | None = None
    node_files: tuple[str, str] | None = None
    is_found: bool = False

    def __repr__(self) -> str:
        return f"Credentials(ca_file={self.ca_file!r})"


def find(env: Mapping[str, str], *, token: str | None, ca_file: str | None) -> Credentials:
    """Given, else in the environment (CUBE_TOKEN, CUBE_CACERT), else in the data directory
    (CUBE_DATA_DIR, or where an agent of this user has it)."""
    token = token or env.get("CUBE_TOKEN") or None
    ca_file = ca_file or env.get("CUBE_CACERT") or None
    directory = Path(env.get("CUBE_DATA_DIR") or default_data_dir(env, is_root=os.geteuid() == 0))
    is_found, node_files = False, None
    if ca_file is None and _can_read(directory / CA_FILE):
        ca_file = str(directory / CA_FILE)
        if token is None:
            token = _token_in(directory / OPERATOR_TOKEN_FILE)
            is_found = token is not None
        if token is None and _can_read(directory / NODE_KEY_FILE):
            node_files = (str(directory / NODE_CERTIFICATE_FILE), str(directory / NODE_KEY_FILE))
    return Credentials(token=token, ca_file=ca_file, node_files=node_files, is_found=is_found)


def _can_read(path: Path) -> bool:
    try:
        return os.access(path, os.R_OK)
    except (OSError, ValueError):
        return False


def _token_in(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            text = file.read(TOKEN_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text or None
