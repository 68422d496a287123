"""Keys and tokens of the cluster, and who is not to come back. Secrets arrive hashed or sealed."""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.events import ClusterEvent
from cube.model.ids import NodeId
from cube.model.outcome import Done, Outcome, Rejected, RejectReason
from cube.model.trust import (
    BACKDATE_MS,
    DESCRIPTION_CHARS_MAX,
    GOSSIP_KEYS_MAX,
    HASH_BYTES,
    NODE_CERTIFICATE_MS,
    PEM_CHARS_MAX,
    REMOVED_NODES_MAX,
    SEALED_BYTES_MAX,
    TOKEN_ID_CHARS,
    TOKEN_KEY_BYTES,
    TOKENS_MAX,
    GossipKey,
    TokenRecord,
)
from cube.statemachine.draft import Draft

LIFETIME_MS_MAX = 10 * 365 * 86_400_000  # of a token: longer is "never", which has its own word


def init(draft: Draft, body: c.InitTrust) -> Outcome:
    """The cluster has a CA, a gossip key, and an operator's token if one came with it."""
    if draft.trust.ca_certificate_pem:
        return Rejected(RejectReason.REFUSED, "this cluster has its CA already")
    if not 0 < len(body.ca_certificate_pem) <= PEM_CHARS_MAX:
        return _invalid("no certificate")
    if not 0 < len(body.ca_key_sealed) <= SEALED_BYTES_MAX:
        return _invalid("no sealed key")
    if len(body.join_token_sealed) > SEALED_BYTES_MAX:
        return _invalid("no sealed join token")
    wrong = _wrong_hash(body.join_token_hash) or _wrong_key(body.gossip_key)
    if wrong:
        return _invalid(wrong)
    known = [key.id for key in draft.trust.gossip_keys]
    if known and body.gossip_key.id not in known:  # by id: the same key is sealed anew each time
        return Rejected(RejectReason.REFUSED, "this cluster has another gossip key already")
    tokens = dict(draft.trust.tokens)
    if body.operator is not None:
        wrong = _wrong_token(body.operator)
        if wrong:
            return _invalid(wrong)
        tokens[body.operator.id] = _stamped(body.operator, draft.now_ms)
    _change(
        draft,
        "trust_created",
        ca_certificate_pem=body.ca_certificate_pem,
        ca_key_sealed=body.ca_key_sealed,
        join_token_hash=body.join_token_hash,
        join_token_sealed=body.join_token_sealed,
        gossip_keys=draft.trust.gossip_keys or (body.gossip_key,),
        gossip_in_use=draft.trust.gossip_in_use or body.gossip_key.id,
        gossip_changed_index=draft.trust.gossip_changed_index or draft.index,
        tokens=tokens,
    )
    return Done()


def rotate_join_token(draft: Draft, body: c.RotateJoinToken) -> Outcome:
    if body.hash and (wrong := _wrong_hash(body.hash)):
        return _invalid(wrong)
    if len(body.sealed) > SEALED_BYTES_MAX:
        return _invalid("no sealed join token")
    if body.hash == draft.trust.join_token_hash:
        return Done(changed=False)
    _change(
        draft, "join_token_rotated", join_token_hash=body.hash, join_token_sealed=body.sealed
    )  # fmt: skip
    return Done()


def create_token(draft: Draft, body: c.CreateToken) -> Outcome:
    """The token opens the API from now on, until it expires or is removed."""
    if body.lifetime_ms is not None and not 0 < body.lifetime_ms <= LIFETIME_MS_MAX:
        return _invalid("a token's lifetime is above zero and at most ten years")
    if body.id in draft.trust.tokens:
        return Rejected(RejectReason.REFUSED, f"there is a token {body.id} already")
    if len(draft.trust.tokens) >= TOKENS_MAX:
        return Rejected(RejectReason.LIMIT, f"the cluster has {TOKENS_MAX} tokens, its limit")
    token = TokenRecord(
        id=body.id,
        hash=body.hash,
        role=body.role,
        created_at_ms=draft.now_ms,
        expires_at_ms=None if body.lifetime_ms is None else draft.now_ms + body.lifetime_ms,
        description=body.description,
        key=body.key,
    )
    wrong = _wrong_token(token)
    if wrong:
        return _invalid(wrong)
    _change(draft, "token_created", tokens={**draft.trust.tokens, token.id: token})
    return Done()


def keep_token_key(draft: Draft, body: c.KeepTokenKey) -> Outcome:
    token = draft.trust.tokens.get(body.id)
    if token is None:
        return Rejected(RejectReason.NOT_FOUND, "there is no such token")
    if len(body.key) != TOKEN_KEY_BYTES:
        return _invalid(f"the key of a token has {TOKEN_KEY_BYTES} bytes")
    if token.key:
        same = token.key == body.key
        return Done(changed=False) if same else Rejected(RejectReason.REFUSED, "it has another key")
    kept = msgspec.structs.replace(token, key=body.key)
    _change(draft, "token_key_kept", tokens={**draft.trust.tokens, token.id: kept})
    return Done()


def remove_token(draft: Draft, body: c.RemoveToken) -> Outcome:
    if body.id not in draft.trust.tokens:
        return Rejected(RejectReason.NOT_FOUND, "there is no such token")
    tokens = {id_: token for id_, token in draft.trust.tokens.items() if id_ != body.id}
    _change(draft, "token_removed", tokens=tokens)
    return Done()


def install_gossip_key(draft: Draft, body: c.InstallGossipKey) -> Outcome:
    """The key can be read by all who have applied this. The first one is in use at once."""
    keys = draft.trust.gossip_keys
    wrong = _wrong_key(body.key)
    if wrong:
        return _invalid(wrong)
    if any(key.id == body.key.id for key in keys):
        return Done(changed=False)
    if len(keys) >= GOSSIP_KEYS_MAX:
        return Rejected(
            RejectReason.LIMIT, f"there are {GOSSIP_KEYS_MAX} gossip keys; remove an old one first"
        )
    in_use = draft.trust.gossip_in_use or body.key.id
    _change_keys(
        draft, "gossip_key_installed", gossip_keys=(*keys, body.key), gossip_in_use=in_use
    )  # fmt: skip
    return Done()


def use_gossip_key(draft: Draft, body: c.UseGossipKey) -> Outcome:
    if all(key.id != body.id for key in draft.trust.gossip_keys):
        return Rejected(RejectReason.NOT_FOUND, "there is no such gossip key")
    if draft.trust.gossip_in_use == body.id:
        return Done(changed=False)
    _change_keys(draft, "gossip_key_used", gossip_in_use=body.id)
    return Done()


def remove_gossip_key(draft: Draft, body: c.RemoveGossipKey) -> Outcome:
    keys = tuple(key for key in draft.trust.gossip_keys if key.id != body.id)
    if keys == draft.trust.gossip_keys:
        return Rejected(RejectReason.NOT_FOUND, "there is no such gossip key")
    if draft.trust.gossip_in_use == body.id:
        return Rejected(RejectReason.REFUSED, "this gossip key is in use; use another one first")
    _change_keys(draft, "gossip_key_removed", gossip_keys=keys)
    return Done()


def ban(draft: Draft, node_id: NodeId) -> None:
    """The node's certificates are refused. Those so long ago that none can be valid any more are
    forgotten, and the oldest when there are too many."""
    expired_ms = draft.now_ms - NODE_CERTIFICATE_MS - BACKDATE_MS
    kept = [(id_, at) for id_, at in draft.trust.removed_nodes.items() if at > expired_ms]
    # A dict from a snapshot is in another order than the one that was built here: sort.
    kept = sorted([*kept, (node_id, draft.now_ms)], key=lambda item: (item[1], item[0]))
    kept = kept[-REMOVED_NODES_MAX:]
    draft.trust = msgspec.structs.replace(draft.trust, removed_nodes=dict(kept))


def _change(draft: Draft, kind: str, **changes: object) -> None:
    draft.trust = msgspec.structs.replace(draft.trust, **changes)
    draft.events.append(ClusterEvent(kind))


def _change_keys(draft: Draft, kind: str, **changes: object) -> None:
    _change(draft, kind, gossip_changed_index=draft.index, **changes)


def _stamped(token: TokenRecord, now_ms: int) -> TokenRecord:
    return msgspec.structs.replace(token, created_at_ms=now_ms)


def _invalid(what: str) -> Rejected:
    return Rejected(RejectReason.INVALID, what)


def _wrong_hash(hash_: bytes) -> str:
    return "" if len(hash_) == HASH_BYTES else f"a hash has {HASH_BYTES} bytes"


def _wrong_key(key: GossipKey) -> str:
    if not (len(key.id) == TOKEN_ID_CHARS and key.id.isalnum() and key.id.isascii()):
        return f"the id of a gossip key has {TOKEN_ID_CHARS} letters and digits"
    return "" if 0 < len(key.sealed) <= SEALED_BYTES_MAX else "no sealed key"


def _wrong_token(token: TokenRecord) -> str:
    if not (len(token.id) == TOKEN_ID_CHARS and token.id.isalnum() and token.id.isascii()):
        return f"the id of a token has {TOKEN_ID_CHARS} letters and digits"
    if len(token.description) > DESCRIPTION_CHARS_MAX or not token.description.isprintable():
        return f"a description has at most {DESCRIPTION_CHARS_MAX} printable characters"
    if len(token.key) not in (0, TOKEN_KEY_BYTES):
        return f"the key of a token has {TOKEN_KEY_BYTES} bytes"
    return _wrong_hash(token.hash)
