"""host:port as text and back: the one form in which Cube keeps, sends and shows addresses.

An IPv6 host stands in brackets, `[::1]:7700`, and so is a URL's authority as it is.
"""

from __future__ import annotations

import ipaddress

PORT_MAX = 65_535


def is_loopback(host: str) -> bool:
    """An address of this machine alone, or its name."""
    address = _ip(host)
    return host == "localhost" if address is None else address.is_loopback


def is_unspecified(host: str) -> bool:
    """Every address of the machine: to listen on, not to be asked at."""
    address = _ip(host)
    return address is not None and address.is_unspecified


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


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
