"""Which images may go: by tables, and whatever happens never one that is used, kept or not ours."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cube.model.housekeeping import DiskRoom, ImageVerdict
from cube.model.images import ImagePulled, ImageSeen, canonical, repository
from cube.worker.images import (
    NAMES_MAX,
    RECORDS_MAX,
    ImageMemory,
    ImageRecord,
    ImageSettings,
    room_wanted_bytes,
)

DAY_MS = 86_400_000
NOW_MS = 100 * DAY_MS
APP = "registry.test/app:1"
DIGEST = "sha256:" + 64 * "a"
NOBODY: frozenset[str] = frozenset()


def pulled(id_: str = "i1", name: str = APP, *, was_here: bool = False) -> ImagePulled:
    return ImagePulled(id=id_, name=canonical(name), was_here=was_here)


def image(id_: str = "i1", *names: str, **changes: object) -> ImageSeen:
    seen = ImageSeen(id=id_, names=names or (APP, f"registry.test/app@{DIGEST}"), size_bytes=7)
    return msgspec.structs.replace(seen, **changes)


def memory(*told: ImagePulled, at_ms: int = NOW_MS - 2 * DAY_MS) -> ImageMemory:
    made = ImageMemory((), DAY_MS)
    for one in told:
        made.pulled(one, at_ms)
    return made


def judge(
    known: ImageMemory, *seen: ImageSeen, wanted: frozenset[str] = NOBODY, now_ms: int = NOW_MS
) -> list[ImageVerdict]:
    return known.look(seen, wanted, now_ms, now_ms)


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.2", "docker.io/library/nginx:1.2"),
        ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
        ("docker.io/me/app:x", "docker.io/me/app:x"),
        ("me/app", "docker.io/me/app:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest"),
        ("127.0.0.1:5000/a/b:2", "127.0.0.1:5000/a/b:2"),
        (f"nginx:1.2@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"127.0.0.1:5000/a@{DIGEST}", f"127.0.0.1:5000/a@{DIGEST}"),
    ],
)
def test_all_ways_to_write_a_name_are_one(text: str, full: str) -> None:
    assert canonical(text) == full
    assert canonical(full) == full
    assert repository(full) == full.partition("@")[0].removesuffix(":" + full.rpartition(":")[2])


@pytest.mark.parametrize(
    ("seen", "wanted", "why"),
    [
        (image(), NOBODY, ""),
        (image("i1"), {APP}, "a task that is placed here"),
        (image("i1"), {f"registry.test/app@{DIGEST}"}, "a task that is placed here"),
        (image(users=("web-1", "web-2")), NOBODY, "a container has it: web-1"),
        (image("i1", APP, "mine:1"), NOBODY, "mine:1 is a name that Cube did not give it"),
        (image("i1", APP, f"other/app@{DIGEST}"), NOBODY, "a name that Cube did not give it"),
        (image(is_base=True), NOBODY, "another image is built on it"),
        (image("i2"), NOBODY, "Cube did not pull it here"),
        (image("i1", f"registry.test/app@{DIGEST}"), NOBODY, ""),  # its tag went elsewhere
    ],
)
def test_why_an_image_stays(seen: ImageSeen, wanted: set[str], why: str) -> None:
    [verdict] = judge(memory(pulled()), seen, wanted=frozenset(wanted))
    assert (why in verdict.keep) if why else (verdict.keep == "")


def test_what_was_here_before_is_not_ours_whatever_it_is_called_now() -> None:
    known = memory(pulled(was_here=True))
    assert known.records == ()
    [verdict] = judge(known, image())
    assert verdict.keep == "Cube did not pull it here"


def test_a_further_pull_gives_a_further_name() -> None:
    known = memory(pulled(), pulled(name="registry.test/app:2", was_here=True))
    [verdict] = judge(known, image("i1", APP, "registry.test/app:2"))
    assert verdict.keep == ""


def test_a_use_counts_from_its_end() -> None:
    known = memory(pulled())
    start_ms = NOW_MS
    judge(known, image(users=("web-1",)), now_ms=start_ms)
    [verdict] = judge(known, image(), now_ms=start_ms + DAY_MS - 1)
    assert verdict.keep == "last used 23h59m ago, less than 1d"
    judge(known, image(), wanted=frozenset({APP}), now_ms=start_ms + DAY_MS)
    [verdict] = judge(known, image(), now_ms=start_ms + 2 * DAY_MS - 1)
    assert "last used" in verdict.keep
    [verdict] = judge(known, image(), now_ms=start_ms + 2 * DAY_MS)
    assert (verdict.keep, verdict.used_at_ms) == ("", start_ms + DAY_MS)


def test_the_longest_unused_go_first_and_what_stays_comes_last() -> None:
    known = ImageMemory((), DAY_MS)
    for number, days in ((1, 3), (2, 5), (3, 4), (4, 0)):
        known.pulled(pulled(f"i{number}", f"a:{number}"), NOW_MS - days * DAY_MS)
    seen = [image(f"i{number}", f"a:{number}") for number in (1, 2, 3, 4)]
    found = judge(known, *seen, image("i5", "theirs:1"))
    assert [one.id for one in found] == ["i2", "i3", "i1", "i5", "i4"]
    assert [bool(one.keep) for one in found] == [False, False, False, True, True]


def test_what_is_gone_is_not_ours_when_somebody_brings_it_back() -> None:
    known = memory(pulled())
    judge(known, now_ms=NOW_MS)
    [verdict] = judge(known, image(), now_ms=NOW_MS + 1)
    assert verdict.keep == "Cube did not pull it here"


def test_what_came_while_the_engine_was_asked_is_remembered() -> None:
    known = memory(pulled(), at_ms=NOW_MS)
    assert known.look([], NOBODY, NOW_MS, NOW_MS + 5) == []
    assert [one.id for one in known.records] == ["i1"]


def test_a_clock_that_was_wrong_keeps_nothing_for_ever() -> None:
    known = memory(pulled(), at_ms=NOW_MS + 1000 * DAY_MS)
    [verdict] = judge(known, image())
    assert verdict.keep.startswith("last used 0ms ago")
    [verdict] = judge(known, image(), now_ms=NOW_MS + DAY_MS)
    assert verdict.keep == ""


def test_a_task_that_came_meanwhile_is_seen() -> None:
    known = memory(pulled())
    [verdict] = judge(known, image())
    assert known.may_go(verdict, NOBODY, NOW_MS)
    assert not known.may_go(verdict, frozenset({APP}), NOW_MS)
    known.pulled(pulled(was_here=True), NOW_MS)
    assert not known.may_go(verdict, NOBODY, NOW_MS)
    known.removed("i1")
    assert not known.may_go(verdict, NOBODY, NOW_MS + 10 * DAY_MS)


def test_the_memory_is_bounded() -> None:
    known = ImageMemory((), DAY_MS)
    for number in range(RECORDS_MAX + 1):
        known.pulled(pulled(f"i{number}", f"a:{number}"), NOW_MS)
    assert len(known.records) == RECORDS_MAX
    for number in range(NAMES_MAX + 1):
        known.pulled(pulled("i0", f"b:{number}", was_here=True), NOW_MS)
    assert len(known.records[0].names) == NAMES_MAX


@pytest.mark.parametrize(
    ("total", "percent", "free_min", "wanted"),
    [
        (1000, 80, 0, 200),
        (1000, 100, 900, 0),
        (1000, 0, 0, 1000),
        (1000, 80, 400, 500),  # a quarter more than what makes the node take tasks again
        (1000, 80, 4000, 1000),
    ],
)
def test_how_much_is_to_be_free(total: int, percent: int, free_min: int, wanted: int) -> None:
    room = DiskRoom(total_bytes=total, free_bytes=0)
    chosen = ImageSettings(disk_percent=percent, free_min_bytes=free_min)
    assert room_wanted_bytes(room, chosen) == wanted


# Whatever happens

IDS = ["i1", "i2", "i3"]
NAMES = ["a:1", "a:2", "b:1", "mine:1"]


class Model(RuleBasedStateMachine):
    """An engine that Cube and somebody else pull to, beside a memory, with agent deaths. The model
    knows for certain who brought what, and when anything last used it."""

    @initialize(unused_ms=st.sampled_from([0, 10, 1000]))
    def begin(self, unused_ms: int) -> None:
        self.unused_ms = unused_ms
        self.memory = ImageMemory((), unused_ms)
        self.now_ms = 1_000_000
        self.names: dict[str, set[str]] = {}  # by image that is here
        self.cubes: dict[str, set[str]] = {}  # names that Cube gave, by image that Cube brought
        self.users: dict[str, str] = {}  # image by container
        self.wanted: set[str] = set()
        self.used_ms: dict[str, int] = {}

    def _holder(self, name: str) -> str | None:
        return next((id_ for id_, names in self.names.items() if name in names), None)

    def _name(self, id_: str, name: str) -> bool:
        """The image has the name; whether it had not before."""
        holder = self._holder(name)
        if holder == id_:
            return False
        if holder is not None:
            self.names[holder].discard(name)
        self.names.setdefault(id_, set()).add(name)
        return True

    @rule(id_=st.sampled_from(IDS), name=st.sampled_from(NAMES[:3]))
    def cube_pulls(self, id_: str, name: str) -> None:
        was_here = id_ in self.names
        if not self._name(id_, name):
            return
        if not was_here:
            self.cubes[id_] = set()
        if id_ in self.cubes:
            self.cubes[id_].add(canonical(name))
        self.used_ms[id_] = self.now_ms
        self.memory.pulled(
            ImagePulled(id=id_, name=canonical(name), was_here=was_here), self.now_ms
        )

    @rule(id_=st.sampled_from(IDS), name=st.sampled_from(NAMES))
    def somebody_pulls_or_tags(self, id_: str, name: str) -> None:
        self._name(id_, name)

    @rule(id_=st.sampled_from(IDS))
    def somebody_removes(self, id_: str) -> None:
        if id_ in self.names and id_ not in self.users.values():
            del self.names[id_]
            self.cubes.pop(id_, None)
            self.look()  # what comes and goes between two looks is not seen: see the design page

    @rule(container=st.sampled_from("xyz"), id_=st.sampled_from(IDS))
    def container_begins(self, container: str, id_: str) -> None:
        if id_ in self.names:
            self.users[container] = id_

    @rule(container=st.sampled_from("xyz"))
    def container_goes(self, container: str) -> None:
        self.users.pop(container, None)

    @rule(name=st.sampled_from(NAMES))
    def task_comes(self, name: str) -> None:
        self.wanted.add(canonical(name))

    @rule(name=st.sampled_from(NAMES))
    def task_goes(self, name: str) -> None:
        self.wanted.discard(canonical(name))

    @rule(ms=st.integers(0, 2000))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule()
    def agent_dies(self) -> None:
        data = msgspec.json.encode(self.memory.records)
        self.memory = ImageMemory(msgspec.json.decode(data, type=list[ImageRecord]), self.unused_ms)

    @rule()
    def look(self) -> None:
        seen = [
            ImageSeen(
                id=id_,
                names=tuple(sorted(names)),
                users=tuple(sorted(c for c, of in self.users.items() if of == id_)),
            )
            for id_, names in self.names.items()
        ]
        self.now_ms += 1
        for id_ in self._used():
            self.used_ms[id_] = self.now_ms
        verdicts = self.memory.look(seen, frozenset(self.wanted), self.now_ms, self.now_ms)
        assert {one.id for one in verdicts} == set(self.names)
        order = [one.used_at_ms for one in verdicts if not one.keep]
        assert order == sorted(order)
        for one in verdicts:
            if not one.keep:
                assert self.memory.may_go(one, frozenset(self.wanted), self.now_ms)
                assert one.id in self.cubes, "not ours"
                assert one.id not in self._used(), "in use"
                names = {canonical(name) for name in self.names[one.id]}
                assert names <= self.cubes[one.id], "somebody's name"
                assert self.now_ms - self.used_ms[one.id] >= self.unused_ms

    def _used(self) -> set[str]:
        wanted = {
            id_
            for id_, names in self.names.items()
            if {canonical(name) for name in names} & self.wanted
        }
        return wanted | set(self.users.values())

    @invariant()
    def nothing_is_claimed_that_somebody_brought(self) -> None:
        if hasattr(self, "memory"):
            here = {one.id for one in self.memory.records} & set(self.names)
            assert here <= set(self.cubes)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
