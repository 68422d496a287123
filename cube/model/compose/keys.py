"""Every key of the compose specification, and what becomes of it here. A test walks the table against the
specification's own schema, and docs/compose.md is made from it.

HONOURED: `words` say what it becomes. NOTED: it changes nothing in Cube, and a warning says so by path.
REFUSED: the task would not run as the file says, so the file is not accepted; `hint` says what to try.
Values in `neutral`, and empty ones, ask for what is so anyway, and are neither noted nor refused.
"""

from __future__ import annotations

import enum

import msgspec


class Fate(enum.StrEnum):
    HONOURED = "honoured"
    NOTED = "noted"
    REFUSED = "refused"


class Key(msgspec.Struct, frozen=True):
    fate: Fate
    words: str
    hint: str = ""
    neutral: tuple[object, ...] = ()


def _honoured(words: str) -> Key:
    return Key(Fate.HONOURED, words)


def _noted(words: str, *neutral: object) -> Key:
    return Key(Fate.NOTED, words, "", neutral)


def _refused(words: str, hint: str = "", *neutral: object) -> Key:
    return Key(Fate.REFUSED, words, hint, neutral)


# What an included file brings along, each by its name.
KINDS = ("services", "networks", "volumes", "secrets", "configs", "models")
_NO_WINDOWS = "is for Windows, where Cube does not run"
_NO_NAMES = (
    "gives a service a name on a network, and Cube has no network across nodes",
    "cube service resolve JOB.SERVICE.PORT says at which addresses a service answers",
)
_NO_LABELS = "labels of this are not kept"
_NO_HOOKS = ("runs beside the task, which Cube does not do", "do it in the image's entrypoint")
_STORED = (
    "Cube keeps secrets and configs itself, and jobs name them",
    "cube secret set NAME (cube config set NAME) stores it; write external: true here",
)
_HOST_SHARED = "shares a namespace with the host or another container, which Cube does not do"

TOP = {
    "version": _honoured("nothing: the specification has made it obsolete"),
    "name": _honoured("the job's name; without it, COMPOSE_PROJECT_NAME or the directory's name"),
    "include": _honoured("what other files have, each a project of its own; the API reads none"),
    "services": _honoured("the job's groups"),
    "models": _refused("are run by Docker Model Runner", "run the model as a service of its own"),
    "networks": _honoured(
        "nothing, with a warning: no network across nodes, no names on it; one `external` network "
        "becomes docker.network_mode"
    ),
    "volumes": _honoured("the names of mounts"),
    "secrets": _honoured("secrets that the cluster keeps, each external: true"),
    "configs": _honoured("configs that the cluster keeps, each external: true"),
    "x-cube": _honoured("type, priority, meta, cron and name of the job, as in a job file"),
}

SERVICE = {
    "annotations": _refused("annotations of the container are not passed on", "use labels"),
    "attach": _noted("cube run shows how tasks become healthy; cube logs shows what they print"),
    "blkio_config": _refused("limits of block devices are not set"),
    "build": _noted("Cube builds nothing: `image` has to be on the nodes or in a registry"),
    "cap_add": _honoured("docker.cap_add"),
    "cap_drop": _honoured("docker.cap_drop"),
    "cgroup": _refused("the namespace of cgroups is the engine's choice", "", "private"),
    "cgroup_parent": _refused("Cube says under which cgroup a task runs"),
    "command": _honoured("command; text is split into words as a shell would, no shell runs"),
    "configs": _honoured("mounts of type config, at /NAME without a target"),
    "container_name": _noted("tasks are called JOB.SERVICE.SLOT, and so are their containers"),
    "cpu_count": _refused(_NO_WINDOWS, "use cpus"),
    "cpu_percent": _refused(_NO_WINDOWS, "use cpus"),
    "cpu_period": _honoured("with cpu_quota: resources.cpu_max"),
    "cpu_quota": _honoured("divided by cpu_period: resources.cpu_max"),
    "cpu_rt_period": _refused("real-time scheduling is not set"),
    "cpu_rt_runtime": _refused("real-time scheduling is not set"),
    "cpu_shares": _noted("shares follow from what is reserved: deploy.resources.reservations.cpus"),
    "cpus": _honoured("resources.cpu_max, as deploy.resources.limits.cpus"),
    "cpuset": _refused("tasks are not tied to processors", "use cpus for a limit"),
    "credential_spec": _refused(_NO_WINDOWS),
    "depends_on": _honoured("depends_on: waits until those are healthy, at the first start"),
    "deploy": _honoured("count, resources, restart, update and placement: see below"),
    "develop": _noted("only docker compose watch reads it"),
    "device_cgroup_rules": _refused("rules for devices are not set", "use devices"),
    "devices": _honoured("docker.devices"),
    "dns": _honoured("docker.dns"),
    "dns_opt": _refused("options of the resolver are not set"),
    "dns_search": _refused("search domains are not set", "write full names"),
    "domainname": _refused("a domain name is not set", "write hostname: name.domain"),
    "entrypoint": _honoured("entrypoint"),
    "env_file": _honoured("env; `cube run` reads the file, environment wins over it"),
    "environment": _honoured("env; a name without a value has that of the environment of cube run"),
    "expose": _noted("opens nothing: a port that others reach has to be in ports"),
    "extends": _honoured("what the service is merged over, of this file or of another one"),
    "external_links": _refused(*_NO_NAMES),
    "extra_hosts": _honoured("docker.extra_hosts"),
    "gpus": _honoured("docker.gpus"),
    "group_add": _refused("supplementary groups are not set", "user: USER:GROUP sets one group"),
    "healthcheck": _honoured("a check of type exec"),
    "hostname": _honoured("docker.hostname"),
    "image": _honoured("image"),
    "init": _honoured("docker.init"),
    "ipc": _refused(_HOST_SHARED, "", "private", "none", "shareable"),
    "isolation": _refused(_NO_WINDOWS, "", "default"),
    "label_file": _honoured("docker.labels; `cube run` reads the file, labels wins over it"),
    "labels": _honoured("docker.labels"),
    "links": _refused(*_NO_NAMES),
    "logging": _honoured(
        "nothing, with a warning: Cube keeps what a task prints by its own bounds"
    ),
    "mac_address": _refused("a MAC address is not set"),
    "mem_limit": _honoured("resources.memory, or memory_max beside a reservation"),
    "mem_reservation": _honoured("resources.memory"),
    "mem_swappiness": _refused("swapping is not tuned: tasks have no swap", "", 0),
    "memswap_limit": _honoured("less the memory limit: docker.memory_swap"),
    "models": _refused("are run by Docker Model Runner", "run the model as a service of its own"),
    "network_mode": _honoured("docker.network_mode: bridge, host, none, an existing network"),
    "networks": _honoured("nothing, or docker.network_mode: see networks at the top level"),
    "oom_kill_disable": _refused("a task that exceeds its memory is always ended"),
    "oom_score_adj": _refused("the kernel's choice whom to end is not tuned", "", 0),
    "pid": _refused(_HOST_SHARED),
    "pids_limit": _honoured("resources.pids"),
    "platform": _honoured("placement constraints on node.os and node.arch"),
    "ports": _honoured("ports, each called as its port in the container: CUBE_ADDR_8080"),
    "post_start": _refused(*_NO_HOOKS),
    "pre_stop": _refused(*_NO_HOOKS),
    "privileged": _honoured("docker.privileged"),
    "profiles": _honoured(
        "services none of whose profiles is active (--profile, COMPOSE_PROFILES) are left out"
    ),
    "provider": _refused("is run by a plugin of Docker Compose"),
    "pull_policy": _honoured("docker.pull: always, never, missing"),
    "pull_refresh_after": _refused("images are not pulled again by age", "pull_policy: always"),
    "read_only": _honoured("docker.read_only"),
    "restart": _honoured("restart.policy and attempts; without it, the job type's default"),
    "runtime": _refused("the engine's default runtime is used", "", "runc"),
    "scale": _honoured("count, as deploy.replicas"),
    "secrets": _honoured("mounts of type secret, at /run/secrets/NAME without a target"),
    "security_opt": _honoured("docker.security_opt"),
    "shm_size": _honoured("docker.shm_size"),
    "stdin_open": _refused("tasks have no standard input", "take it out; cube exec for a shell"),
    "stop_grace_period": _honoured("stop_timeout"),
    "stop_signal": _honoured("stop_signal"),
    "storage_opt": _refused("options of the storage driver are not set"),
    "sysctls": _refused("kernel parameters are not set", "set them on the node"),
    "tmpfs": _honoured("mounts of type tmpfs"),
    "tty": _refused("tasks have no terminal", "take it out; cube exec for a shell"),
    "ulimits": _honoured("ulimits"),
    "use_api_socket": _refused("tasks get no access to the engine"),
    "user": _honoured("user"),
    "userns_mode": _refused(_HOST_SHARED),
    "uts": _refused(_HOST_SHARED),
    "volumes": _honoured("mounts"),
    "volumes_from": _refused("a task cannot mount what another one has", "name the volumes"),
    "working_dir": _honoured("working_dir"),
    "x-cube": _honoured("any key of a group of a job file; it wins"),
}

DEPLOY = {
    "endpoint_mode": _noted("Cube gives no virtual address: cube service resolve lists the tasks'"),
    "labels": _noted("labels of the service; those of containers are the service's labels"),
    "mode": _honoured("the job's type: global is system, replicated-job is batch"),
    "placement": _honoured("placement"),
    "replicas": _honoured("count"),
    "resources": _honoured("resources"),
    "restart_policy": _honoured("restart"),
    "rollback_config": _honoured(
        "nothing: a rollback follows update_config; a warning if it differs"
    ),
    "update_config": _honoured("update"),
}

UPDATE = {
    "delay": _noted("there is no pause beside monitor, which becomes update.min_healthy", "0s"),
    "failure_action": _honoured("update.on_failure: pause or rollback"),
    "max_failure_ratio": _noted(
        "a rollout has failed when one task has used up its restarts", 0, "0"
    ),
    "monitor": _honoured("update.min_healthy"),
    "order": _honoured("update.order"),
    "parallelism": _honoured("update.parallelism; 0 is all at once"),
}

_DEVICE_REQUEST = {
    "capabilities": _honoured("gpu and what belongs to it"),
    "count": _honoured("docker.gpus"),
    "device_ids": _honoured("docker.gpus"),
    "driver": _refused("of these, only nvidia is known", "", "nvidia"),
    "options": _refused("options of GPUs are not passed on"),
}
_FILE_REFERENCE = {
    key: _honoured(f"{key} of the mount") for key in ("source", "target", "uid", "gid", "mode")
}
_FILE_SOURCE = {
    "name": _honoured("its name in the cluster"),
    "content": _refused(*_STORED),
    "environment": _refused(*_STORED),
    "file": _refused(*_STORED),
    "external": _honoured("required: it is one that the cluster keeps"),
    "labels": _noted(_NO_LABELS),
    "driver": _refused(*_STORED),
    "driver_opts": _refused(*_STORED),
    "template_driver": _refused("values are mounted as they are"),
}

SECTIONS: dict[str, dict[str, Key]] = {
    "top level": TOP,
    "service": SERVICE,
    "deploy": DEPLOY,
    "deploy.placement": {
        "constraints": _honoured("placement.constraints: node.id, node.hostname, node.labels.X, "
                                 "node.platform.os, node.platform.arch"),
        "max_replicas_per_node": _honoured("placement.max_per_node"),
        "preferences": _honoured("placement.spread_over"),
    },
    "deploy.placement.preferences": {"spread": _honoured("placement.spread_over")},
    "deploy.resources": {
        "limits": _honoured("resources"),
        "reservations": _honoured("resources"),
    },
    "deploy.resources.limits": {
        "cpus": _honoured("resources.cpu_max"),
        "memory": _honoured("resources.memory, or memory_max beside a reservation"),
        "pids": _honoured("resources.pids"),
    },
    "deploy.resources.reservations": {
        "cpus": _honoured("resources.cpu"),
        "devices": _honoured("docker.gpus"),
        "generic_resources": _refused(
            "nodes have no resources of that kind", "label nodes, and use placement.constraints"
        ),
        "memory": _honoured("resources.memory"),
    },
    "deploy.resources.reservations.devices": _DEVICE_REQUEST,
    "deploy.restart_policy": {
        "condition": _honoured("restart.policy"),
        "delay": _honoured("restart.delay"),
        "max_attempts": _honoured("restart.attempts"),
        "window": _honoured("restart.window"),
    },
    "deploy.update_config": UPDATE,
    "deploy.rollback_config": {
        key: _honoured("as update_config; a warning if it differs") for key in UPDATE
    },
    "depends_on": {
        "condition": _honoured("service_completed_successfully in batch jobs only"),
        "required": _honoured("false: a service that is left out by its profiles is not waited for"),
        "restart": _noted("a task goes on when one it depends on is replaced"),
    },
    "devices": {
        "permissions": _honoured("docker.devices"),
        "source": _honoured("docker.devices"),
        "target": _honoured("docker.devices"),
    },
    "env_file": {
        "format": _honoured("raw: values as they stand"),
        "path": _honoured("env"),
        "required": _honoured("false: the file may be missing"),
    },
    "extends": {
        "file": _honoured("the file it is in, from the directory of the file that says so"),
        "service": _honoured("what the service is merged over"),
    },
    "gpus": _DEVICE_REQUEST,
    "include": {
        "env_file": _honoured("variables of what is included; without it, .env in its directory"),
        "path": _honoured("the file; of several, each is merged over those before it"),
        "project_directory": _honoured("to which its paths are relative; else the file's own"),
    },
    "healthcheck": {
        "disable": _honoured("no check"),
        "interval": _honoured("interval; 30s without it"),
        "retries": _honoured("unhealthy_after; 3 without it"),
        "start_interval": _noted("until the first success, checks come at most 1 s apart anyway"),
        "start_period": _honoured("start_period"),
        "test": _honoured("command: CMD, CMD-SHELL, text for a shell, NONE for no check"),
        "timeout": _honoured("timeout; 30s without it"),
    },
    "logging": {
        "driver": _refused(
            "Cube reads what tasks print from the engine",
            "take it out; cube logs reads from any node", "json-file", "local", "journald",
        ),
        "options": _noted("Cube keeps what tasks print by its own bounds"),
    },
    "ports": {
        "app_protocol": _noted("nothing in Cube asks for it"),
        "host_ip": _refused(
            "Cube publishes ports on the address that its node advertises, and on no other",
            "take it out, if other hosts may reach the port", "0.0.0.0", "::", "[::]",
        ),
        "mode": _honoured("nothing: a port is published where its task runs, and only there"),
        "name": _honoured("the port's name"),
        "protocol": _honoured("protocol: tcp or udp"),
        "published": _honoured("host"),
        "target": _honoured("target"),
    },
    "service networks": {
        "aliases": _refused(*_NO_NAMES),
        "driver_opts": _refused("options of networks are not passed on"),
        "gw_priority": _refused("tasks are on one network"),
        "interface_name": _refused("interfaces are not named"),
        "ipv4_address": _refused("tasks have no address of their own"),
        "ipv6_address": _refused("tasks have no address of their own"),
        "link_local_ips": _refused("tasks have no address of their own"),
        "mac_address": _refused("a MAC address is not set"),
        "priority": _noted("tasks are on one network"),
    },
    "service secrets": _FILE_REFERENCE,
    "service configs": _FILE_REFERENCE,
    "ulimits": {"hard": _honoured("ulimits"), "soft": _honoured("ulimits")},
    "volumes": {
        "bind": _honoured("see below"),
        "consistency": _noted("is for Docker on a Mac"),
        "image": _refused("mounts of images are not made"),
        "read_only": _honoured("read_only"),
        "source": _honoured("source"),
        "target": _honoured("target"),
        "tmpfs": _honoured("see below"),
        "type": _honoured("type: volume, bind or tmpfs"),
        "volume": _honoured("see below"),
    },
    "volumes.bind": {
        "create_host_path": _noted("a path that is missing on the node is not made", False),
        "propagation": _refused("mounts of one side are not seen on the other", "", "rprivate"),
        "recursive": _refused("mounts below a path come along as the engine has it", "", "enabled"),
        "selinux": _refused("labels of SELinux are not set", "set them on the node"),
    },
    "volumes.tmpfs": {
        "mode": _refused("the mode of a tmpfs is the engine's, 1777", "", "1777", 0o1777),
        "size": _honoured("size"),
    },
    "volumes.volume": {
        "labels": _noted(_NO_LABELS),
        "nocopy": _refused("a new volume begins with what the image has there"),
        "subpath": _refused("a volume is mounted as a whole"),
    },
    "network": {
        "attachable": _noted("Cube has no network across nodes"),
        "driver": _noted("Cube has no network across nodes", "bridge", "default"),
        "driver_opts": _refused("options of networks are not passed on"),
        "enable_ipv4": _refused("addresses of tasks are the engine's choice", "", True),
        "enable_ipv6": _refused("addresses of tasks are the engine's choice", "", False),
        "external": _honoured("docker.network_mode, for a service that is on this one alone"),
        "internal": _refused(
            "tasks on it could reach other networks all the same",
            "network_mode: none shuts a task off",
        ),
        "ipam": _refused("addresses of tasks are the engine's choice"),
        "labels": _noted(_NO_LABELS),
        "name": _honoured("docker.network_mode, when it is external"),
    },
    "volume": {
        "driver": _refused(
            "volumes are directories of the engine on one node", "a bind mount of what the node "
            "has mounted", "local",
        ),
        "driver_opts": _refused(
            "options of volumes are not passed on", "a bind mount of what the node has mounted"
        ),
        "external": _honoured("the volume's name as it is, without the project's in front"),
        "labels": _noted(_NO_LABELS),
        "name": _honoured("the volume's name, as it is"),
    },
    "secret": {key: one for key, one in _FILE_SOURCE.items() if key != "content"},
    "config": {
        key: one for key, one in _FILE_SOURCE.items() if key not in ("driver", "driver_opts")
    },
}  # fmt: skip


def reference() -> str:
    """docs/compose.md below its first heading: a table per section."""
    parts = []
    for name, keys in SECTIONS.items():
        parts += [f"## {name}", "", "| key | | becomes, or why not |", "|---|---|---|"]
        for key, one in keys.items():
            words = one.words + (f" ({one.hint})" if one.hint else "")
            if one.neutral:
                accepted = ", ".join(f"`{value}`" for value in one.neutral)
                words += f". Accepted: {accepted}"
            fate = "" if one.fate is Fate.HONOURED else one.fate.value
            parts.append(f"| `{key}` | {fate} | {words} |".replace(" |  | ", " | | "))
        parts.append("")
    return "\n".join(parts)
