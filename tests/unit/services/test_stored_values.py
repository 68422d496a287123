"""Secrets sealed on the way in, and opened for the driver of the task's own node."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.model import commands as c
from cube.model.errors import DriverFailed, Unavailable
from cube.model.ids import ClusterId, NodeId, TaskId
from cube.model.launch import Launch, LaunchFile, LaunchValue
from cube.model.stored import (
    FINGERPRINT_BYTES,
    SEALED_BYTES_MAX,
    VALUE_BYTES_MAX,
    StoredKind,
    StoredRef,
)
from cube.model.trust import NodeKeys
from cube.services.keyring import Keyring
from cube.services.stored_values import StoredValues
from tests.builders import Machine
from tests.fakes.disk import FakeDisk

DB = StoredRef(StoredKind.SECRET, "db")
CONF = StoredRef(StoredKind.CONFIG, "conf")


class World:
    """A state, and a node with these keys."""

    def __init__(self, key: bytes = b"k" * 32) -> None:
        self.machine = Machine()
        keyring = Keyring(FakeDisk())
        keyring.take(NodeKeys(cluster_key=key, gossip_keys=(b"g" * 32,)))
        self.values = StoredValues(
            lambda: self.machine.state, keyring, open_envelope, seal_envelope
        )

    def put(self, value: bytes, name: str = "db") -> None:
        data, fingerprint = self.values.seal(name, value)
        command = c.StoreVersion(StoredKind.SECRET, name, data, len(value), fingerprint)
        assert getattr(self.machine.do(command), "changed", None) is True


def launch(**fields: Any) -> Launch:
    return Launch(
        cluster_id=ClusterId("c"), node_id=NodeId("n"), task_id=TaskId("t"), task_name="j.g.0",
        job="j", group="g", attempt=1, **fields,
    )  # fmt: skip


def file(ref: StoredRef, version: int = 1) -> LaunchFile:
    return LaunchFile(value=LaunchValue(ref, version), target="/f", mode=0o400)


def test_a_launch_gets_the_versions_it_names() -> None:
    world = World()
    for value in (b"one", b"two"):
        world.put(value)
    _ = world.machine.do(c.StoreVersion(StoredKind.CONFIG, "conf", b"\x00text", 5))
    found = world.values.complete(
        launch(
            env={"A": "plain"}, env_from={"P": LaunchValue(DB, 1)}, files=(file(DB, 2), file(CONF)),
            login_from=LaunchValue(DB, 0),
        )
    )  # fmt: skip
    assert found.env == {"A": "plain", "P": "one"}
    assert [one.data for one in found.files] == [b"two", b"\x00text"]
    assert (found.login, found.login_from, found.env_from) == ("two", None, {})


def test_what_needs_nothing_is_left_alone() -> None:
    plain = launch(env={"A": "b"})
    assert World().values.complete(plain) is plain
    assert World().values.with_login(plain) is plain


def test_an_image_is_pulled_with_the_login_and_with_nothing_else() -> None:
    world = World()
    world.put(b"user:pw", "login")
    asked = launch(
        login_from=LaunchValue(StoredRef(StoredKind.SECRET, "login"), 0),
        env_from={"P": LaunchValue(DB, 1)},
    )
    found = world.values.with_login(asked)
    assert (found.login, found.env_from, found.env) == ("user:pw", asked.env_from, {})


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"env_from": {"P": LaunchValue(DB, 9)}}, "secret_missing", "no version 9 of secret db"),
        ({"files": (file(CONF),)}, "config_missing", "no version 1 of config conf"),
        ({"login_from": LaunchValue(CONF, 0)}, "config_missing", "there is no config conf"),
        ({"env_from": {"P": LaunchValue(DB, 1)}}, "secret_not_text", "env P: secret db is no text"),
        ({"env_from": {"P": LaunchValue(DB, 2)}}, "secret_not_text", "mount it as a file"),
    ],
)
def test_what_cannot_be_given_is_said_without_the_value(
    asked: dict[str, Any], code: str, words: str
) -> None:
    world = World()
    world.put(b"canary\xff")
    world.put(b"canary\x00")
    with pytest.raises(DriverFailed) as caught:
        _ = world.values.complete(launch(**asked))
    assert (caught.value.code, caught.value.transient) == (code, False)
    assert words in caught.value.message
    assert "canary" not in repr(caught.value)
    is_shown = caught.value.__context__ is not None and not caught.value.__suppress_context__
    assert not is_shown, "a traceback would show the value"


def test_another_cluster_s_keys_open_nothing() -> None:
    world, other = World(), World(b"x" * 32)
    world.put(b"value")
    other.machine = world.machine
    with pytest.raises(DriverFailed, match="does not open") as caught:
        _ = other.values.complete(launch(files=(file(DB),)))
    assert caught.value.code == "secret_sealed"


def test_an_envelope_opens_under_its_own_name_only() -> None:
    world = World()
    data, fingerprint = world.values.seal("db", b"value")
    moved = c.StoreVersion(StoredKind.SECRET, "other", data, 5, fingerprint)
    _ = world.machine.do(moved)
    with pytest.raises(DriverFailed, match="does not open"):
        _ = world.values.complete(launch(files=(file(StoredRef(StoredKind.SECRET, "other")),)))


def test_a_fingerprint_tells_equal_values_of_a_name_and_nothing_else() -> None:
    world = World()
    (first, one), (second, two) = (world.values.seal("db", b"value") for _ in range(2))
    assert one == two and len(one) == FINGERPRINT_BYTES
    assert first != second
    assert world.values.seal("db", b"other")[1] != one
    assert world.values.seal("name", b"value")[1] != one
    assert World(b"x" * 32).values.seal("db", b"value")[1] != one
    assert b"value" not in first


def test_the_largest_value_fits_in_its_envelope() -> None:
    data, _ = World().values.seal("db", bytes(VALUE_BYTES_MAX))
    assert len(data) <= SEALED_BYTES_MAX


def test_a_node_without_keys_seals_nothing() -> None:
    values = StoredValues(
        lambda: Machine().state, Keyring(FakeDisk()), open_envelope, seal_envelope
    )
    with pytest.raises(Unavailable):
        _ = values.seal("db", b"value")


def test_no_repr_of_a_completed_launch_shows_a_value() -> None:
    world = World()
    world.put(b"canary")
    found = world.values.complete(
        launch(files=(file(DB),), env_from={"P": LaunchValue(DB, 1)}, login_from=LaunchValue(DB, 0))
    )
    assert b"canary" in msgspec.msgpack.encode(found)
    assert "canary" not in f"{found!r} {found.files!r}"
