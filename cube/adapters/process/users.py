"""Who a task runs as."""

from __future__ import annotations

import grp
import os
import pwd

import msgspec

from cube.adapters.process.failures import lasting
from cube.adapters.process.settings import ProcessSettings
from cube.model.allowed import PROCESS_ALLOW_WORDS, lacking, refusal
from cube.model.launch import Launch

ID_MAX = (1 << 32) - 2  # the kernel's; one more means "leave it as it is"
ROOT = 0  # the id of the user and of the group that may do everything


class User(msgspec.Struct, frozen=True):
    uid: int
    gid: int
    groups: tuple[int, ...]  # all that it is in, `gid` too
    home: str  # empty: unknown


def user_of(launch: Launch, settings: ProcessSettings) -> User | None:
    """Who the task runs as; None: as the agent. `name`, `uid`, `name:group` or `uid:gid`. Raises
    DriverFailed for who is unknown here, or is root where the node does not allow it."""
    asked = launch.user or settings.user
    if not asked:
        return None
    user = _look_up(asked)
    if os.geteuid() != ROOT:
        if user.uid == os.geteuid() and ":" not in asked:
            return None
        raise lasting(
            "user_not_allowed", f"only an agent that runs as root can start a task as {asked!r}"
        )
    if ROOT in (user.uid, user.gid) and lacking(PROCESS_ALLOW_WORDS, ",".join(settings.allow)):
        raise lasting(
            "not_allowed",
            f"this node {refusal(PROCESS_ALLOW_WORDS, 'process')}; user is {asked!r}",
        )
    return user


def _look_up(asked: str) -> User:
    name, _, group = asked.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if not name.isdigit() or int(name) > ID_MAX:
            raise lasting("user_unknown", f"no user {name!r} on this host") from None
        user = User(int(name), int(name), (int(name),), "/")
    else:
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        user = User(entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)
    if not group:
        return user
    try:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise lasting("user_unknown", f"no group {group!r} on this host") from None
    if gid > ID_MAX:
        raise lasting("user_unknown", f"no group {group!r} on this host")
    return msgspec.structs.replace(user, gid=gid, groups=(gid,))
