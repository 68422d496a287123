"""The Log port on PySyncObj, mended. See DESIGN.md."""

from cube.adapters.raft.log import PySyncObjLog
from cube.adapters.raft.peer_tls import PeerTls
from cube.adapters.raft.settings import RaftSettings

__all__ = ["PeerTls", "PySyncObjLog", "RaftSettings"]
