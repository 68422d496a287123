"""/v1/tokens and the cluster's join token and gossip keys: what is shown, once, and to whom."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cube.adapters.trust.authority import X509Certificates
from cube.adapters.trust.envelope import open_envelope, seal_envelope
from cube.adapters.trust.tickets import token_key
from cube.api.auth import Standing, identify
from cube.model import commands as c
from cube.model.ids import ClusterId
from cube.model.outcome import Done
from cube.model.trust import (
    TokenRole,
    key_id,
    parse_api_token,
    parse_join_token,
    secret_hash,
    secret_matches,
)
from cube.services.enrolment import CA_KEY_PURPOSE, JOIN_TOKEN_PURPOSE
from cube.services.keyring import GOSSIP_PURPOSE, first_gossip_key
from tests.fakes.served import NODE_KEYS, Served, served

SECRET = b"j" * 16


@pytest.fixture
async def api() -> AsyncIterator[Served]:
    """A cluster with a CA and a join token."""
    async with served() as found:
        ca = X509Certificates()
        ca_key = ca.make_key()
        init = c.InitTrust(
            ca.make_ca(ClusterId("cluster-1"), ca_key, found.clock.now_ms()),
            seal_envelope(NODE_KEYS.cluster_key, CA_KEY_PURPOSE, ca_key.encode()),
            secret_hash(SECRET),
            first_gossip_key(NODE_KEYS, seal_envelope),
            None,
            seal_envelope(NODE_KEYS.cluster_key, JOIN_TOKEN_PURPOSE, SECRET),
        )
        assert found.world.apply(init) == Done()
        yield found


async def post(api: Served, path: str, body: Any = None, key: str = "") -> tuple[int, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    async with api.client.post(path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def get(api: Served, path: str) -> tuple[int, Any]:
    async with api.client.get(path) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("role", list(TokenRole))
async def test_a_token_opens_what_its_role_may(api: Served, role: TokenRole) -> None:
    status, made = await post(api, "/v1/tokens", {"role": role.value, "description": "CI"})
    assert (status, made["role"], made["expires_at"]) == (201, role.value, None)
    header = f"Bearer {made['token']}"
    assert identify(header, None, api.world.state.trust, 0).standing is Standing(role.value)
    _, listed = await get(api, "/v1/tokens")
    assert [token["description"] for token in listed["items"]] == ["CI"]
    secret = made["token"].rpartition("_")[2]
    assert secret not in str(listed)
    assert secret not in str(await get(api, f"/v1/tokens/{made['id']}"))
    async with api.client.delete(f"/v1/tokens/{made['id']}") as response:
        assert (response.status, (await response.json())["changed"]) == (200, True)
    assert not api.world.state.trust.tokens
    async with api.client.delete(f"/v1/tokens/{made['id']}") as response:
        assert response.status == 404


async def test_a_token_that_ends(api: Served) -> None:
    _, made = await post(api, "/v1/tokens", {"role": "viewer", "lifetime": "1h"})
    record = api.world.state.trust.tokens[made["id"]]
    assert record.expires_at_ms == record.created_at_ms + 3_600_000
    assert made["expires_at"] is not None


async def test_a_repeated_request_gets_the_first_secret(api: Served) -> None:
    """Else whoever repeats it after an unknown outcome holds a token that opens nothing."""
    body = {"role": "deployer"}
    first = await post(api, "/v1/tokens", body, "key-1")
    again = await post(api, "/v1/tokens", body, "key-1")
    other = await post(api, "/v1/tokens", body, "key-2")
    assert first == again
    assert other[1]["token"] != first[1]["token"]
    assert len(api.world.state.trust.tokens) == 2
    for _, made in (first, other):
        token = parse_api_token(made["token"])
        record = api.world.state.trust.tokens[token.id]
        assert secret_matches(token.secret, record.hash) and record.key == token_key(token.secret)
    status, _ = await post(api, "/v1/tokens", {"role": "operator"}, "key-1")
    assert status == 409
    joins = [await post(api, "/v1/cluster/join-token", key="key-3") for _ in range(2)]
    assert joins[0][1]["token"] == joins[1][1]["token"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "role"),
        ({"role": "root"}, "role"),
        ({"role": "viewer", "lifetime": "soon"}, "lifetime"),
        ({"role": "viewer", "lifetime": 0}, "lifetime"),
        ({"role": "viewer", "lifetime": "87601h"}, "lifetime"),
        ({"role": "viewer", "description": "x" * 201}, "description"),
        ({"role": "viewer", "description": "a\nb"}, "description"),
        ({"role": "viewer", "scope": "x"}, "scope"),
        ([], "object"),
    ],
)
async def test_bad_tokens_change_nothing(api: Served, body: Any, said: str) -> None:
    before = api.world.state
    status, problem = await post(api, "/v1/tokens", body)
    assert status in (400, 422)
    assert said in str(problem)
    assert api.world.state is before or api.world.state.trust is before.trust


async def test_the_join_token_is_told_again_and_renewed(api: Served) -> None:
    _, shown = await get(api, "/v1/cluster/join-token")
    token = parse_join_token(shown["token"])
    assert token.secret == SECRET
    ca = api.world.state.trust.ca_certificate_pem
    assert token.fingerprint == X509Certificates().fingerprint(ca)
    _, renewed = await post(api, "/v1/cluster/join-token")
    assert parse_join_token(renewed["token"]).secret != SECRET
    assert (await get(api, "/v1/cluster/join-token"))[1]["token"] == renewed["token"]
    assert not secret_matches(SECRET, api.world.state.trust.join_token_hash)
    assert api.world.apply(c.RotateJoinToken(b"")) == Done()
    status, problem = await get(api, "/v1/cluster/join-token")
    assert status == 503
    assert "--rotate" in problem["detail"]


async def test_a_new_gossip_key_is_installed_sealed(api: Served) -> None:
    _, changed = await post(api, "/v1/cluster/rotate-keys")
    new = api.world.state.trust.gossip_keys[-1]
    assert new.id == changed["key"]
    opened = open_envelope(NODE_KEYS.cluster_key, GOSSIP_PURPOSE, new.sealed)
    assert key_id(opened) == new.id
