"""The JSON shapes of /v1/deployments. See views.py for the house rules of such shapes."""

from __future__ import annotations

import msgspec


class DeploymentGroupView(msgspec.Struct, frozen=True, kw_only=True):
    """In slots. `placed`: with a task of this version. `healthy`: of those that serve. `unhealthy`:
    whose task of this version fails its checks, or failed. `promoted` False: canaries are waited
    for, or for a person to promote them."""

    desired: int
    placed: int = 0
    healthy: int = 0
    unhealthy: int = 0
    canaries: int = 0
    promoted: bool = True


class DeploymentView(msgspec.Struct, frozen=True, kw_only=True):
    """`from_version` None: there was nothing healthy before. `replaces`: some group gets new
    containers. `rolls_back`: the version that this deployment takes back. `awaits_promotion`: every
    canary is healthy, and the next step is a person's."""

    id: str
    job: str
    from_version: int | None
    version: int
    status: str  # running | paused | successful | failed | rolled_back
    groups: dict[str, DeploymentGroupView]
    deadline_at: str | None
    message: str
    created_at: str | None
    replaces: bool = False
    rolls_back: int | None = None
    awaits_promotion: bool = False
