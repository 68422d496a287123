"""Whom the processes of a root agent may run as, by the words of a node."""

from __future__ import annotations

import pytest

from cube.model.allowed import asks_as_process, lacking, process_words, refusal


@pytest.mark.parametrize(
    ("user", "allow", "users", "default", "is_let"),
    [
        ("", [], [], "", True),
        ("nobody", [], ["nobody"], "", True),
        ("nobody:daemon", [], ["nobody"], "", True),  # whether it is in the group, the driver knows
        ("alice", [], ["nobody"], "", False),
        ("1000", [], ["alice"], "", False),  # as it is written
        ("ali", [], ["alice"], "", False),
        ("alice", [], [], "", False),
        ("alice", [], ["alice:docker"], "", False),
        ("alice:docker", [], ["alice:docker"], "", True),
        ("alice", [], [], "alice", True),
        ("alice", [], ["*"], "", True),
        ("root", [], ["*"], "", False),
        ("alice:root", [], ["*"], "", False),
        ("0:1", [], ["*"], "", False),
        ("root", ["root"], [], "", True),
        ("alice", ["root"], [], "", True),  # who may be root may be anybody
        ("*", [], ["nobody"], "", False),
    ],
)
def test_who_is_let(
    user: str, allow: list[str], users: list[str], default: str, is_let: bool
) -> None:
    have = ",".join(process_words(allow, users, default))
    missing = lacking(asks_as_process(user), have)
    assert (missing == ()) is is_let
    if missing:
        key = "allow" if "root" in missing else "users"
        assert f"[drivers.process] {key} = [" in refusal(missing, "process")
    assert lacking(asks_as_process(user), None) == ()  # an agent that is not root, or says nothing


def test_a_refusal_names_the_account_and_the_key() -> None:
    assert refusal(("user:alice",), "process") == (
        'lets no task run as alice: its operator can set [drivers.process] users = ["alice"]'
    )
