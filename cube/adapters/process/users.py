"""Who a task runs as."""

from __future__ import annotations

import grp
import os
import pwd

import msgspec

from cube.adapters.process.failures import lasting
from cube.adapters.process.settings import ProcessSettings
from cube.model.allowed import (
    ANY_USER,
    AS_USER,
    PROCESS_ALLOW_WORDS,
    asks_as_process,
    lacking,
    refusal,
)
from cube.model.launch import Launch
from cube.model.spec import ID_MAX

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
    if missing := _missing(asked, user, settings):
        message = f"this node {refusal(missing, 'process')}; user is {asked!r}"
        raise lasting("not_allowed", message)
    return user


def _missing(asked: str, user: User, settings: ProcessSettings) -> tuple[str, ...]:
    """What this node would have to allow, and does not."""
    words = settings.words
    if ROOT in (user.uid, user.gid):  # whatever it is called
        return lacking(PROCESS_ALLOW_WORDS, ",".join(words))
    if missing := lacking(asks_as_process(asked), ",".join(words)):
        return missing
    is_named = any(
        word in words for word in (AS_USER + asked, AS_USER + ANY_USER, *PROCESS_ALLOW_WORDS)
    )
    if is_named or user.gid in _groups_of(asked.partition(":")[0]):
        return ()
    return (AS_USER + asked,)  # the account is allowed, and not in this group


def _groups_of(name: str) -> tuple[int, ...]:
    return _look_up(name).groups


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
