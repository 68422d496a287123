"""What a group asks of its host beyond the ordinary. A node's operator allows it or does not, each
by a word of `[drivers.docker] allow` or `[drivers.process] allow`: the driver refuses what is not
allowed, and the scheduler does not place it there (the node says what it allows in the attribute ALLOW
of that driver)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cube.model.spec import DockerOptions, MountSpec, MountType

# In the order in which they are named to people.
ALLOW_WORDS = (
    "bind",  # mounts of host directories
    "cap_add",  # capabilities beyond CAPABILITIES
    "devices",
    "gpus",
    "host_network",
    "network",  # any network but bridge and none: a named one, or (host_network, too) another container's
    "privileged",
    "security_opt",
    "volumes",  # volumes that this cluster did not make: only the engine knows which they are
)
PROCESS_ALLOW_WORDS = ("root",)  # as user or group, where the agent is root itself; and so anybody
AS_USER = "user:"  # before an account of [drivers.process] users, where it stands among such words
ANY_USER = "*"  # in `users`: any account but root
USERS_DEFAULT = ("nobody",)  # who by convention owns nothing on any host
ALLOW = "allow"  # the driver's attribute: the words with commas between them

# What Docker documents as kept by default: enough for images that start as root and step down.
# Everything else is dropped by name, whatever the engine's own default is.
CAPABILITIES = frozenset(
    {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
     "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
)  # fmt: skip
ALL = "ALL"

_PLAIN_NETWORKS = frozenset({"", "default", "bridge", "none"})
_HARMLESS_SECURITY = frozenset({"no-new-privileges", "no-new-privileges:true"})


def capability(name: str) -> str:
    """`NET_ADMIN` for any of net_admin, CAP_NET_ADMIN."""
    return name.upper().removeprefix("CAP_")


def adds_rights(security_opt: str) -> bool:
    """It may take away what confines the container."""
    return security_opt not in _HARMLESS_SECURITY


def is_named_network(mode: str) -> bool:
    """One that somebody has made on the node."""
    return mode not in _PLAIN_NETWORKS and mode != "host" and ":" not in mode


def asks(docker: DockerOptions, mounts: Sequence[MountSpec]) -> tuple[str, ...]:
    """The ALLOW_WORDS that a node must have for it."""
    mode = docker.network_mode
    is_asked = {
        "bind": any(mount.type is MountType.BIND for mount in mounts),
        "cap_add": any(capability(name) not in CAPABILITIES for name in docker.cap_add),
        "devices": bool(docker.devices),
        "gpus": docker.gpus not in ("", "0"),
        # The other container may be on the host's network itself.
        "host_network": mode == "host" or mode.startswith("container:"),
        "network": mode not in _PLAIN_NETWORKS and mode != "host",
        "privileged": docker.privileged,
        "security_opt": any(adds_rights(option) for option in docker.security_opt),
        "volumes": False,
    }
    return tuple(word for word in ALLOW_WORDS if is_asked[word])


def asks_as_process(user: str) -> tuple[str, ...]:
    """The words that a node must have for it, as far as the text itself says so: one of
    PROCESS_ALLOW_WORDS, or the account."""
    if not user:
        return ()
    is_root = any(part == "root" or part.strip("0") == "" for part in user.split(":"))
    return PROCESS_ALLOW_WORDS if is_root else (AS_USER + user,)


def process_words(
    allow: Collection[str], users: Collection[str], default: str = ""
) -> tuple[str, ...]:
    """The process driver's attribute ALLOW, under an agent that is root: who is named in `allow`, in
    `users`, and whom tasks run as that name none."""
    named = {*users, default} - {""}
    return (*sorted(allow), *(AS_USER + user for user in sorted(named)))


def lacking(asked: Collection[str], allowed: str | None) -> tuple[str, ...]:
    """Of what is asked, the words that are not in `allowed`, a driver's attribute ALLOW; None (an agent
    of an older release): nothing is known to be lacking."""
    if allowed is None or not asked:
        return ()
    have = allowed.split(",")
    return tuple(word for word in asked if not _has(word, have))


def _has(word: str, have: Collection[str]) -> bool:
    if word in have:
        return True
    if not word.startswith(AS_USER):
        return False
    account = word.partition(":")[2].partition(":")[0]
    # A group beside the account is one of its own: the driver sees to that, who knows them.
    return any(one in have for one in (AS_USER + account, AS_USER + ANY_USER, *PROCESS_ALLOW_WORDS))


def refusal(words: Sequence[str], driver: str = "docker") -> str:
    """For people, with the key that would change it."""
    key, quoted = key_of(words, driver)
    users = [word.removeprefix(AS_USER) for word in words if word.startswith(AS_USER)]
    if users:
        return f"lets no task run as {', '.join(users)}: its operator can set {key} = [{quoted}]"
    return f"does not allow {', '.join(words)}: its operator can set {key} = [{quoted}]"


def key_of(words: Sequence[str], driver: str) -> tuple[str, str]:
    """The key of a node's configuration that has such words, and these for its list."""
    users = [word.removeprefix(AS_USER) for word in words if word.startswith(AS_USER)]
    listed = ", ".join(f'"{word}"' for word in users or words)
    return f"[drivers.{driver}] {'users' if users else 'allow'}", listed
