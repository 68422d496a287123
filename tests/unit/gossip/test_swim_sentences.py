"""The protocol, one sentence per test."""

from __future__ import annotations

import random

import pytest

from cube.gossip import roster
from cube.gossip.effects import Effect, Exchange, MemberChanged, Send
from cube.gossip.member import Member, MemberState
from cube.gossip.packets import Ack, Gossip, Nack, Ping, PingRequest, Rumour, Sync
from cube.gossip.settings import GossipSettings
from cube.gossip.swim import Swim
from cube.model.ids import NodeId

S = GossipSettings()
BOOT = 100
ALIVE, SUSPECT, DEAD, LEFT = MemberState


def nid(name: str) -> NodeId:
    return NodeId(name)


class Desk:
    """A machine called "me", its time, and what it did."""

    def __init__(self, *others: str, settings: GossipSettings = S, seed: int = 1) -> None:
        self.swim = Swim(settings, nid("me"), "me:1", b"mine", BOOT, random.Random(seed))
        self.now_ms = 1_000
        self.did: list[Effect] = []
        self.tick()
        if others:
            table = tuple(Member(nid(o), f"{o}:1", BOOT, meta_version=1) for o in others)
            self.did += self.swim.on_exchange(self.now_ms, "x:1", Sync(nid(others[0]), table))[1]
        self.did.clear()

    def tick(self) -> None:
        self.did += self.swim.on_tick(self.now_ms)

    def go(self, duration_ms: int, *, silent: str | None = None) -> None:
        """Time passes, each tick served when it is due. Nobody answers; or, when one is named as
        silent, everyone else does."""
        end_ms = self.now_ms + duration_ms
        while self.swim.next_tick_ms <= end_ms:
            self.now_ms = max(self.now_ms, self.swim.next_tick_ms)
            before = len(self.did)
            self.tick()
            for effect in self.did[before:] if silent is not None else ():
                match effect:
                    case Send(packet=Ping() as ping) if ping.target != silent:
                        self.ack(ping)
        self.now_ms = end_ms

    def hear(self, *rumours: Rumour, source: str = "a") -> None:
        self.did += self.swim.on_packet(self.now_ms, f"{source}:1", Gossip(nid(source), rumours))

    def until_ping(self) -> tuple[str, Ping]:
        """The next probe, which has just been sent."""
        self.did.clear()
        for _ in range(10_000):
            for effect in self.did:
                if isinstance(effect, Send) and isinstance(effect.packet, Ping):
                    return effect.address, effect.packet
            self.now_ms = max(self.now_ms, self.swim.next_tick_ms)
            self.tick()
        raise AssertionError("no ping")

    def ack(self, ping: Ping, *, by: str | None = None) -> None:
        source = nid(by) if by else ping.target
        self.did += self.swim.on_packet(self.now_ms, f"{source}:1", Ack(source, ping.sequence))

    def sent(self, kind: type) -> list[tuple[str, object]]:
        return [
            (e.address, e.packet)
            for e in self.did
            if isinstance(e, Send | Exchange) and isinstance(e.packet, kind)
        ]

    def changed(self) -> list[tuple[str, MemberState | None]]:
        return [
            ((c.after or c.before).node_id, c.after.state if c.after else None)  # type: ignore[union-attr] # one of them is there
            for c in self.did
            if isinstance(c, MemberChanged)
        ]

    def told(self) -> list[Rumour]:
        return [r for e in self.did if isinstance(e, Send) for r in e.packet.rumours]  # type: ignore[union-attr] # Sync is never sent

    def state(self, name: str) -> MemberState | None:
        member = self.swim.member(nid(name))
        return None if member is None else member.state


def claim(name: str, state: MemberState, incarnation: int = BOOT, accuser: str = "") -> Rumour:
    return Rumour(Member(nid(name), f"{name}:1", incarnation, state), nid(accuser))


def test_a_ping_is_answered_with_its_sequence() -> None:
    desk = Desk("a")
    desk.did = desk.swim.on_packet(desk.now_ms, "a:1", Ping(nid("a"), nid("me"), 77))
    assert desk.sent(Ack)[0][0] == "a:1"
    assert isinstance(desk.did[0], Send)
    assert isinstance(desk.did[0].packet, Ack)
    assert desk.did[0].packet.sequence == 77


def test_a_ping_for_the_node_that_had_this_address_before_is_not_answered() -> None:
    desk = Desk("a")
    desk.did = desk.swim.on_packet(desk.now_ms, "a:1", Ping(nid("a"), nid("old"), 77))
    assert desk.sent(Ack) == []


def test_a_ping_by_exchange_is_answered_too() -> None:
    desk = Desk("a")
    answer, _ = desk.swim.on_exchange(desk.now_ms, "a:9", Ping(nid("a"), nid("me"), 5))
    assert answer == Ack(nid("me"), 5)


def test_every_member_is_probed_once_per_round() -> None:
    desk = Desk("a", "b", "c", "d")
    targets = []
    for _ in range(8):
        _, ping = desk.until_ping()
        desk.ack(ping)
        targets.append(ping.target)
    assert sorted(targets[:4]) == ["a", "b", "c", "d"]
    assert targets[4:] == targets[:4]


def test_who_was_heard_lately_is_probed_later() -> None:
    desk = Desk("a", "b", "c")
    first = []
    for _ in range(3):
        _, ping = desk.until_ping()
        desk.ack(ping)
        first.append(ping.target)
    desk.go(100)
    desk.hear(source=first[0])
    assert desk.until_ping()[1].target == first[1]


def test_an_answered_probe_asks_nobody_else() -> None:
    desk = Desk("a", "b")
    desk.ack(desk.until_ping()[1])
    desk.did.clear()
    desk.go(S.probe_ms - 1)
    assert desk.sent(PingRequest) == []
    assert desk.changed() == []


def test_an_unanswered_probe_asks_others_and_tries_tcp() -> None:
    desk = Desk("a", "b", "c", "d", "e")
    address, ping = desk.until_ping()
    desk.did.clear()
    desk.go(S.probe_timeout_ms)
    asked = desk.sent(PingRequest)
    assert len(asked) == S.indirect_probes
    assert address not in {where for where, _ in asked}
    by_tcp = [e for e in desk.did if isinstance(e, Exchange)]
    assert [(e.address, e.packet) for e in by_tcp] == [
        (address, Ping(nid("me"), ping.target, ping.sequence))
    ]
    assert by_tcp[0].timeout_ms <= S.probe_ms - S.probe_timeout_ms


def test_a_probe_without_any_answer_makes_a_suspect_and_tells_who_saw_it() -> None:
    desk = Desk("a", "b")
    _, ping = desk.until_ping()
    desk.did.clear()
    desk.go(S.probe_ms + S.gossip_ms)
    assert desk.changed() == [(ping.target, SUSPECT)]
    assert claim(ping.target, SUSPECT, accuser="me") in desk.told()


@pytest.mark.parametrize("way", ["direct", "helper", "tcp"])
def test_an_ack_by_any_way_within_the_period_keeps_it_alive(way: str) -> None:
    desk = Desk("a", "b")
    address, ping = desk.until_ping()
    desk.go(S.probe_timeout_ms + 100)
    if way == "tcp":
        answer = Ack(ping.target, ping.sequence)
        desk.did += desk.swim.on_answer(desk.now_ms, address, answer)
    else:
        desk.ack(ping, by="b" if way == "helper" else None)
    desk.go(S.probe_ms - S.probe_timeout_ms - 100)
    assert desk.state(ping.target) is ALIVE


def test_an_ack_of_another_sequence_is_no_answer() -> None:
    desk = Desk("a", "b")
    _, ping = desk.until_ping()
    desk.ack(Ping(ping.source, ping.target, ping.sequence ^ 1))
    desk.go(S.probe_ms)
    assert desk.state(ping.target) is SUSPECT


def test_a_helper_pings_for_another_and_passes_the_ack_on() -> None:
    desk = Desk("a", "b")
    request = PingRequest(nid("a"), nid("b"), "b:1", 9)
    desk.did = desk.swim.on_packet(desk.now_ms, "a:1", request)
    ((address, ping),) = desk.sent(Ping)
    assert isinstance(ping, Ping)
    assert address == "b:1"
    assert ping.sequence != 9
    desk.did.clear()
    desk.ack(ping)
    ((address, ack),) = desk.sent(Ack)
    assert isinstance(ack, Ack)
    assert (address, ack.sequence) == ("a:1", 9)


def test_a_helper_without_an_answer_says_that_at_least_it_hears() -> None:
    desk = Desk("a", "b")
    desk.swim.on_packet(desk.now_ms, "a:1", PingRequest(nid("a"), nid("b"), "b:1", 9))
    desk.go(S.probe_timeout_ms)
    nacks = desk.sent(Nack)
    assert len(nacks) == 1
    assert nacks[0][0] == "a:1"


def test_a_helper_does_not_relay_without_bound() -> None:
    desk = Desk("a", "b")
    for sequence in range(1_000):
        request = PingRequest(nid("a"), nid("b"), "b:1", sequence)
        desk.did += desk.swim.on_packet(desk.now_ms, "a:1", request)
    assert len(desk.sent(Ping)) == 256


@pytest.mark.parametrize(("nacks", "score"), [(3, 0), (2, 1), (0, 3)])
def test_missing_nacks_make_a_node_doubt_itself(nacks: int, score: int) -> None:
    desk = Desk("a", "b", "c", "d")
    _, ping = desk.until_ping()
    desk.go(S.probe_timeout_ms)
    for helper in [n for n in "abcd" if n != ping.target][:nacks]:
        desk.did += desk.swim.on_packet(
            desk.now_ms, f"{helper}:1", Nack(nid(helper), ping.sequence)
        )
    desk.go(S.probe_ms - S.probe_timeout_ms)
    assert desk.swim.health_score == score


def test_a_node_in_doubt_probes_slower_and_an_ack_restores_it() -> None:
    desk = Desk("a")
    desk.until_ping()
    desk.until_ping()  # nobody to ask about the first one: it may be us
    assert desk.swim.health_score == 1
    started_ms = desk.now_ms
    desk.hear(claim("a", ALIVE, BOOT + 1))
    _, ping = desk.until_ping()
    assert desk.now_ms - started_ms == 2 * S.probe_ms
    assert desk.swim.health_score == 2
    desk.ack(ping)
    assert desk.swim.health_score == 1


def test_a_suspect_that_does_not_refute_is_dead_after_the_suspicion() -> None:
    desk = Desk("a", "b")
    desk.hear(claim("b", SUSPECT, accuser="a"))
    desk.go(round(S.suspicion_mult * S.probe_ms) - 1)
    assert desk.state("b") is SUSPECT
    desk.go(S.tick_ms)
    assert desk.state("b") is DEAD


def test_a_suspect_refutes_with_a_higher_incarnation() -> None:
    desk = Desk("a", "b")
    desk.hear(claim("b", SUSPECT, accuser="a"))
    desk.hear(claim("b", ALIVE))
    assert desk.state("b") is SUSPECT
    desk.hear(claim("b", ALIVE, BOOT + 1))
    assert desk.state("b") is ALIVE
    desk.go(60_000 - S.probe_ms)
    assert (nid("b"), DEAD) not in desk.changed()[:2]


def test_further_accusers_shorten_the_suspicion_but_the_same_one_does_not() -> None:
    shortest_ms = round(S.suspicion_mult * S.probe_ms)
    for accusers, is_dead in ((("a", "a", "a"), False), (("a", "b", "c"), True)):
        desk = Desk("a", "b", "c", "d", "e")
        for accuser in accusers:
            desk.hear(claim("e", SUSPECT, accuser=accuser))
        desk.go(shortest_ms + S.tick_ms, silent="e")
        assert (desk.state("e") is DEAD) is is_dead


def test_a_relayed_further_accusation_is_passed_on() -> None:
    desk = Desk("a", "b", "c", "d", "e")
    desk.hear(claim("e", SUSPECT, accuser="a"))
    desk.hear(claim("e", SUSPECT, accuser="b"))
    desk.go(S.gossip_ms)
    assert {r.accuser for r in desk.told() if r.member.node_id == "e"} >= {"a", "b"}


@pytest.mark.parametrize("state", [SUSPECT, DEAD, LEFT])
def test_who_hears_itself_accused_says_with_a_new_incarnation_that_it_lives(
    state: MemberState,
) -> None:
    desk = Desk("a")
    desk.hear(claim("me", state, BOOT))
    assert desk.swim.me.incarnation == BOOT + 1
    desk.did.clear()
    desk.did = desk.swim.on_packet(desk.now_ms, "a:1", Ping(nid("a"), nid("me"), 1))
    mine = [r.member for r in desk.told() if r.member.node_id == "me"]
    assert [(m.state, m.incarnation, m.meta) for m in mine] == [(ALIVE, BOOT + 1, b"mine")]


@pytest.mark.parametrize("state", [ALIVE, SUSPECT, DEAD])
def test_an_earlier_life_with_higher_versions_is_outbid(state: MemberState) -> None:
    desk = Desk("a")
    old = Member(nid("me"), "old:1", BOOT + 50, state, BOOT + 60, b"old", BOOT + 70, b"old")
    desk.hear(Rumour(old))
    me = desk.swim.me
    assert (me.incarnation, me.address) == (BOOT + 51, "me:1")
    assert (me.meta_version, me.meta) == (BOOT + 61, b"mine")
    assert (me.stats_version, me.stats) == (BOOT + 71, b"")
    assert desk.swim.health_score == 0  # it is no sign of being sick


def test_the_news_of_an_earlier_life_is_answered_with_the_present_one() -> None:
    desk = Desk("a")
    desk.go(5_000)
    desk.did.clear()
    ping = Ping(nid("a"), nid("me"), 1, (claim("me", DEAD, BOOT - 10),))
    desk.did = desk.swim.on_packet(desk.now_ms, "a:1", ping)
    mine = [r.member for r in desk.told() if r.member.node_id == "me"]
    assert [(m.state, m.incarnation) for m in mine] == [(ALIVE, BOOT)]


def test_a_probe_of_a_suspect_tells_it_that_it_is_one() -> None:
    desk = Desk("a")
    desk.hear(claim("a", SUSPECT, accuser="x"))
    address, ping = desk.until_ping()
    assert address == "a:1"
    assert claim("a", SUSPECT) in ping.rumours


def test_the_dead_stay_dead_until_a_higher_incarnation() -> None:
    desk = Desk("a", "b")
    desk.hear(claim("b", DEAD))
    for incarnation, state in ((BOOT, DEAD), (BOOT + 1, ALIVE)):
        desk.hear(claim("b", ALIVE, incarnation))
        assert desk.state("b") is state


def test_the_dead_and_departed_whom_we_do_not_know_are_not_learnt() -> None:
    desk = Desk("a")
    desk.hear(claim("x", DEAD), claim("y", LEFT))
    assert [m.node_id for m in desk.swim.members()] == ["a", "me"]


def test_statistics_of_the_unknown_are_not_learnt() -> None:
    desk = Desk("a")
    desk.hear(Rumour(Member(nid("x"), stats_version=5, stats=b"s")))
    assert desk.state("x") is None


def test_whom_anothers_table_says_dead_we_only_suspect_if_we_think_it_alive() -> None:
    desk = Desk("a", "b")
    table = (claim("b", DEAD).member,)
    desk.did += desk.swim.on_exchange(desk.now_ms, "a:1", Sync(nid("a"), table))[1]
    assert desk.changed() == [("b", SUSPECT)]


def test_an_exchange_is_answered_with_the_whole_table() -> None:
    desk = Desk("a", "b")
    answer, _ = desk.swim.on_exchange(desk.now_ms, "c:1", Sync(nid("c"), ()))
    assert isinstance(answer, Sync)
    assert {m.node_id for m in answer.members} == {"me", "a", "b"}


def test_tables_are_compared_with_one_member_from_time_to_time() -> None:
    desk = Desk("a")
    for _ in range(70):
        desk.ack(desk.until_ping()[1])
    syncs = 0
    for _ in range(60):
        desk.ack(desk.until_ping()[1])
        syncs += len([e for e in desk.did if isinstance(e, Exchange)])
    assert syncs == 60 * S.probe_ms // S.sync_ms


def test_a_leaver_says_goodbye_at_once_and_probes_no_more() -> None:
    desk = Desk("a", "b")
    desk.did = desk.swim.leave(desk.now_ms)
    assert {e.address for e in desk.did if isinstance(e, Send)} == {"a:1", "b:1"}
    assert all(r.member.state is LEFT for r in desk.told() if r.member.node_id == "me")
    desk.did.clear()
    desk.go(10_000)
    assert desk.sent(Ping) == []
    assert not desk.swim.has_news
    desk.hear(claim("me", DEAD, BOOT))
    assert desk.swim.me.state is LEFT


def test_a_departed_member_is_not_revived_by_old_news_and_not_called_dead() -> None:
    desk = Desk("a", "b")
    desk.hear(claim("b", LEFT))
    desk.hear(claim("b", ALIVE), claim("b", SUSPECT, accuser="a"), claim("b", DEAD))
    assert desk.state("b") is LEFT


def test_the_dead_are_tried_again_until_they_are_forgotten() -> None:
    settings = GossipSettings(sync_ms=1_000, reap_ms=60_000)
    desk = Desk("a", settings=settings)
    desk.hear(claim("a", DEAD))
    desk.did.clear()
    desk.go(59_000)
    tries = [e for e in desk.did if isinstance(e, Exchange)]
    assert {e.address for e in tries} == {"a:1"}
    assert len(tries) >= 59_000 // settings.reconnect_ms - 1
    desk.did.clear()
    desk.go(3_000)
    assert desk.changed() == [("a", None)]
    desk.did.clear()
    desk.go(60_000)
    assert desk.did == []


def test_the_newly_dead_still_get_news_and_hear_what_is_said_of_them() -> None:
    desk = Desk("a", "b")
    desk.hear(claim("a", DEAD))

    def hears_news(news: bytes) -> bool:
        desk.did = desk.swim.set_meta(desk.now_ms, news)
        desk.go(2_000, silent="a")
        to_a = [e.packet for e in desk.did if isinstance(e, Send) and e.address == "a:1"]
        return any(isinstance(p, Gossip) and claim("a", DEAD) in p.rumours for p in to_a)

    assert hears_news(b"1")
    desk.go(S.dead_gossip_ms, silent="a")
    assert not hears_news(b"2")


def test_only_a_few_of_those_who_hear_of_a_suspect_look_at_it_next() -> None:
    others = [f"o{i:02}" for i in range(40)]
    looked = 0
    for seed in range(100):
        desk = Desk(*others, seed=seed)
        desk.until_ping()
        desk.hear(claim("o20", SUSPECT, accuser="o01"), source="o01")
        looked += desk.until_ping()[1].target == "o20"
    assert 3 <= looked <= 30  # 100 × (4 wanted of 39 witnesses), and 100 / 40 by chance


def test_seeds_are_asked_until_they_answer_once_and_never_oneself() -> None:
    desk = Desk()
    desk.did = desk.swim.on_join(desk.now_ms, ["s:1", "me:1", "s:1"])
    assert [e.address for e in desk.did if isinstance(e, Exchange)] == ["s:1"]
    desk.did.clear()
    desk.go(20_000)
    assert {e.address for e in desk.did if isinstance(e, Exchange)} == {"s:1"}
    desk.swim.on_answer(desk.now_ms, "s:1", Sync(nid("me"), ()))  # it was an alias of ourselves
    desk.did.clear()
    desk.go(60_000)
    assert desk.did == []


def test_a_stranger_who_knows_us_is_asked_for_its_table_but_not_for_each_packet() -> None:
    desk = Desk()
    for _ in range(5):
        packet = Ping(nid("x"), nid("me"), 1)
        desk.did += desk.swim.on_packet(desk.now_ms, "x:1", packet)
    assert [e.address for e in desk.did if isinstance(e, Exchange)] == ["x:1"]


def test_after_standing_still_nobody_is_blamed() -> None:
    desk = Desk("a", "b")
    _, ping = desk.until_ping()
    other = "a" if ping.target == "b" else "b"
    desk.hear(claim(other, SUSPECT, accuser=ping.target), source=ping.target)
    desk.now_ms += 60_000
    desk.tick()
    assert desk.state(ping.target) is ALIVE
    assert desk.state(other) is SUSPECT
    assert desk.swim.health_score == 1


def test_news_is_passed_on_a_bounded_number_of_times() -> None:
    desk = Desk("a", "b", "c", "d", "e", "f", "g", "h")
    desk.go(3_000)
    desk.did.clear()
    desk.did += desk.swim.set_meta(desk.now_ms, b"news")
    desk.go(900)
    told = [r for r in desk.told() if r.member.meta == b"news"]
    assert len(told) == 7  # ceil(3 ln 10); one news packet may go over by its fan-out


def test_only_the_newest_statistics_are_kept_and_they_are_no_change() -> None:
    desk = Desk("a")
    for version, stats in ((5, b"new"), (4, b"old")):
        desk.hear(Rumour(Member(nid("a"), stats_version=version, stats=stats)))
    member = desk.swim.member(nid("a"))
    assert member is not None
    assert member.stats == b"new"
    assert desk.changed() == []


def test_new_meta_of_a_suspect_is_learnt_and_passed_on() -> None:
    desk = Desk("a", "b", "c")
    desk.hear(claim("c", SUSPECT, accuser="a"))
    news = Member(nid("c"), "c:1", BOOT, ALIVE, 9, b"news")
    desk.hear(Rumour(news))
    assert desk.state("c") is SUSPECT
    desk.go(S.gossip_ms)
    assert b"news" in {r.member.meta for r in desk.told()}


def test_same_stats_and_meta_are_no_news() -> None:
    desk = Desk("a")
    desk.go(60_000)
    desk.swim.set_stats(desk.now_ms, b"")
    desk.swim.set_meta(desk.now_ms, b"mine")
    assert not [r for r in desk.told() if r.member.node_id == "me" and desk.now_ms > 61_000]


def test_a_lone_node_sleeps_long() -> None:
    desk = Desk()
    assert desk.swim.next_tick_ms - desk.now_ms >= 30_000


def test_the_table_is_bounded_and_the_longest_gone_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(roster, "MEMBERS_MAX", 4)
    desk = Desk("a", "b", "c")
    desk.hear(claim("x", ALIVE))
    assert desk.state("x") is None
    desk.hear(claim("b", DEAD))
    desk.hear(claim("x", ALIVE))
    assert [m.node_id for m in desk.swim.members()] == ["a", "c", "me", "x"]
