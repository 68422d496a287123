"""Joining by token: the side that lets in (EnrolDesk) and the side that asks (Enrolment).

The joiner learns which CA the cluster has, compares it with its token, and only then sends the
token's secret, to a peer that shows a certificate of that very CA.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence

from cube.model.cluster import ClusterState
from cube.model.errors import BadPacket, Unavailable
from cube.model.ids import NodeId
from cube.model.places import CA_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE
from cube.model.trust import JoinToken, NodeIdentity, NodeRole, secret_matches
from cube.ports.clock import Clock
from cube.ports.disk import Disk
from cube.ports.trust import (
    Certificates,
    EnrolGrant,
    EnrolRefusal,
    EnrolRequest,
    JoinRemote,
    RefusalCode,
)
from cube.services.keyring import Keyring, OpenEnvelope

CA, CERTIFICATE, KEY = CA_FILE, NODE_CERTIFICATE_FILE, NODE_KEY_FILE  # in the data directory, 0600
CA_KEY_PURPOSE = "ca-key"  # of an envelope in the log
JOIN_TOKEN_PURPOSE = "join-token"  # likewise
NAMES_MAX = 8  # a host's names and addresses
WRONG_MAX = 5  # secrets in a row from one host: a person pastes wrong twice
WRONG_FORGET_MS = 10_000  # one wrong secret is forgotten in so long
HOSTS_MAX = 1_024  # remembered; the one longest silent is forgotten
RETRY_S = 0.5  # first pause between attempts; doubles up to
RETRY_MAX_S = 5.0
_NODE_ID = re.compile(r"[A-Za-z0-9-]{1,50}")  # what fits the envelope of gossip

_log = logging.getLogger(__name__)


class WrongSecrets:
    """Who guesses is told to wait, whether the next guess is right or not. A leaky bucket per host,
    of wrong secrets only: any number of hosts may join from behind one address."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # level, when

    def _level(self, host: str, now_ms: int) -> float:
        level, at_ms = self._hosts.get(host, (0.0, now_ms))
        return max(0.0, level - max(0, now_ms - at_ms) / WRONG_FORGET_MS)

    def must_wait(self, host: str, now_ms: int) -> bool:
        return self._level(host, now_ms) > WRONG_MAX - 1

    def note(self, host: str, now_ms: int) -> None:
        if host not in self._hosts and len(self._hosts) >= HOSTS_MAX:
            self._hosts.popitem(last=False)
        self._hosts[host] = (self._level(host, now_ms) + 1, now_ms)
        self._hosts.move_to_end(host)


class EnrolDesk:
    """Any node can sign: the CA's key is in the state, sealed with the key that all nodes have."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        keyring: Keyring,
        certificates: Certificates,
        open_envelope: OpenEnvelope,
        clock: Clock,
        *,
        needs_token: bool = True,
    ) -> None:
        """`needs_token` False: whoever reaches this desk may join (--insecure)."""
        self._needs_token = needs_token
        self._state = state
        self._keyring = keyring
        self._certificates = certificates
        self._open_envelope = open_envelope
        self._clock = clock
        self._wrong = WrongSecrets()

    def ca(self) -> str:
        """For anyone who asks. Raises Unavailable while there is none."""
        pem = self._state().trust.ca_certificate_pem
        if not pem:
            raise Unavailable("this cluster has no CA yet")
        return pem

    def enrol(self, host: str, request: EnrolRequest) -> EnrolGrant | EnrolRefusal:
        """A certificate for a new node that knows the secret. `host` is where it asks from."""
        refusal = self._refusal(host, request)
        if refusal is None:
            answer = self._sign(request.node_id, request.request_pem, request.names)
            if isinstance(answer, str):
                _log.info("node_enrolled node=%s host=%s", request.node_id, host)
                return EnrolGrant(certificate_pem=answer, keys=self._keyring.known)
            refusal = answer
        # The id may be anything as long as the secret is not right: quoted, and cut.
        _log.warning(
            "node_refused node=%.60r host=%s reason=%s", request.node_id, host, refusal.code
        )
        return refusal

    def _refusal(self, host: str, request: EnrolRequest) -> EnrolRefusal | None:
        state, now_ms = self._state(), self._clock.monotonic_ms()
        if not state.trust.ca_key_sealed or self._keyring.now is None:
            return EnrolRefusal(RefusalCode.NOT_READY, "this node cannot sign certificates yet")
        if self._wrong.must_wait(host, now_ms):
            return EnrolRefusal(
                RefusalCode.LIMITED, "too many wrong tokens came from this host; wait a minute"
            )
        is_known = secret_matches(request.secret, state.trust.join_token_hash)
        if self._needs_token and not is_known:
            self._wrong.note(host, now_ms)
            return EnrolRefusal(
                RefusalCode.WRONG_SECRET,
                "the join token is not valid, or not any more; `cube cluster join-token` prints "
                "the present one",
            )
        if not _NODE_ID.fullmatch(request.node_id) or len(request.names) > NAMES_MAX:
            return EnrolRefusal(RefusalCode.INVALID, "no id of a node, or too many names")
        if state.trust.is_removed(request.node_id):
            return EnrolRefusal(
                RefusalCode.REMOVED, "this node was removed; give it an empty data directory"
            )
        if request.node_id in state.nodes:
            # It has a certificate, or had one: a token must not make anybody another node.
            return EnrolRefusal(
                RefusalCode.TAKEN,
                "a node of this id is registered; it renews its certificate itself",
            )
        return None

    def renew(
        self, node: NodeIdentity, request_pem: str, names: Sequence[str]
    ) -> str | EnrolRefusal:
        """A new certificate for a node that has shown its present one."""
        if self._state().trust.is_removed(node.node_id):
            return EnrolRefusal(RefusalCode.REMOVED, "this node was removed from the cluster")
        if len(names) > NAMES_MAX:
            return EnrolRefusal(RefusalCode.INVALID, "too many names")
        return self._sign(node.node_id, request_pem, names)

    def _sign(self, node_id: NodeId, request_pem: str, names: Sequence[str]) -> str | EnrolRefusal:
        state = self._state()
        try:
            cluster_key = self._keyring.known.cluster_key
            ca_key = self._open_envelope(cluster_key, CA_KEY_PURPOSE, state.trust.ca_key_sealed)
        except (BadPacket, Unavailable) as error:
            return EnrolRefusal(RefusalCode.NOT_READY, f"this node cannot sign: {error}")
        identity = NodeIdentity(state.cluster_id, NodeRole.NODE, node_id)
        try:
            return self._certificates.issue(
                state.trust.ca_certificate_pem,
                ca_key.decode(),
                request_pem,
                identity,
                names,
                self._clock.now_ms(),
            )
        except BadPacket as error:
            return EnrolRefusal(RefusalCode.INVALID, str(error))


class Enrolment:
    """A node without a certificate gets one. `on_obstacle` gets the sentence to show meanwhile."""

    def __init__(
        self,
        disk: Disk,
        keyring: Keyring,
        remote: JoinRemote,
        certificates: Certificates,
        on_obstacle: Callable[[str], None],
    ) -> None:
        self._disk = disk
        self._keyring = keyring
        self._remote = remote
        self._certificates = certificates
        self._on_obstacle = on_obstacle

    def is_done(self, token: JoinToken | None) -> bool:
        """There is a certificate (it is the last thing that is kept: where it is, all is), by the
        CA that the token names."""
        ca_pem = self._disk.read(CA)
        if ca_pem is None or self._disk.read(CERTIFICATE) is None:
            return False
        return token is None or self._is_of(ca_pem.decode("ascii", "replace"), token)

    def _is_of(self, ca_pem: str, token: JoinToken) -> bool:
        return hmac.compare_digest(self._certificates.fingerprint(ca_pem), token.fingerprint)

    async def run(
        self,
        addresses: Sequence[str],
        token: JoinToken | None,
        node_id: NodeId,
        names: Sequence[str],
    ) -> EnrolRefusal | None:
        """None: key, CA, keys and certificate are in the data directory. A refusal: asking again
        would not help. Asks for ever otherwise. Without a token whoever answers is believed."""
        pause_s = RETRY_S
        while True:
            for address in addresses:
                answer = await self._ask(address, token, node_id, tuple(names))
                if isinstance(answer, EnrolRefusal) and answer.is_final:
                    return answer
                if answer is None:
                    return None
                self._on_obstacle(f"joining: {answer.message}")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)

    async def _ask(
        self, address: str, token: JoinToken | None, node_id: NodeId, names: tuple[str, ...]
    ) -> EnrolRefusal | None:
        """None: all is kept."""
        try:
            ca_pem = await self._remote.ca(address)
            if token is not None and not self._is_of(ca_pem, token):
                # Maybe only this address is wrong, or somebody sits in between: ask the next.
                return _later(
                    f"{address} belongs to another cluster than the join token, or is not what it "
                    "seems; the token was not sent"
                )
            key_pem = self._key()
            request = EnrolRequest(
                node_id=node_id,
                secret=token.secret if token is not None else b"",
                request_pem=self._certificates.make_request(key_pem),
                names=names,
            )
            answer = await self._remote.enrol(address, ca_pem, request)
            if isinstance(answer, EnrolRefusal):
                return answer
            self._certificates.verify_issued(answer.certificate_pem, ca_pem, key_pem)
            if self._certificates.node_of(answer.certificate_pem).node_id != node_id:
                return _later(f"{address} issued a certificate for another node")
        except BadPacket as error:
            return _later(f"{address} answered with what is no certificate: {error}")
        except Unavailable as error:
            return _later(str(error))
        self._keyring.take(answer.keys)
        self._disk.replace(CA, ca_pem.encode())
        self._disk.replace(CERTIFICATE, answer.certificate_pem.encode())
        return None

    def _key(self) -> str:
        """The node's, kept before anybody signs for it."""
        kept = self._disk.read(KEY)
        if kept is not None:
            return kept.decode("ascii", "replace")
        made = self._certificates.make_key()
        self._disk.replace(KEY, made.encode())
        return made


def _later(message: str) -> EnrolRefusal:
    return EnrolRefusal(RefusalCode.NOT_READY, message)
