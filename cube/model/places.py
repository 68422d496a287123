"""Where things are on a host when nobody says otherwise: for the agent, and for who looks for it."""

from __future__ import annotations

from collections.abc import Mapping

CA_FILE = "ca.crt"  # in the data directory: whom to believe to be a node of the cluster
NODE_CERTIFICATE_FILE, NODE_KEY_FILE = "node.crt", "node.key"  # likewise, the node's own
OPERATOR_TOKEN_FILE = "operator-token"  # likewise, of the node that made the cluster


def default_data_dir(env: Mapping[str, str], *, is_root: bool) -> str:
    """Where an agent without data_dir keeps its state; the CLI of the same user looks there too."""
    if is_root:
        return "/var/lib/cube"
    if env.get("XDG_DATA_HOME"):
        return f"{env['XDG_DATA_HOME'].rstrip('/')}/cube"
    return f"{env.get('HOME', '.').rstrip('/')}/.local/share/cube"
