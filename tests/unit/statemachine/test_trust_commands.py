"""Keys and tokens in the cluster's state: who may be what, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from cube.model import commands as c
from cube.model.ids import NodeId
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import Done, NodeRegistered, Rejected, RejectReason
from cube.model.trust import (
    BACKDATE_MS,
    GOSSIP_KEYS_MAX,
    NODE_CERTIFICATE_MS,
    GossipKey,
    TokenRecord,
    TokenRole,
)
from cube.statemachine import trust
from cube.statemachine.snapshot import dump, load
from tests.builders import START_MS, Machine, facts

HASH = b"h" * 32
OPERATOR = TokenRecord(id="00000000", hash=HASH, role=TokenRole.OPERATOR)
KEY = GossipKey("11111111", b"sealed")
INIT = c.InitTrust("pem", b"sealed", HASH, KEY, OPERATOR)


def key(number: int) -> GossipKey:
    return GossipKey(f"{number:08x}", b"sealed")


def token(**changes: Any) -> c.CreateToken:
    values: dict[str, Any] = {"id": "22222222", "hash": HASH, "role": TokenRole.VIEWER}
    return c.CreateToken(**(values | changes))


def refused(outcome: object) -> RejectReason:
    assert isinstance(outcome, Rejected), outcome
    return outcome.reason


def test_a_cluster_gets_its_ca_once() -> None:
    machine = Machine()
    assert machine.do(INIT) == Done()
    made = machine.state.trust
    assert (made.ca_certificate_pem, made.join_token_hash) == ("pem", HASH)
    assert (made.gossip_keys, made.gossip_in_use) == ((KEY,), KEY.id)
    assert made.tokens["00000000"].created_at_ms == START_MS
    assert refused(machine.do(c.InitTrust("other", b"sealed", HASH, KEY))) is RejectReason.REFUSED
    assert machine.state.trust == made


@pytest.mark.parametrize(
    "body",
    [
        c.InitTrust("", b"sealed", HASH, KEY),
        c.InitTrust("pem", b"", HASH, KEY),
        c.InitTrust("pem", b"sealed", b"short", KEY),
        c.InitTrust("pem", b"sealed", HASH, GossipKey("x", b"sealed")),
        c.InitTrust("pem", b"sealed", HASH, KEY, TokenRecord(id="", hash=HASH, role=OPERATOR.role)),
        c.RotateJoinToken(b"short"),
        token(id="../../.."),
        token(hash=b""),
        token(key=b"short"),
        token(lifetime_ms=0),
        token(lifetime_ms=trust.LIFETIME_MS_MAX + 1),
        token(description="x" * 201),
        token(description="two\nlines"),
        c.InstallGossipKey(GossipKey("11111111", b"")),
        c.InstallGossipKey(GossipKey("11111111", b"x" * 5000)),
    ],
)
def test_what_could_never_be_right(body: c.Body) -> None:
    machine = Machine()
    before = machine.state.trust
    assert refused(machine.do(body)) is RejectReason.INVALID
    assert machine.state.trust == before


def test_a_token_lives_from_its_creation_to_its_end() -> None:
    machine = Machine()
    machine.now_ms += 5
    assert machine.do(token(lifetime_ms=100, description="ci")) == Done()
    made = machine.state.trust.tokens["22222222"]
    assert (made.created_at_ms, made.expires_at_ms) == (START_MS + 5, START_MS + 105)
    assert not made.is_expired(START_MS + 104)
    assert made.is_expired(START_MS + 105)
    assert refused(machine.do(token())) is RejectReason.REFUSED
    assert machine.do(c.RemoveToken("22222222")) == Done()
    assert machine.state.trust.tokens == {}
    assert refused(machine.do(c.RemoveToken("22222222"))) is RejectReason.NOT_FOUND


def test_a_token_gets_its_key_once() -> None:
    machine = Machine()
    key, other = b"k" * 32, b"x" * 32
    assert refused(machine.do(c.KeepTokenKey("22222222", key))) is RejectReason.NOT_FOUND
    machine.do(token())
    assert refused(machine.do(c.KeepTokenKey("22222222", b"short"))) is RejectReason.INVALID
    assert refused(machine.do(c.KeepTokenKey("22222222", b""))) is RejectReason.INVALID
    assert machine.do(c.KeepTokenKey("22222222", key)) == Done()
    assert machine.do(c.KeepTokenKey("22222222", key)) == Done(changed=False)
    assert refused(machine.do(c.KeepTokenKey("22222222", other))) is RejectReason.REFUSED
    assert machine.state.trust.tokens["22222222"].key == key


def test_tokens_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "TOKENS_MAX", 2)
    machine = Machine()
    for number in range(2):
        machine.do(token(id=f"{number:08x}"))
    assert refused(machine.do(token())) is RejectReason.LIMIT


def test_the_join_token_is_renewed_and_closed() -> None:
    machine = Machine()
    machine.do(INIT)
    assert machine.do(c.RotateJoinToken(HASH)) == Done(changed=False)
    assert machine.do(c.RotateJoinToken(b"n" * 32)) == Done()
    assert machine.state.trust.join_token_hash == b"n" * 32
    assert machine.do(c.RotateJoinToken(b"")) == Done()
    assert machine.state.trust.join_token_hash == b""


def test_gossip_keys_are_installed_used_and_removed_in_that_order() -> None:
    machine = Machine()
    assert machine.do(c.InstallGossipKey(key(1))) == Done()
    assert machine.state.trust.gossip_in_use == key(1).id
    assert refused(machine.do(c.UseGossipKey(key(2).id))) is RejectReason.NOT_FOUND
    assert machine.do(c.InstallGossipKey(key(2))) == Done()
    assert machine.do(c.InstallGossipKey(key(2))) == Done(changed=False)
    assert machine.state.trust.gossip_in_use == key(1).id
    assert refused(machine.do(c.RemoveGossipKey(key(1).id))) is RejectReason.REFUSED
    assert machine.do(c.UseGossipKey(key(2).id)) == Done()
    assert machine.do(c.UseGossipKey(key(2).id)) == Done(changed=False)
    assert machine.do(c.RemoveGossipKey(key(1).id)) == Done()
    assert refused(machine.do(c.RemoveGossipKey(key(1).id))) is RejectReason.NOT_FOUND
    assert machine.state.trust.gossip_keys == (key(2),)
    for number in range(3, 2 + GOSSIP_KEYS_MAX):
        machine.do(c.InstallGossipKey(key(number)))
    assert refused(machine.do(c.InstallGossipKey(key(9)))) is RejectReason.LIMIT


def test_a_ca_that_comes_late_keeps_the_gossip_key() -> None:
    machine = Machine()
    machine.do(c.InstallGossipKey(key(1)))
    assert refused(machine.do(INIT)) is RejectReason.REFUSED
    resealed = GossipKey(key(1).id, b"sealed anew")
    assert machine.do(c.InitTrust("pem", b"sealed", HASH, resealed)) == Done()
    assert machine.state.trust.gossip_keys == (key(1),)


def remove(machine: Machine, name: str) -> None:
    machine.do(c.SetNodeStatus(1, NodeId(f"id-{name}"), NodeStatus.DOWN))
    assert machine.do(c.RemoveNode(NodeId(f"id-{name}"))) == Done()


def test_a_removed_node_does_not_come_back_under_its_id() -> None:
    machine = Machine("n1", "n2")
    remove(machine, "n1")
    assert machine.state.trust.is_removed(NodeId("id-n1"))
    assert not machine.state.trust.is_removed(NodeId("id-n2"))
    assert refused(machine.do(c.RegisterNode(facts("n1")))) is RejectReason.REFUSED
    again = facts("n1", id=NodeId("id-new"))
    assert isinstance(machine.do(c.RegisterNode(again)), NodeRegistered)


def test_the_removed_are_forgotten_once_no_certificate_of_theirs_can_be_valid() -> None:
    machine = Machine("n1", "n2", "n3")
    remove(machine, "n1")
    machine.now_ms += NODE_CERTIFICATE_MS
    remove(machine, "n2")
    assert set(machine.state.trust.removed_nodes) == {"id-n1", "id-n2"}
    machine.now_ms += BACKDATE_MS
    remove(machine, "n3")
    assert set(machine.state.trust.removed_nodes) == {"id-n2", "id-n3"}


def test_the_oldest_of_too_many_removed_goes_whatever_a_snapshot_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trust, "REMOVED_NODES_MAX", 2)
    states = []
    for through_snapshot in (False, True):
        machine = Machine("c", "b", "a")
        for name in ("c", "b", "a"):
            if through_snapshot:
                machine.state = load(dump(machine.state))
            machine.now_ms += 1
            remove(machine, name)
        states.append(machine.state.trust)
    assert states[0] == states[1]
    assert set(states[0].removed_nodes) == {"id-b", "id-a"}


def test_trust_is_in_the_snapshot() -> None:
    machine = Machine("n1")
    machine.do(INIT)
    remove(machine, "n1")
    assert load(dump(machine.state)) == machine.state


def test_no_repr_shows_a_secret_or_its_hash() -> None:
    machine = Machine()
    machine.do(INIT)
    assert "hhhh" not in repr(machine.state.trust)
    assert "sealed" not in repr(machine.state.trust.gossip_keys)
    assert "hhhh" not in repr(machine.state.trust.tokens)
