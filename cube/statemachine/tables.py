"""Parts of a state under change, and folded at the end: maps, maps of maps, and sets of ids."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Generic, TypeVar

import immutables

from cube.model.cluster import Task
from cube.model.ids import TaskId
from cube.model.tally import Change, tally_after
from cube.model.taskids import NO_JOB_TASKS, NO_TASKS, JobTaskIds, TaskIdSet

K = TypeVar("K")
IK = TypeVar("IK")
V = TypeVar("V")
S = TypeVar("S", bound=Collection[TaskId])


class Nested(Generic[K, IK, V]):
    """A map of maps under change. An inner map that becomes empty is dropped.

    An inner map is either open (being mutated) or folded (immutable, and may be iterated).
    """

    def __init__(self, base: immutables.Map[K, immutables.Map[IK, V]]) -> None:
        self._base = base
        self._open: dict[K, immutables.MapMutation[IK, V]] = {}
        self._folded: dict[K, immutables.Map[IK, V]] = {}

    def fold(self, key: K) -> immutables.Map[IK, V]:
        """The inner map as it stands, to be read."""
        mutation = self._open.pop(key, None)
        if mutation is not None:
            self._folded[key] = mutation.finish()
        folded = self._folded.get(key)
        if folded is None:
            folded = self._base.get(key)
        return immutables.Map() if folded is None else folded

    def open(self, key: K) -> immutables.MapMutation[IK, V]:
        inner = self._open.get(key)
        if inner is None:
            inner = self._open[key] = self.fold(key).mutate()
        return inner

    def set(self, key: K, inner_key: IK, value: V) -> None:
        inner = self._open.get(key)
        if inner is not None:
            inner[inner_key] = value
        elif key in self._folded:
            self.open(key)[inner_key] = value
        else:  # most inner maps of an entry are written to once: a mutation costs more than it saves
            base = self._base.get(key)
            self._folded[key] = (immutables.Map() if base is None else base).set(inner_key, value)

    def discard(self, key: K, inner_key: IK) -> None:
        inner = self.open(key)
        if inner_key in inner:
            del inner[inner_key]

    def get(self, key: K, inner_key: IK) -> V | None:
        inner = self._open.get(key)
        return self.fold(key).get(inner_key) if inner is None else inner.get(inner_key)

    def finish(self) -> immutables.Map[K, immutables.Map[IK, V]]:
        for key in list(self._open):
            self.fold(key)
        if not self._folded:
            return self._base
        outer = self._base.mutate()
        for key, inner in self._folded.items():
            if inner:
                outer[key] = inner
            elif key in outer:
                del outer[key]
        return outer.finish()


class Table(Generic[K, V]):
    """A map under change. Untouched, it ends as the very map that it began as: readers compare
    maps by identity before they look inside."""

    def __init__(self, base: immutables.Map[K, V]) -> None:
        self._base = base
        self._open: immutables.MapMutation[K, V] | None = None

    def open(self) -> immutables.MapMutation[K, V]:
        if self._open is None:
            self._open = self._base.mutate()
        return self._open

    def get(self, key: K) -> V | None:
        return self._base.get(key) if self._open is None else self._open.get(key)

    def __getitem__(self, key: K) -> V:
        return self._base[key] if self._open is None else self._open[key]

    def __setitem__(self, key: K, value: V) -> None:
        self.open()[key] = value

    def __contains__(self, key: K) -> bool:
        return key in (self._base if self._open is None else self._open)

    def __len__(self) -> int:
        return len(self._base if self._open is None else self._open)

    def discard(self, key: K) -> None:
        if key in self:
            del self.open()[key]

    def values(self) -> Iterable[V]:
        """As they stand, in no order: sort before it can reach an output."""
        return self.finish().values()

    def finish(self) -> immutables.Map[K, V]:
        if self._open is not None:
            self._base, self._open = self._open.finish(), None
        return self._base


class _IdSets(Generic[K, S]):
    """Sets of task ids by key, under change. A set that becomes empty is dropped. What is added and
    what is gone are gathered, and folded into a key's set once."""

    def __init__(self, base: immutables.Map[K, S], nothing: S) -> None:
        self._base = base
        self._nothing = nothing
        self._changed: dict[K, S] = {}
        self._added: dict[K, list[TaskId]] = {}  # not in `_changed` yet
        self._gone: dict[K, set[TaskId]] = {}  # still in `_changed`, or in the base

    def add(self, key: K, id_: TaskId) -> None:
        """It was not among them."""
        added = self._added.get(key)
        if added is None:
            self._added[key] = [id_]
        else:
            added.append(id_)

    def add_all(self, key: K, ids: Iterable[TaskId]) -> None:
        self._added.setdefault(key, []).extend(ids)

    def discard(self, key: K, id_: TaskId) -> None:
        if key in self._added:
            self.of(key)
        self._gone.setdefault(key, set()).add(id_)

    def of(self, key: K) -> S:
        """As it stands."""
        found = self._changed.get(key)
        if found is None:
            found = self._base.get(key, self._nothing)
        gone, added = self._gone.pop(key, None), self._added.pop(key, None)
        if gone is None and added is None:
            return found
        # Gone first: one that is added after it went is there again.
        found = self._changed[key] = self._folded(found, gone or set(), added or [])
        return found

    def _folded(self, found: S, gone: set[TaskId], added: list[TaskId]) -> S:
        raise NotImplementedError

    def finish(self) -> immutables.Map[K, S]:
        for key in [*self._gone, *self._added]:
            self.of(key)
        if not self._changed:
            return self._base
        outer = self._base.mutate()
        for key, ids in self._changed.items():
            if ids:
                outer[key] = ids
            elif key in outer:
                del outer[key]
        return outer.finish()


class JobIds(_IdSets[K, JobTaskIds]):
    """Of few keys that many ids change of at a time, and that are read often: jobs. Their tallies are
    carried on, where there are any."""

    def __init__(self, base: immutables.Map[K, JobTaskIds]) -> None:
        super().__init__(base, NO_JOB_TASKS)
        self._changes: dict[K, list[Change]] = {}

    def change(self, key: K, old: Task, new: Task) -> None:
        """One of its tasks has changed."""
        changes = self._changes.get(key)
        if changes is None:
            changes = self._changes[key] = []
        changes.append((old, new))

    def place(self, key: K, tasks: Collection[Task]) -> None:
        self.add_all(key, [task.id for task in tasks])
        self._changes.setdefault(key, []).extend([(None, task) for task in tasks])

    def drop(self, key: K, task: Task) -> None:
        self.discard(key, task.id)
        self._changes.setdefault(key, []).append((task, None))

    def finish(self) -> immutables.Map[K, JobTaskIds]:
        folded = super().finish()
        if not self._changes:
            return folded
        outer = folded.mutate()
        for key, changes in self._changes.items():
            ids = self._changed.get(key)
            if ids is None:
                ids = outer[key] = folded[key].again()
            before = self._base.get(key)
            if before is not None and before.tally is not None and ids:
                ids.tally = tally_after(before.tally, changes)
        return outer.finish()

    def _folded(self, found: JobTaskIds, gone: set[TaskId], added: list[TaskId]) -> JobTaskIds:
        return found.changed(gone, added)


class NodeIds(_IdSets[K, TaskIdSet]):
    """Of many keys that a few ids change of at a time: nodes."""

    def __init__(self, base: immutables.Map[K, TaskIdSet]) -> None:
        super().__init__(base, NO_TASKS)

    def _folded(self, found: TaskIdSet, gone: set[TaskId], added: list[TaskId]) -> TaskIdSet:
        if gone:
            found = found.without(gone)
        return found.with_(added)
