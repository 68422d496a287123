"""host:port as text and back: the one form in which Cube keeps, sends and shows addresses.

An IPv6 host stands in brackets, `[::1]:7700`, and so is a URL's authority as it is.
"""

from __future__ import annotations

PORT_MAX = 65_535


def join_address(host: str, port: int) -> str:
    """`10.0.0.1:7700`, `[::1]:7700`. `host` may have its brackets already."""
    bare = host.removeprefix("[").removesuffix("]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Host without brackets, and port 1 to 65535. Raises ValueError for everything else."""
    host, colon, port_text = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    if not colon or not bare or (":" in bare) is not is_bracketed or set(bare) & set("[]"):
        raise ValueError(f"not host:port: {address[:300]!r}")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        raise ValueError(f"not host:port: {address[:300]!r}")
    port = int(port_text)
    if not 0 < port <= PORT_MAX:
        raise ValueError(f"no port: {address[:300]!r}")
    return bare, port
