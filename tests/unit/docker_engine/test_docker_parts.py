"""The parts of the docker driver that need no engine."""

from __future__ import annotations

import asyncio
import io
import struct
import threading
from types import SimpleNamespace
from typing import Any, cast

import docker
import docker.errors
import msgspec
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from cube.adapters.docker_engine import containers
from cube.adapters.docker_engine.channel import WAITING_BYTES_MAX, Channel
from cube.adapters.docker_engine.engine import describe
from cube.adapters.docker_engine.failures import explain, pull_failed, shorten
from cube.adapters.docker_engine.frames import FRAME_BYTES_MAX, read_frames
from cube.adapters.docker_engine.marks import Marks, observe, time_ns
from cube.adapters.docker_engine.request import check_allowed, container_config
from cube.adapters.docker_engine.settings import DockerSettings
from cube.model.allowed import ALLOW_WORDS, asks
from cube.model.errors import DriverFailed
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, LaunchPort, Observation, RunState
from cube.model.spec import DockerOptions, MountSpec, MountType, Protocol

MARKS = Marks(ClusterId("c"), NodeId("n"), "boot-1")
TASK = TaskId("00ff")
LAUNCH = Launch(
    cluster_id=ClusterId("c"),
    node_id=NodeId("n"),
    task_id=TASK,
    task_name="job.group.0",
    job="job",
    group="group",
    attempt=2,
    image="image",
)


def config_of(log_driver: str = "json-file", **changes: Any) -> dict[str, Any]:
    launch = msgspec.structs.replace(LAUNCH, **changes)
    return cast("dict[str, Any]", container_config(launch, MARKS, DockerSettings(), log_driver))


# -- the create request ---------------------------------------------------------------------------


def test_what_a_launch_leaves_empty_is_the_images() -> None:
    config = config_of(stop_signal="")
    assert set(config) == {
        "Image", "Env", "Labels", "HostConfig", "AttachStdout", "AttachStderr"
    }  # fmt: skip
    assert set(config["HostConfig"]) == {
        "LogConfig", "RestartPolicy", "Privileged", "Init", "ReadonlyRootfs", "SecurityOpt",
        "CapAdd", "CapDrop",
    }  # fmt: skip
    assert config["Labels"] == {
        "cube.cluster": "c",
        "cube.node": "n",
        "cube.task": "00ff",
        "cube.attempt": "2",
        "cube.boot": "boot-1",
        "cube.task_name": "job.group.0",
        "cube.job": "job",
        "cube.group": "group",
    }


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"cpu_milli": 1}, {"CpuShares": 2}),
        ({"cpu_milli": 1000}, {"CpuShares": 1024}),
        ({"cpu_max_milli": 1}, {"CpuPeriod": 100_000, "CpuQuota": 1000}),
        ({"cpu_max_milli": 64_000}, {"CpuQuota": 6_400_000}),
        ({"memory_bytes": 5}, {"MemoryReservation": 5}),
        ({"memory_limit_bytes": 7}, {"Memory": 7, "MemorySwap": 7}),
        ({"memory_limit_bytes": 7, "docker": DockerOptions(memory_swap_bytes=3)},
         {"Memory": 7, "MemorySwap": 10}),
        ({"docker": DockerOptions(cap_drop=("ALL",), cap_add=("chown", "CAP_SYS_TIME"))},
         {"CapAdd": ["CHOWN", "SYS_TIME"], "CapDrop": ["ALL"]}),
        ({"docker": DockerOptions(cap_drop=("all",))}, {"CapAdd": [], "CapDrop": ["ALL"]}),
        ({"docker": DockerOptions(cap_add=("ALL",), cap_drop=("NET_RAW",))},
         {"CapAdd": ["ALL"], "CapDrop": ["NET_RAW"]}),
        ({"docker": DockerOptions(gpus="all")}, {"DeviceRequests": [
            {"Driver": "", "Capabilities": [["gpu"]], "Count": -1}]}),
        ({"docker": DockerOptions(gpus="2")}, {"DeviceRequests": [
            {"Driver": "", "Capabilities": [["gpu"]], "Count": 2}]}),
        ({"docker": DockerOptions(gpus="a,b")}, {"DeviceRequests": [
            {"Driver": "", "Capabilities": [["gpu"]], "DeviceIDs": ["a", "b"]}]}),
        ({"docker": DockerOptions(devices=("/dev/a", "/dev/a:/dev/b:r"))}, {"Devices": [
            {"PathOnHost": "/dev/a", "PathInContainer": "/dev/a", "CgroupPermissions": "rwm"},
            {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"}]}),
        ({"docker": DockerOptions(privileged=True)}, {"Privileged": True, "SecurityOpt": []}),
        (
            {"docker": DockerOptions(privileged=True, security_opt=("no-new-privileges",))},
            {"Privileged": True, "SecurityOpt": ["no-new-privileges"]},
        ),
        ({"docker": DockerOptions(security_opt=("no-new-privileges:true", "label=x"))},
         {"SecurityOpt": ["label=x", "no-new-privileges"]}),
        ({"docker": DockerOptions(security_opt=("no-new-privileges:false",))},
         {"SecurityOpt": ["no-new-privileges:false"]}),
        ({"mounts": (MountSpec(MountType.TMPFS, "/t", size_bytes=9),)}, {"Mounts": [
            {"Type": "tmpfs", "Target": "/t", "ReadOnly": False,
             "TmpfsOptions": {"SizeBytes": 9}}]}),
    ],
)  # fmt: skip
def test_the_engine_is_told(changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    host = config_of(**changes)["HostConfig"]
    assert {key: host[key] for key in wanted} == wanted


def test_what_is_kept_of_the_rights_is_what_docker_documents_less_what_is_dropped() -> None:
    kept = (
        "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE NET_RAW SETFCAP"
    )
    kept += " SETGID SETPCAP SETUID SYS_CHROOT"
    host = config_of()["HostConfig"]
    assert (host["CapAdd"], host["CapDrop"]) == (kept.split(), ["ALL"])
    less = config_of(docker=DockerOptions(cap_drop=("cap_net_raw",)))["HostConfig"]
    assert less["CapAdd"] == [name for name in kept.split() if name != "NET_RAW"]
    assert not {"CapAdd", "CapDrop"} & set(
        config_of(docker=DockerOptions(privileged=True))["HostConfig"]
    )


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_output_that_the_engine_keeps_in_files_is_bounded(driver: str) -> None:
    assert config_of(driver)["HostConfig"]["LogConfig"] == {
        "Type": driver, "Config": {"max-size": str(10 << 20), "max-file": "2"}
    }  # fmt: skip


@pytest.mark.parametrize("driver", ["journald", "fluentd", ""])
def test_where_an_operator_sends_all_output_is_left_alone(driver: str) -> None:
    assert "LogConfig" not in config_of(driver)["HostConfig"]


def test_two_host_ports_may_lead_to_one_target() -> None:
    ports = tuple(
        LaunchPort(f"p{host}", host, 80, protocol, "127.0.0.1")
        for host, protocol in ((1, Protocol.TCP), (2, Protocol.TCP), (1, Protocol.UDP))
    )
    config = config_of(ports=ports)
    assert config["ExposedPorts"] == {"80/tcp": {}, "80/udp": {}}
    assert config["HostConfig"]["PortBindings"] == {
        "80/tcp": [
            {"HostIp": "127.0.0.1", "HostPort": "1"},
            {"HostIp": "127.0.0.1", "HostPort": "2"},
        ],
        "80/udp": [{"HostIp": "127.0.0.1", "HostPort": "1"}],
    }
    on_host = config_of(ports=ports, docker=DockerOptions(network_mode="host"))
    assert "PortBindings" not in on_host["HostConfig"]


def test_everything_not_allowed_is_named_at_once_and_allowing_it_all_allows() -> None:
    launch = msgspec.structs.replace(
        LAUNCH,
        mounts=(MountSpec(MountType.BIND, "/x", source="/etc"),),
        docker=DockerOptions(
            privileged=True,
            network_mode="host",
            cap_add=("X", "CHOWN"),
            devices=("/dev/x",),
            gpus="all",
            security_opt=("label=x",),
        ),
    )
    words = [word for word in ALLOW_WORDS if word not in ("network", "volumes")]
    with pytest.raises(DriverFailed) as failed:
        check_allowed(launch, ("network",))
    assert ", ".join(words) in failed.value.message
    assert "[drivers.docker] allow = [" + ", ".join(f'"{word}"' for word in words) + "]" in (
        failed.value.message
    )
    check_allowed(launch, ALLOW_WORDS)


def test_the_network_of_another_container_may_be_the_hosts() -> None:
    joined = DockerOptions(network_mode="container:database")
    assert asks(joined, ()) == ("host_network", "network")
    assert asks(DockerOptions(network_mode="mine"), ()) == ("network",)


@pytest.mark.parametrize("mode", ["", "bridge", "none", "default"])
def test_a_plain_container_is_always_allowed(mode: str) -> None:
    options = DockerOptions(
        network_mode=mode,
        cap_drop=("ALL",),
        cap_add=("cap_chown",),
        gpus="0",
        security_opt=("no-new-privileges:true",),
    )
    check_allowed(msgspec.structs.replace(LAUNCH, docker=options), ())


# -- what the engine says -------------------------------------------------------------------------

START = (
    "failed to create shim task: OCI runtime create failed: runc create failed: unable to start "
)
PORT = "driver failed programming external connectivity on endpoint x (0caff367f4cb): "


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("No such image: nothere:1", "image_missing"),
        ("invalid reference format: repository name must be lowercase", "image_invalid"),
        (f'{START}container process: exec: "x": executable file not found in $PATH: unknown',
         "command_not_found"),
        (f'{START}container process: exec: "/x/y": stat /x/y: no such file or directory: unknown',
         "command_not_found"),
        (f'{START}container process: exec: "/etc/passwd": permission denied: unknown',
         "command_not_executable"),
        ("unable to find user x: no matching entries in passwd file", "user_missing"),
        ("network nonet not found", "network_missing"),
        ('invalid mount config for type "bind": bind source path does not exist: /nosuch',
         "mount_missing"),
        ('error gathering device information while adding custom device "/dev/x": no such file or '
         "directory", "device_missing"),
        (f"{PORT}Error starting userland proxy: listen tcp4 192.0.2.1:2: bind: cannot assign "
         "requested address", "address_missing"),
        (f"{PORT}Error starting userland proxy: listen tcp4 127.0.0.1:2: bind: address already in "
         "use", "port_taken"),
        (f"{PORT}Bind for 127.0.0.1:2 failed: port is already allocated", "port_taken"),
        ("write /var/lib/docker/x: no space left on device", "disk_full"),
        ("client version 1.99 is too new. Maximum supported API version is 1.41", "engine_down"),
    ],
)  # fmt: skip
def test_a_sentence_of_the_engines_has_a_code(text: str, code: str) -> None:
    known = explain(text)
    assert known is not None
    assert known[0] == code


def test_the_layers_of_prose_are_taken_off() -> None:
    text = f'{START}container process: exec: "x": executable file not found in $PATH: unknown'
    assert shorten(text) == 'exec: "x": executable file not found in $PATH'
    assert len(shorten("x" * 10_000)) == 500


def test_a_pull_that_failed_for_an_unknown_reason_may_work_later() -> None:
    dns = "dial tcp: lookup registry.example: no such host"
    assert pull_failed("i", dns).transient
    assert pull_failed("i", dns).code == "pull_failed"
    assert not pull_failed("i", "manifest unknown").transient
    denied = "pull access denied for i, repository does not exist or may require 'docker login'"
    assert pull_failed("i", denied).code == "image_missing"


def test_why_there_was_no_answer_is_said_for_people() -> None:
    nested = "('Connection aborted.', FileNotFoundError(2, 'No such file or directory'))"
    assert "installed" in describe(requests.ConnectionError(nested))
    assert "timed out" in describe(requests.ReadTimeout("Read timed out. (read timeout=2)"))
    assert "group docker" in describe(PermissionError(13, "Permission denied"))
    assert describe(OSError()) == "OSError"


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("0001-01-01T00:00:00Z", 0),
        ("", 0),
        ("yesterday", 0),
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T00:00:00.5Z", 500_000_000),
        ("1970-01-01T01:00:00.25+01:00", 250_000_000),
        ("2026-11-23T14:50:10.345037708Z", 1_795_445_410_345_037_708),
    ],
)
def test_times_are_read_to_the_nanosecond(text: str, ns: int) -> None:
    assert time_ns(text) == ns


def inspected(status: str, **state: Any) -> dict[str, Any]:
    base = {
        "Status": status,
        "ExitCode": 0,
        "OOMKilled": False,
        "Error": "",
        "StartedAt": "1970-01-01T00:00:01Z",
        "FinishedAt": "0001-01-01T00:00:00Z",
    }
    return {"Id": "abc", "State": base | state}


EXITED = Observation(
    task_id=TASK,
    attempt=1,
    state=RunState.EXITED,
    handle="abc",
    exit_code=0,
    started_at_ms=1000,
    finished_at_ms=2000,
)
END = "1970-01-01T00:00:02Z"


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (inspected("exited", FinishedAt=END), EXITED),
        (inspected("dead", FinishedAt=END), EXITED),
        (inspected("exited", FinishedAt=END, ExitCode=137, OOMKilled=True),
         msgspec.structs.replace(EXITED, exit_code=137, oom_killed=True, reason="oom_killed")),
        # only a child was killed
        (inspected("exited", FinishedAt=END, OOMKilled=True), EXITED),
        # ended before the engine had heard that it started
        (inspected("exited", FinishedAt="1970-01-01T00:00:00.9Z"),
         msgspec.structs.replace(EXITED, finished_at_ms=1000)),
        (inspected("exited", FinishedAt=END, Error="x" * 999),
         msgspec.structs.replace(EXITED, reason="x" * 200)),
        (inspected("created"), Observation(task_id=TASK, attempt=1, state=RunState.GONE)),
        (inspected("removing"), Observation(task_id=TASK, attempt=1, state=RunState.GONE)),
        (inspected("paused"), Observation(task_id=TASK, attempt=1, state=RunState.RUNNING,
                                          handle="abc", reason="paused", started_at_ms=1000)),
    ],
)  # fmt: skip
def test_an_inspection_is_an_observation(said: dict[str, Any], wanted: Observation) -> None:
    assert observe(said, TASK, 1) == wanted


@pytest.mark.parametrize(
    ("name", "changes", "is_ours", "is_kept"),
    [
        ("cube-00ff-2", {}, True, False),
        ("cube-logs-00ff-2", {}, True, True),
        ("cube-00ff-3", {}, False, False),
        ("elsewhere", {}, False, False),
        ("cube-00ff-2", {"cube.node": "other"}, False, False),
        ("cube-00ff-2", {"cube.cluster": "other"}, False, False),
        ("cube-00ff-2", {"cube.attempt": "-2"}, False, False),
    ],
)
def test_ours_has_our_marks_and_our_name(
    name: str, changes: dict[str, str], is_ours: bool, is_kept: bool
) -> None:
    labels = MARKS.labels(LAUNCH) | changes
    listed = {"Id": "abc", "Names": [f"/{name}"], "Labels": labels, "State": "exited"}
    found = MARKS.found(listed)
    assert (found is not None) == is_ours
    if found is not None:
        assert (found.task_id, found.attempt, found.is_kept) == (TASK, 2, is_kept)


# -- names ----------------------------------------------------------------------------------------


class NameIsBusy:
    """An engine that is making, or removing, the container of that name in the background."""

    def __init__(self, busy_for: int) -> None:
        self.busy_for = busy_for
        self.started: list[str] = []

    def create_container_from_config(self, config: object, name: str) -> dict[str, str]:
        if self.busy_for > 0:
            self.busy_for -= 1
            conflict = requests.Response()
            conflict.status_code = 409
            raise docker.errors.APIError("Conflict", conflict, "the name is already in use")
        return {"Id": "abc"}

    def inspect_container(self, name: str) -> dict[str, Any]:
        if not self.started:
            raise docker.errors.NotFound("No such container")
        return inspected("running") | {"Config": {"Labels": MARKS.labels(LAUNCH)}}

    def start(self, container_id: str) -> None:
        self.started.append(container_id)


def test_a_name_that_is_being_made_or_removed_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(containers, "NAME_RETRY_S", 0.0)
    engine = NameIsBusy(busy_for=3)
    client = cast("docker.APIClient", engine)
    seen = containers.start(client, MARKS, LAUNCH, {}, is_first=True)
    assert (seen.state, engine.started) == (RunState.RUNNING, ["abc"])
    client = cast("docker.APIClient", NameIsBusy(busy_for=999))
    with pytest.raises(DriverFailed) as failed:
        containers.start(client, MARKS, LAUNCH, {}, is_first=True)
    assert (failed.value.code, failed.value.transient) == ("engine_busy", True)


# -- streams --------------------------------------------------------------------------------------


def answer(data: bytes) -> requests.Response:
    return cast("requests.Response", SimpleNamespace(raw=io.BytesIO(data)))


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=64)), max_size=9))
def test_frames_are_read_as_they_were_written(frames: list[tuple[int, bytes]]) -> None:
    data = b"".join(struct.pack(">BxxxL", kind, len(piece)) + piece for kind, piece in frames)
    names = {1: "stdout", 2: "stderr"}
    assert list(read_frames(answer(data))) == [(names[kind], piece) for kind, piece in frames]
    for cut in range(len(data)):
        whole = list(read_frames(answer(data[:cut])))
        assert whole == [(names[kind], piece) for kind, piece in frames][: len(whole)]


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_a_value_error(data: bytes) -> None:
    try:
        for stream, piece in read_frames(answer(data)):
            assert stream in ("stdout", "stderr")
            assert 0 < len(piece) <= FRAME_BYTES_MAX
    except ValueError:
        pass


async def test_a_channel_keeps_order_and_makes_a_fast_writer_wait() -> None:
    channel: Channel[int] = Channel()
    written: list[int] = []

    def write() -> None:
        for number in range(1000):
            channel.put(number, WAITING_BYTES_MAX // 4)
            written.append(number)
        channel.finish()

    thread = threading.Thread(target=write)
    thread.start()
    read: list[int] = []
    async with asyncio.timeout(30):
        async for batch in channel.batches():
            read += batch
            assert len(written) - len(read) <= 5  # four that wait, one between put and append
    thread.join()
    assert read == list(range(1000))


async def test_closing_a_channel_releases_a_writer_that_waits() -> None:
    channel: Channel[int] = Channel()
    answers: list[bool] = []

    def write() -> None:
        answers.append(channel.put(1, WAITING_BYTES_MAX))
        answers.append(channel.put(2, WAITING_BYTES_MAX))

    thread = threading.Thread(target=write)
    thread.start()
    channel.close()
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()
    assert answers[-1] is False


async def test_a_channel_ends_with_what_its_writer_met() -> None:
    channel: Channel[int] = Channel()
    channel.put(1, 1)
    channel.finish(DriverFailed("engine_down", "gone", transient=True))
    got: list[int] = []

    async def read() -> None:
        async for batch in channel.batches():
            got.extend(batch)

    with pytest.raises(DriverFailed):
        await read()
    assert got == [1]
