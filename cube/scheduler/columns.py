"""The choice for a whole group at once, in columns. See place.py for why it is exact."""

from __future__ import annotations

import numpy as np

from cube.model.spec import PlacementPolicy
from cube.scheduler import score
from cube.scheduler.candidates import Candidates, ranks_of, room_for, zone_loads
from cube.scheduler.mirror import NO_PLACE, Mirror
from cube.scheduler.vector import Ints, policy_cost, power, share

ZONES_MAX = 32  # with more, one scan for each costs more than the heap
LEVEL_CELLS_MAX = 1 << 20  # of the (node, level) table: 8 MB; beyond it the heap is no slower
_NO_KEY = np.iinfo(np.int64).max


def by_columns(mirror: Mirror, candidates: Candidates, wanted: int) -> list[int] | None:
    """Rows in order of choice; None when only the heap can tell."""
    combined = candidates.combined
    if wanted == 1:  # most jobs: spare the list of all that fit
        least = combined.min()
        if least == NO_PLACE:
            return []
        return _listed(_first_of(mirror, candidates, (combined == least).nonzero()[0])[0])
    rows = np.flatnonzero(combined != NO_PLACE)
    chosen = _best_of(mirror, candidates, rows, wanted)
    if chosen is None:
        return None
    return _listed(chosen[0])


def _listed(rows: Ints) -> list[int]:
    found: list[int] = rows.tolist()
    return found


def _first_of(mirror: Mirror, candidates: Candidates, rows: Ints) -> tuple[Ints, Ints]:
    """(row, key), an array of one each: the best of these rows, all of which cost the same."""
    keys = (candidates.combined[rows] << score.RANK_BITS) + ranks_of(mirror, candidates, rows)
    at = int(keys.argmin())
    return rows[at : at + 1], keys[at : at + 1]


def _best_of(
    mirror: Mirror, candidates: Candidates, rows: Ints, wanted: int
) -> tuple[Ints, Ints] | None:
    """(rows, keys) in order of choice among these rows, all of which fit one task; None when
    only the heap can tell."""
    if not len(rows):
        return rows, rows
    if wanted == 1:
        combined = candidates.combined[rows]
        return _first_of(mirror, candidates, rows[combined == combined.min()])
    keys = (candidates.combined[rows] << score.RANK_BITS) + ranks_of(mirror, candidates, rows)
    if len(rows) > wanted:
        best = np.argpartition(keys, wanted - 1)[:wanted]
        rows, keys = rows[best], keys[best]
    order = np.argsort(keys)
    rows, keys = rows[order], keys[order]
    if len(rows) == wanted and _one_each_is_best(keys, candidates.step):
        return rows, keys
    room = room_for(mirror, candidates, rows, wanted)
    if candidates.ask.policy is PlacementPolicy.BINPACK:
        used = int(np.searchsorted(np.cumsum(room), wanted)) + 1
        filled = np.repeat(np.arange(len(rows))[:used], room[:used])[:wanted]
        return rows[filled], keys[filled]
    return _by_levels(mirror, candidates, rows, keys, room, wanted)


def by_zones(mirror: Mirror, candidates: Candidates, wanted: int) -> list[int] | None:
    """Rows in order of choice with spread_over; None when only the heap can tell.

    A zone's picks raise its load by one each, so the picks of all zones are a merge of lists
    that are sorted by (load, key); so are those of zones within a zone."""
    names = candidates.want.spec.placement.spread_over
    zones = mirror.zones(names)
    if candidates.ask.policy is PlacementPolicy.BINPACK or len(zones) > ZONES_MAX:
        return None  # binpack's keys fall while a node fills
    loads = zone_loads(mirror, names, candidates.on_node)
    lists: dict[tuple[str, ...], tuple[Ints, list[Ints]]] = {}
    for zone, members in zones.items():
        rows = members[candidates.combined[members] != NO_PLACE]
        best = _best_of(mirror, candidates, rows, wanted)
        if best is None:
            return None
        lists[zone] = (best[0], [best[1]])
    for depth in range(len(names), 0, -1):
        joined: dict[tuple[str, ...], list[tuple[Ints, list[Ints]]]] = {}
        for zone, (rows, columns) in lists.items():
            load = loads.get(zone, 0) + np.arange(len(rows), dtype=np.int64)
            joined.setdefault(zone[: depth - 1], []).append((rows, [load, *columns]))
        lists = {zone: _merge(parts, wanted) for zone, parts in joined.items()}
    return _listed(lists[()][0])


def _by_levels(
    mirror: Mirror, candidates: Candidates, rows: Ints, keys: Ints, room: Ints, wanted: int
) -> tuple[Ints, Ints] | None:
    levels = min(int(room.max()), -(-wanted // len(rows)) + 1)
    while True:
        if len(rows) * levels > LEVEL_CELLS_MAX:
            return None
        table = _level_keys(mirror, candidates, rows, keys, room, levels)
        if levels > 1 and bool((table[:, 1:] < table[:, :-1]).any()):
            return None
        flat = table.ravel()
        if len(flat) > wanted:
            chosen = np.argpartition(flat, wanted - 1)[:wanted]
        else:
            chosen = np.arange(len(flat))
        chosen = chosen[flat[chosen] != _NO_KEY]
        at = chosen // levels
        taken = np.bincount(at, minlength=len(rows))
        if not bool(((taken == levels) & (room > levels)).any()):
            order = np.argsort(flat[chosen], kind="stable")
            return rows[at[order]], flat[chosen[order]]
        if len(chosen) == wanted:  # rows whose first key was not chosen never will be
            keep = taken > 0
            rows, keys, room = rows[keep], keys[keep], room[keep]
        levels = min(int(room.max()), levels * 4)


def _level_keys(
    mirror: Mirror, candidates: Candidates, rows: Ints, keys: Ints, room: Ints, levels: int
) -> Ints:
    """Row by level: the key of the (level + 1)-th task on that node, _NO_KEY where none fits."""
    if levels == 1:
        return keys[:, None]
    ask, scan = candidates.ask, candidates.scan
    level = np.arange(levels, dtype=np.int64)[None, :]
    if ask.policy is PlacementPolicy.ROUNDROBIN:
        cost = np.minimum(mirror.active()[rows][:, None] + level, score.COST_MAX)
    else:
        need = ask.need
        used = np.stack(
            (
                mirror.used[0, rows][:, None] + level * need.cpu_milli,
                mirror.used[1, rows][:, None] + level * need.memory_bytes,
            )
        )
        capacity = mirror.capacity[:2, rows][:, :, None]
        wide = np.broadcast_to(capacity, used.shape)
        grown = (scan.growth_cpu[rows][:, None], scan.growth_memory[rows][:, None])
        powers = (mirror.x[rows][:, None], mirror.y[rows][:, None])
        if ask.policy is PlacementPolicy.EPVM:
            powers = (power(share(used[0], wide[0])), power(share(used[1], wide[1])))
        cost = policy_cost(ask, scan.unit, used, wide, powers, grown)
    # The points and the rank are those of the first key; clipped points would be wrong here,
    # but the heap's are clipped: POINTS_MAX is 10,000 tasks of one group on one node away.
    first = candidates.combined[rows] - scan.cost[rows]
    rank = keys & (score.NODES_MAX - 1)
    points = first[:, None] + (level * candidates.step << score.COST_BITS)
    table: Ints = np.where(
        level < room[:, None],
        ((points + cost) << score.RANK_BITS) + rank[:, None],
        _NO_KEY,
    )
    return table


def _one_each_is_best(keys: Ints, step: int) -> bool:
    """The worst of these first keys, in order, is below the second key of even the best: a second
    task on a node costs `step` points more, and points go before cost and rank."""
    bits = score.COST_BITS + score.RANK_BITS
    return step > 0 and int(keys[-1]) < ((int(keys[0]) >> bits) + step) << bits


def _merge(parts: list[tuple[Ints, list[Ints]]], most: int) -> tuple[Ints, list[Ints]]:
    """One list of rows in order of their columns, the first column first."""
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([rows for rows, _ in parts])
    columns = [np.concatenate(column) for column in zip(*(part[1] for part in parts), strict=True)]
    order = np.lexsort(columns[::-1])[:most]
    return rows[order], [column[order] for column in columns]
