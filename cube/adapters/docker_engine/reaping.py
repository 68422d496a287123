"""The end of containers whose node was removed from the cluster."""

from __future__ import annotations

import logging
from collections.abc import Set

import docker.errors

from cube.adapters.docker_engine.engine import Client
from cube.adapters.docker_engine.marks import LABEL_CLUSTER, LABEL_NODE, Marks
from cube.model.ids import ClusterId, NodeId

log = logging.getLogger(__name__)


def reap(client: Client, cluster_id: ClusterId, removed: Set[NodeId]) -> int:
    """All containers of these nodes of this cluster are gone, those that were kept for their output, too.
    How many there were."""
    wanted = [f"{LABEL_CLUSTER}={cluster_id}", LABEL_NODE]
    ended = 0
    for item in client.containers(all=True, filters={"label": wanted}):
        node_id = NodeId((item.get("Labels") or {}).get(LABEL_NODE, ""))
        found = Marks(cluster_id, node_id).found(item) if node_id in removed else None
        if found is None:
            continue
        log.warning("container_reaped node=%s task=%s id=%s", node_id, found.task_id, found.id)
        try:
            client.remove_container(found.id, v=True, force=True)
        except docker.errors.NotFound:
            continue
        except docker.errors.APIError as error:
            # Another agent on this engine does the same at this moment.
            if "already in progress" not in str(error.explanation):
                raise
        ended += 1
    return ended
