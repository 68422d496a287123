"""What a container is made with: limits, rights, networks, and what its node allows."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import docker.errors
import msgspec
import pytest

from cube.adapters.docker_driver import DockerSettings
from cube.model.allowed import ALLOW_WORDS, CAPABILITIES
from cube.model.errors import DriverFailed
from cube.model.spec import DockerOptions, MountSpec, MountType, Ulimit
from tests.contract.docker_rig import (
    DockerRig,
    run,
    shell,
    with_options,
)
from tests.contract.driver_cases import ended, new_task_id, read, text

pytestmark = pytest.mark.docker


# -- what the engine is asked for -----------------------------------------------------------------


async def test_limits_and_options_are_the_containers(rig: DockerRig) -> None:
    launch = msgspec.structs.replace(
        rig.launch(new_task_id()),
        env={"A": "1"},
        user="1000:1000",
        working_dir="/tmp",
        stop_signal="SIGINT",
        cpu_milli=250,
        cpu_max_milli=1500,
        memory_bytes=16 << 20,
        memory_limit_bytes=64 << 20,
        pids_limit=77,
        mounts=(
            MountSpec(MountType.TMPFS, "/scratch", size_bytes=1 << 20),
            MountSpec(MountType.VOLUME, "/data", source=f"v-{rig.node_id}", read_only=True),
        ),
        docker=DockerOptions(
            read_only=True,
            cap_drop=("NET_RAW",),
            memory_swap_bytes=8 << 20,
            ulimits=(Ulimit("nofile", 100, 200),),
            shm_size_bytes=1 << 20,
            dns=("192.0.2.53",),
            extra_hosts=("other:192.0.2.7",),
            hostname="inside",
            labels={"team": "web", "cube.node": "a lie"},
        ),
    )
    seen = await run(rig, launch)
    inspected = rig.inspected(launch.task_id)
    assert inspected["Id"] == seen.handle
    assert len(seen.handle) == 64
    host, config = inspected["HostConfig"], inspected["Config"]
    wanted = {
        "CpuShares": 256,
        "CpuPeriod": 100_000,
        "CpuQuota": 150_000,
        "MemoryReservation": 16 << 20,
        "Memory": 64 << 20,
        "MemorySwap": 72 << 20,
        "PidsLimit": 77,
        "ReadonlyRootfs": True,
        "CapAdd": sorted(CAPABILITIES - {"NET_RAW"}),
        "CapDrop": ["ALL"],
        "Init": True,
        "SecurityOpt": ["no-new-privileges"],
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}],
        "ShmSize": 1 << 20,
        "Dns": ["192.0.2.53"],
        "ExtraHosts": ["other:192.0.2.7"],
        "Privileged": False,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    }
    assert {key: host[key] for key in wanted} == wanted
    assert host["LogConfig"]["Config"] == {"max-size": str(10 << 20), "max-file": "2"}
    assert config["User"] == "1000:1000"
    assert config["WorkingDir"] == "/tmp"
    assert config["StopSignal"] == "SIGINT"
    assert config["Hostname"] == "inside"
    assert "A=1" in config["Env"]
    assert config["Labels"]["team"] == "web"
    assert config["Labels"]["cube.node"] == rig.node_id
    for path, value in (("memory/memory.limit_in_bytes", "67108864"), ("pids/pids.max", "77")):
        said = await rig.driver.execute(
            launch.task_id,
            1,
            ("sh", "-c", f"cat /sys/fs/cgroup/{path} || cat /sys/fs/cgroup/*.max"),
            30_000,
        )
        assert value in said.output.decode()
    said = await rig.driver.execute(
        launch.task_id, 1, ("sh", "-c", "id -u; hostname; mount"), 30_000
    )
    assert said.output.decode().startswith("1000\ninside\n")
    assert "/scratch type tmpfs" in said.output.decode()
    await rig.driver.stop(launch.task_id, 1, "SIGKILL", 0)
    await rig.driver.remove(launch.task_id, keep_logs=False)
    rig.client.remove_volume(f"v-{rig.node_id}")


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("privileged", {"docker": DockerOptions(privileged=True)}),
        ("host_network", {"docker": DockerOptions(network_mode="host")}),
        ("network", {"docker": DockerOptions(network_mode="container:x")}),
        ("cap_add", {"docker": DockerOptions(cap_add=("SYS_ADMIN",))}),
        ("devices", {"docker": DockerOptions(devices=("/dev/fuse",))}),
        ("gpus", {"docker": DockerOptions(gpus="all")}),
        ("security_opt", {"docker": DockerOptions(security_opt=("seccomp=unconfined",))}),
        ("bind", {"mounts": (MountSpec(MountType.BIND, "/x", source="/etc"),)}),
    ],
)
async def test_what_the_node_does_not_allow_is_refused(
    rig: DockerRig, word: str, changes: dict[str, Any]
) -> None:
    launch = msgspec.structs.replace(rig.launch(new_task_id()), **changes)
    for call in (rig.driver.prepare, rig.driver.start):
        with pytest.raises(DriverFailed, match=word) as failed:
            await call(launch)
        assert (failed.value.code, failed.value.transient) == ("not_allowed", False)
    assert rig.containers() == []


async def test_what_the_node_allows_is_done(docker_host: str) -> None:
    settings = DockerSettings(host=docker_host, allow=("bind", "cap_add"))
    rig = DockerRig(docker_host, settings)
    await rig.open()
    try:
        launch = msgspec.structs.replace(
            rig.launch(new_task_id()),
            mounts=(MountSpec(MountType.BIND, "/x", source="/etc", read_only=True),),
            docker=DockerOptions(cap_add=("SYS_PTRACE",)),
        )
        await run(rig, launch)
        host = rig.inspected(launch.task_id)["HostConfig"]
        assert host["CapAdd"] == sorted({*CAPABILITIES, "SYS_PTRACE"})
        assert [mount["Source"] for mount in host["Mounts"]] == ["/etc"]
    finally:
        await rig.close()


async def test_rights_are_those_that_are_documented(rig: DockerRig) -> None:
    """As the kernel sees them in the container: the bits of CapEff."""
    numbers = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6,
               "SETUID": 7, "SETPCAP": 8, "NET_BIND_SERVICE": 10, "NET_RAW": 13, "SYS_CHROOT": 18,
               "MKNOD": 27, "AUDIT_WRITE": 29, "SETFCAP": 31}  # fmt: skip
    assert set(numbers) == CAPABILITIES
    plain = shell(rig.launch(new_task_id()), "grep -E 'CapBnd|NoNewPrivs' /proc/1/status")
    less = msgspec.structs.replace(
        shell(rig.launch(new_task_id()), "grep CapBnd /proc/1/status"),
        docker=DockerOptions(cap_drop=("ALL",), cap_add=("CHOWN",)),
    )
    said = []
    for launch in (plain, less):
        await run(rig, launch)
        await ended(rig, launch.task_id)
        said.append(text(await read(rig, launch.task_id)).split())
    assert int(said[0][1], 16) == sum(1 << number for number in numbers.values())
    assert said[0][3] == "1"
    assert int(said[1][1], 16) == 1


async def test_what_confines_a_container_less_works_where_it_is_allowed(docker_host: str) -> None:
    settings = DockerSettings(host=docker_host, allow=ALLOW_WORDS)
    rig = DockerRig(docker_host, settings)
    await rig.open()
    try:
        device = msgspec.structs.replace(
            shell(rig.launch(new_task_id()), "dd if=/dev/other bs=1 count=3 2>/dev/null | wc -c"),
            docker=DockerOptions(devices=("/dev/zero:/dev/other:r",)),
        )
        host = msgspec.structs.replace(
            shell(rig.launch(new_task_id()), "readlink /proc/1/ns/net"),
            docker=DockerOptions(network_mode="host"),
        )
        none = msgspec.structs.replace(
            shell(rig.launch(new_task_id()), "ls /sys/class/net"),
            docker=DockerOptions(network_mode="none"),
        )
        unconfined = msgspec.structs.replace(
            shell(rig.launch(new_task_id()), "grep -E 'Seccomp:' /proc/1/status"),
            docker=DockerOptions(security_opt=("seccomp=unconfined",)),
        )
        said = []
        for launch in (device, host, none, unconfined):
            await run(rig, launch)
            await ended(rig, launch.task_id)
            said.append(text(await read(rig, launch.task_id)).split())
        network = os.readlink("/proc/self/ns/net")
        assert said == [["3"], [network], ["lo"], ["Seccomp:", "0"]]
        gpu = msgspec.structs.replace(rig.launch(new_task_id()), docker=DockerOptions(gpus="all"))
        if "nvidia" not in (await rig.driver.fingerprint()).attributes["runtimes"]:
            with pytest.raises(DriverFailed) as failed:
                await run(rig, gpu)
            assert (failed.value.code, failed.value.transient) == ("device_missing", False)
        for name, code, changes in (
            (
                "/dev/nothing",
                "device_missing",
                {"docker": DockerOptions(devices=("/dev/nothing",))},
            ),
            (
                "/no/such",
                "mount_missing",
                {"mounts": (MountSpec(MountType.BIND, "/x", "/no/such"),)},
            ),
        ):
            missing = msgspec.structs.replace(rig.launch(new_task_id()), **changes)
            with pytest.raises(DriverFailed, match=name) as failed:
                await run(rig, missing)
            assert (failed.value.code, failed.value.transient) == (code, False)
    finally:
        await rig.close()


async def test_a_privileged_container_has_every_right_that_the_engine_has(docker_host: str) -> None:
    rig = DockerRig(docker_host, DockerSettings(host=docker_host, allow=("privileged",)))
    await rig.open()
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    status = Path("/proc/self/status").read_text()
    mine = int(next(line for line in status.splitlines() if "CapBnd" in line).split()[1], 16)
    try:
        launch = with_options(
            shell(rig.launch(new_task_id()), "grep CapBnd /proc/1/status"), privileged=True
        )
        if (
            mine != (1 << last + 1) - 1
        ):  # in a container ourselves, which cannot give what it has not
            with pytest.raises(DriverFailed, match="caps"):
                await run(rig, launch)
            return
        await run(rig, launch)
        await ended(rig, launch.task_id)
        assert int(text(await read(rig, launch.task_id)).split()[1], 16) == mine
    finally:
        await rig.close()


async def test_an_existing_network_is_joined_and_a_missing_one_named(docker_host: str) -> None:
    rig = DockerRig(docker_host, DockerSettings(host=docker_host, allow=("network",)))
    await rig.open()
    name = f"net-{rig.node_id}"
    try:
        launch = with_options(rig.launch(new_task_id()), network_mode=name)
        with pytest.raises(DriverFailed, match=f"docker network create {name}") as failed:
            await rig.driver.prepare(launch)
        assert (failed.value.code, failed.value.transient) == ("network_missing", False)
        rig.client.create_network(name, driver="bridge")
        await run(rig, launch)
        assert list(rig.inspected(launch.task_id)["NetworkSettings"]["Networks"]) == [name]
    finally:
        await rig.close()
        with contextlib.suppress(docker.errors.NotFound):
            rig.client.remove_network(name)


@pytest.mark.parametrize("path", ["/no/such/command", "/etc/passwd"])
async def test_what_the_init_cannot_execute_is_named(rig: DockerRig, path: str) -> None:
    launch = msgspec.structs.replace(rig.launch(new_task_id()), command=(path,))
    await run(rig, launch)
    seen = await ended(rig, launch.task_id)
    assert seen.exit_code in (126, 127)
    assert path in seen.reason


async def test_an_exit_of_its_own_with_such_a_code_is_not_misread(rig: DockerRig) -> None:
    launch = rig.exits(rig.launch(new_task_id()), 127)
    await run(rig, launch)
    seen = await ended(rig, launch.task_id)
    assert (seen.exit_code, seen.reason) == (127, "")


@pytest.mark.parametrize("init", [True, False])
async def test_a_program_that_handles_no_signal_obeys_with_an_init_only(
    rig: DockerRig, init: bool
) -> None:
    """Why it is on: the kernel gives process 1 no signal that it has no handler for."""
    launch = msgspec.structs.replace(
        rig.launch(new_task_id()), command=("sleep", "1000"), docker=DockerOptions(init=init)
    )
    await run(rig, launch)
    await rig.driver.stop(launch.task_id, 1, "SIGTERM", 60_000 if init else 300)
    seen = await rig.driver.inspect(launch.task_id, 1)
    assert seen.exit_code == (128 + 15 if init else 128 + 9)
