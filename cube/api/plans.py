"""/v1/jobs/plan and /v1/nodes/{node}/plan: what would come of it, and nothing is changed."""

from __future__ import annotations

import msgspec
from aiohttp import web

from cube.api import render
from cube.api.bodies import read_json
from cube.api.call import Call
from cube.api.errors import Problem, refused
from cube.api.jobs import all_warnings, find_job_version, read_job
from cube.api.lookup import find_node
from cube.model import commands
from cube.model.cluster import ClusterState, Job
from cube.model.dryrun import DryRun, GroupEffect, JobEffect, Move
from cube.model.ids import JobId
from cube.model.jobdiff import spec_changes
from cube.model.lifecycle import NodeStatus
from cube.model.outcome import JobAccepted, Rejected
from cube.model.planviews import (
    ChangeView,
    GroupEffectView,
    JobEffectView,
    JobPlanView,
    MoveView,
    NodePlanView,
    PlacementView,
)
from cube.model.spec import JobSpec
from cube.model.stored import refs_of
from cube.model.units import parse_duration_ms
from cube.model.views import ProblemError

ACTIONS = ("drain", "lose")
DRAIN_DEADLINE = "5m"  # what `cube node drain` gives


class NodePlanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    action: str
    deadline: str | int | float = DRAIN_DEADLINE


async def plan_job(call: Call) -> web.Response:
    spec, _, notes = await read_job(call)
    old = call.state.job_named(spec.name)
    command = commands.SubmitJob(spec, JobId(call.api.new_id()))
    found = await _foreseen(call, command)
    assert isinstance(found.outcome, JobAccepted), found.outcome
    own = next((effect for effect in found.jobs if effect.job == spec.name), _NOTHING)
    changes = spec_changes(None if old is None else old.spec, spec)
    view = JobPlanView(
        name=spec.name,
        version=find_job_version(call, spec.name),
        changed=found.outcome.changed,
        changes=tuple(ChangeView(one.path, one.old, one.new) for one in changes)
        + _newer_values(call.state, old, spec),
        groups=_groups(own, tuple(sorted(spec.groups))),
        placements=tuple(
            PlacementView(move.group, move.slot, move.node) for move in own.moves if move.node
        ),
        moves=_moves(own.moves),
        explanations=tuple(render.explanation_view(one) for one in own.explanations),
        others=tuple(_effect(effect) for effect in found.jobs if effect is not own),
        warnings=notes + all_warnings(call, spec),
        fails=own.fails,
        cut=found.cut,
        index=found.index,
    )
    return call.json(view)


def _newer_values(state: ClusterState, old: Job | None, spec: JobSpec) -> tuple[ChangeView, ...]:
    """Of the secrets and configs that the job has and keeps: those that it would get in a newer version."""
    uses = {} if old is None else old.versions[-1].uses
    found = []
    for ref in refs_of(spec):
        stored, version = state.stored.get(ref.key), uses.get(ref.key, 0)
        if version and stored is not None and stored.newest.version != version:
            path = f"{ref.kind.value}s.{ref.name}"
            found.append(ChangeView(path, version, stored.newest.version))
    return tuple(found)


async def plan_node(call: Call) -> web.Response:
    node = find_node(call.state, call.path("node"))
    body, _ = await read_json(call, NodePlanBody)
    if body.action not in ACTIONS:
        raise _invalid("action", f"must be one of {', '.join(ACTIONS)}")
    if body.action == "lose":
        reason = "as if it were lost"
        found = await _foreseen(
            call, commands.SetNodeStatus(call.state.term, node.id, NodeStatus.DOWN, reason)
        )
    else:
        try:
            deadline_ms = parse_duration_ms(body.deadline)
        except ValueError as error:
            raise _invalid("deadline", str(error)) from None
        found = await _foreseen(call, commands.SetDrain(node.id, deadline_ms))
    view = NodePlanView(
        node=node.name,
        action=body.action,
        fits=not any(effect.displaced for effect in found.jobs),
        jobs=tuple(_effect(effect) for effect in found.jobs if effect.groups),
        cut=found.cut,
        index=found.index,
    )
    return call.json(view)


async def _foreseen(
    call: Call, body: commands.SubmitJob | commands.SetDrain | commands.SetNodeStatus
) -> DryRun:
    """Raises Problem when the command itself would be refused."""
    found = await call.api.cluster.dry_run(call.state, body)
    if isinstance(found.outcome, Rejected):
        raise refused(found.outcome)
    return found


def _invalid(key: str, problem: str) -> Problem:
    return Problem("invalid", f"{key}: {problem}", errors=(ProblemError(f"/{key}", problem, key),))


_NOTHING = JobEffect("", {})


def _groups(effect: JobEffect, names: tuple[str, ...] = ()) -> dict[str, GroupEffectView]:
    """`names`: groups to tell of though nothing changes in them."""
    found: dict[str, GroupEffectView] = {}
    for name in sorted({*effect.groups, *names}):
        one = effect.groups.get(name, GroupEffect())
        found[name] = GroupEffectView(
            one.create, one.stop, one.update_in_place, one.replace, one.unplaced
        )
    return found


def _moves(moves: tuple[Move, ...]) -> tuple[MoveView, ...]:
    return tuple(
        MoveView(move.group, move.slot, move.came_from or None, move.node or None) for move in moves
    )


def _effect(effect: JobEffect) -> JobEffectView:
    return JobEffectView(
        job=effect.job,
        groups=_groups(effect),
        moves=_moves(effect.moves),
        explanations=tuple(render.explanation_view(one) for one in effect.explanations),
        displaced=effect.displaced,
        fails=effect.fails,
    )
