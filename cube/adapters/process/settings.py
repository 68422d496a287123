"""What a node's configuration says of its processes: [drivers.process], [logs]."""

from __future__ import annotations

import msgspec

from cube.model.allowed import USERS_DEFAULT, process_words


class ProcessSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Disk for output: 2 streams × log_segments × log_segment_bytes a task (and 1/8 for times)."""

    log_segment_bytes: int = 10 * 1024 * 1024
    log_segments: int = 2
    cgroup_root: str = "/sys/fs/cgroup"
    cgroup_parent: str = "cube"  # a group of this name below each hierarchy's root
    allow: tuple[str, ...] = ()  # of cube.model.allowed.PROCESS_ALLOW_WORDS
    users: tuple[str, ...] = USERS_DEFAULT  # whom tasks may name, under an agent that is root
    user: str = ""  # of tasks that name none; empty: the agent's own
    disk_look_ms: int = 10_000  # between two looks at what a task keeps in its directory, at least

    @property
    def words(self) -> tuple[str, ...]:
        """See process_words."""
        return process_words(self.allow, self.users, self.user)
