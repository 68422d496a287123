"""Joining by token: whom the desk lets in, and what the joiner tells to whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cube.adapters.trust.authority import X509Certificates, make_ca, read_node_certificate
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.model import commands as c
from cube.model.cluster import ClusterState
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import ClusterId, NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import Done
from cube.model.trust import JoinToken, NodeIdentity, NodeKeys, NodeRole, secret_hash
from cube.ports.trust import EnrolGrant, EnrolRefusal, EnrolRequest, RefusalCode
from cube.services.enrolment import (
    CA,
    CA_KEY_PURPOSE,
    CERTIFICATE,
    HOSTS_MAX,
    KEY,
    WRONG_FORGET_MS,
    WRONG_MAX,
    EnrolDesk,
    Enrolment,
    WrongSecrets,
)
from cube.services.keyring import Keyring, first_gossip_key
from tests.builders import Machine
from tests.fakes.cluster import FakeClock
from tests.fakes.disk import FakeDisk
from tests.virtual_time import run_virtual

CERTIFICATES = X509Certificates()
KEYS = NodeKeys(cluster_key=b"c" * 32, gossip_keys=(b"g" * 32,))
SECRET, NEW_SECRET = b"s" * 16, b"n" * 16
NODE = NodeId("7d1b7a52-0000-4000-8000-000000000002")
NODE_KEY = CERTIFICATES.make_key()
NODE_REQUEST = CERTIFICATES.make_request(NODE_KEY)
HOST = "10.0.0.2"


class Desk:
    """A cluster with nodes n1 and n2 and a CA, and one node's desk."""

    def __init__(self) -> None:
        self.machine = Machine("n1", "n2")
        self.clock = FakeClock()
        ca_key = self.ca_key = CERTIFICATES.make_key()
        self.ca = make_ca(ClusterId("cluster"), ca_key, self.clock.now_ms())
        sealed = seal_envelope(KEYS.cluster_key, CA_KEY_PURPOSE, ca_key.encode())
        gossip_key = first_gossip_key(KEYS, seal_envelope)
        self.init = c.InitTrust(self.ca, sealed, secret_hash(SECRET), gossip_key)
        assert self.machine.do(self.init) == Done()
        self.keyring = Keyring(FakeDisk())
        self.keyring.take(KEYS)
        self.desk = EnrolDesk(
            self.state, self.keyring, CERTIFICATES, open_envelope, self.clock
        )  # fmt: skip

    def state(self) -> ClusterState:
        return self.machine.state

    @property
    def token(self) -> JoinToken:
        return JoinToken(CERTIFICATES.fingerprint(self.ca), SECRET)

    def ask(self, host: str = HOST, **changes: Any) -> EnrolGrant | EnrolRefusal:
        values: dict[str, Any] = {"node_id": NODE, "secret": SECRET, "request_pem": NODE_REQUEST}
        return self.desk.enrol(host, EnrolRequest(**(values | changes)))

    def refusal(self, host: str = HOST, **changes: Any) -> RefusalCode:
        answer = self.ask(host, **changes)
        assert isinstance(answer, EnrolRefusal), answer
        return answer.code


def test_who_has_the_token_becomes_a_node() -> None:
    desk = Desk()
    grant = desk.ask(names=("10.0.0.2", "n3.internal"))
    assert isinstance(grant, EnrolGrant)
    CERTIFICATES.verify_issued(grant.certificate_pem, desk.ca, NODE_KEY)
    found = read_node_certificate(grant.certificate_pem)
    assert (found.cluster_id, found.node_id, found.role) == ("cluster", NODE, NodeRole.NODE)
    assert grant.keys == KEYS
    assert desk.desk.ca() == desk.ca


def test_a_rotated_token_is_worth_nothing_at_once() -> None:
    desk = Desk()
    desk.machine.do(c.RotateJoinToken(secret_hash(NEW_SECRET)))
    assert desk.refusal() is RefusalCode.WRONG_SECRET
    assert isinstance(desk.ask(secret=NEW_SECRET), EnrolGrant)
    desk.machine.do(c.RotateJoinToken(b""))
    assert desk.refusal(secret=NEW_SECRET) is RefusalCode.WRONG_SECRET
    assert desk.refusal(secret=b"") is RefusalCode.WRONG_SECRET


def test_the_removed_and_the_registered_are_not_anybodys_to_be() -> None:
    desk = Desk()
    desk.machine.do(c.SetNodeStatus(1, NodeId("id-n1"), NodeStatus.DOWN))
    desk.machine.do(c.RemoveNode(NodeId("id-n1")))
    assert desk.refusal(node_id=NodeId("id-n1")) is RefusalCode.REMOVED
    assert desk.refusal(node_id=NodeId("id-n2")) is RefusalCode.TAKEN
    assert isinstance(desk.ask(), EnrolGrant)
    assert isinstance(desk.ask(), EnrolGrant)  # its first answer was lost


@pytest.mark.parametrize(
    "changes",
    [
        {"node_id": ""},
        {"node_id": "a/b"},
        {"node_id": "x" * 51},
        {"node_id": "n\n"},
        {"request_pem": ""},
        {"request_pem": "x" * 100_000},
        {"names": ("x",) * 9},
        {"names": ("näme",)},
    ],
)
def test_what_could_never_be_right(changes: dict[str, Any]) -> None:
    assert Desk().refusal(**changes) is RefusalCode.INVALID


def test_without_a_ca_or_keys_nobody_is_let_in() -> None:
    desk = Desk()
    desk.machine = Machine()
    assert desk.refusal() is RefusalCode.NOT_READY
    with pytest.raises(Unavailable):
        desk.desk.ca()
    desk = Desk()
    desk.keyring.take(msgspec.structs.replace(KEYS, cluster_key=b"x" * 32))
    assert desk.refusal() is RefusalCode.NOT_READY


def test_a_host_that_guesses_waits_and_others_do_not() -> None:
    desk = Desk()
    for _ in range(WRONG_MAX):
        assert desk.refusal(secret=b"x" * 16) is RefusalCode.WRONG_SECRET
    assert desk.refusal() is RefusalCode.LIMITED  # the right one does not help
    assert isinstance(desk.ask("10.0.0.3"), EnrolGrant)
    desk.clock.now += WRONG_FORGET_MS
    assert isinstance(desk.ask(), EnrolGrant)


def test_any_number_may_join_from_one_address() -> None:
    desk = Desk()
    for number in range(3 * WRONG_MAX):
        assert isinstance(desk.ask(node_id=NodeId(f"n-{number}")), EnrolGrant)


def test_guessers_cost_no_memory() -> None:
    wrong = WrongSecrets()
    for number in range(HOSTS_MAX + 100):
        wrong.note(f"h{number}", 0)
    assert len(wrong._hosts) == HOSTS_MAX


def test_a_node_renews_itself_until_it_is_removed() -> None:
    desk = Desk()
    me = NodeIdentity(ClusterId("cluster"), NodeRole.NODE, NodeId("id-n1"))
    certificate = desk.desk.renew(me, NODE_REQUEST, ["10.0.0.1"])
    assert isinstance(certificate, str)
    assert read_node_certificate(certificate).node_id == "id-n1"
    assert isinstance(desk.desk.renew(me, NODE_REQUEST, ["x"] * 9), EnrolRefusal)
    desk.machine.do(c.SetNodeStatus(1, NodeId("id-n1"), NodeStatus.DOWN))
    desk.machine.do(c.RemoveNode(NodeId("id-n1")))
    refusal = desk.desk.renew(me, NODE_REQUEST, [])
    assert isinstance(refusal, EnrolRefusal) and refusal.code is RefusalCode.REMOVED


# The joiner


class FakeJoin:
    """ports.trust.JoinRemote: what each address says; `told` is who has seen a secret."""

    def __init__(self) -> None:
        self.cas: dict[str, Callable[[], str]] = {}
        self.desks: dict[str, Callable[[EnrolRequest], EnrolGrant | EnrolRefusal]] = {}
        self.told: list[str] = []

    async def ca(self, address: str) -> str:
        if address not in self.cas:
            raise Unavailable(f"cannot reach {address}")
        return self.cas[address]()

    async def enrol(
        self, address: str, ca_pem: str, request: EnrolRequest
    ) -> EnrolGrant | EnrolRefusal:
        self.told.append(address)
        return self.desks[address](request)


class Joiner:
    def __init__(self, desk: Desk) -> None:
        self.cluster = desk
        self.disk = FakeDisk()
        self.keyring = Keyring(self.disk)
        self.remote = FakeJoin()
        self.obstacles: list[str] = []
        self.enrolment = Enrolment(
            self.disk, self.keyring, self.remote, CERTIFICATES, self.obstacles.append
        )

    def at(self, address: str) -> None:
        """The real desk answers there."""
        self.remote.cas[address] = self.cluster.desk.ca
        self.remote.desks[address] = lambda request: self.cluster.desk.enrol(HOST, request)

    def run(self, *addresses: str) -> EnrolRefusal | None:
        return run_virtual(
            self.enrolment.run(addresses, self.cluster.token, NODE, ["10.0.0.2"])
        )  # fmt: skip


def test_a_joiner_ends_with_all_it_needs() -> None:
    joiner = Joiner(Desk())
    joiner.at("one")
    assert CERTIFICATE not in joiner.disk.files
    assert joiner.run("nowhere", "one") is None
    assert joiner.enrolment.is_done(joiner.cluster.token)
    assert joiner.enrolment.is_done(None)
    assert not joiner.enrolment.is_done(Desk().token)  # a token of another cluster
    assert joiner.obstacles == ["joining: cannot reach nowhere"]
    assert Keyring(joiner.disk).known == KEYS
    files = {name: joiner.disk.files[name].decode() for name in (CA, CERTIFICATE, KEY)}
    CERTIFICATES.verify_issued(files[CERTIFICATE], files[CA], files[KEY])


def test_the_secret_is_not_told_to_another_ca() -> None:
    joiner, other = Joiner(Desk()), Desk()
    joiner.remote.cas["impostor"] = other.desk.ca
    joiner.remote.cas["liar"] = lambda: "no certificate"
    joiner.at("one")
    assert joiner.run("impostor", "liar", "one") is None
    assert joiner.remote.told == ["one"]
    assert "the token was not sent" in joiner.obstacles[0]
    assert "no certificate" in joiner.obstacles[1]


def test_a_wrong_token_ends_it() -> None:
    joiner = Joiner(Desk())
    joiner.at("one")
    joiner.cluster.machine.do(c.RotateJoinToken(secret_hash(NEW_SECRET)))
    refusal = joiner.run("one")
    assert isinstance(refusal, EnrolRefusal)
    assert refusal.code is RefusalCode.WRONG_SECRET
    assert not joiner.enrolment.is_done(None)
    assert joiner.keyring.now is None


def test_what_may_pass_is_waited_out() -> None:
    joiner = Joiner(Desk())
    joiner.at("one")
    answers = [EnrolRefusal(code, "later") for code in (RefusalCode.LIMITED, RefusalCode.NOT_READY)]
    real = joiner.remote.desks["one"]
    joiner.remote.desks["one"] = lambda request: answers.pop() if answers else real(request)
    assert joiner.run("one") is None
    assert joiner.remote.told == ["one"] * 3


def test_a_certificate_that_is_not_its_own_is_not_kept() -> None:
    joiner = Joiner(Desk())
    joiner.at("one")
    real = joiner.remote.desks["one"]
    others: list[dict[str, Any]] = [
        {"node_id": NodeId("somebody-else")},
        {"request_pem": NODE_REQUEST},
    ]

    def desk(request: EnrolRequest) -> EnrolGrant | EnrolRefusal:
        return real(msgspec.structs.replace(request, **others.pop()) if others else request)

    joiner.remote.desks["one"] = desk
    assert joiner.run("one") is None
    assert joiner.remote.told == ["one"] * 3
    assert read_node_certificate(joiner.disk.files[CERTIFICATE].decode()).node_id == NODE


def test_a_joiner_that_was_killed_goes_on_with_its_key() -> None:
    joiner = Joiner(Desk())
    joiner.at("one")
    joiner.disk.files[KEY] = NODE_KEY.encode()
    assert joiner.run("one") is None
    assert joiner.disk.files[KEY] == NODE_KEY.encode()


def test_nothing_secret_is_in_a_repr() -> None:
    request = EnrolRequest(node_id=NODE, secret=b"sssss", request_pem="")
    assert "sssss" not in repr(request)
    assert "sssss" not in repr(msgspec.structs.replace(request))
    assert "cccc" not in repr(EnrolGrant(certificate_pem="", keys=KEYS))


def test_the_certificates_port_refuses_what_is_none() -> None:
    with pytest.raises(BadPacket):
        CERTIFICATES.node_of("x")
    with pytest.raises(BadPacket):
        CERTIFICATES.fingerprint("x")
