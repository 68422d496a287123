"""apply(state, entry): the one way cluster state changes.

Total: never raises for an entry that decodes. Deterministic: no clock, no dice, no order of sets or
Maps. What cannot be done is a Rejected value, and then nothing but the memory of it has changed.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from cube.model import commands as c
from cube.model.cluster import OUTCOMES_MAX, ClusterSettings, ClusterState, RememberedOutcome
from cube.model.events import ClusterEvent, Event
from cube.model.outcome import Done, Outcome, Rejected, RejectReason
from cube.statemachine import deployments, jobs, nodes, plans, runs, stored, tasks, trust
from cube.statemachine.draft import Draft


class Step(msgspec.Struct, frozen=True):
    """`index` is where the outcome was first reached: below the entry's own for a repetition."""

    state: ClusterState
    outcome: Outcome
    events: tuple[Event, ...]
    index: int


def apply(state: ClusterState, entry: c.Entry) -> Step:
    """The state after the entry. Entries are given in index order, each once."""
    command = entry.command
    now_ms = max(state.now_ms, entry.at_ms)
    remembered = state.outcomes.get(command.id)
    if remembered is not None:
        passed = msgspec.structs.replace(state, index=entry.index, term=entry.term, now_ms=now_ms)
        if remembered.digest != command.digest:
            refusal = Rejected(
                RejectReason.KEY_REUSED, "this idempotency key was used with another request"
            )
            return Step(passed, refusal, (), entry.index)
        return Step(passed, remembered.outcome, (), remembered.index)
    draft = Draft(state, entry.index, entry.term, now_ms)
    outcome = _dispatch(draft, command)
    if isinstance(outcome, Rejected):
        events: tuple[Event, ...] = ()
        draft = Draft(state, entry.index, entry.term, now_ms)
    else:
        events = tuple(draft.events)
    return Step(_remember(draft.finish(), command, outcome), outcome, events, entry.index)


def _dispatch(draft: Draft, command: c.Command) -> Outcome:
    body = command.body
    match body:
        case c.ApplyPlan():
            return plans.apply_plan(draft, body)
        case c.ReportTasks():
            return tasks.report(draft, body)
        case c.SubmitJob():
            return jobs.submit(draft, body, command.actor)
        case c.ScaleJob():
            return jobs.scale(draft, body, command.actor)
        case c.RestartJob():
            return jobs.restart(draft, body, command.actor)
        case c.RollBackJob():
            return jobs.roll_back(draft, body, command.actor)
        case c.SteerDeployment():
            return deployments.steer(draft, body)
        case c.StopJob():
            return jobs.stop(draft, body)
        case c.StartJob():
            return jobs.start(draft, body, command.actor)
        case c.TriggerJob():
            return runs.trigger(draft, body)
        case c.DeleteJob():
            return jobs.delete(draft, body)
        case c.RestartTask() | c.StopTask() | c.NoteExec():
            return tasks.by_hand(draft, body, command.actor)
        case c.RegisterNode():
            return nodes.register(draft, body)
        case c.SetNodeStatus():
            return nodes.set_status(draft, body)
        case c.SetEligibility():
            return nodes.set_eligibility(draft, body)
        case c.SetDrain():
            return nodes.set_drain(draft, body)
        case c.SetLabels():
            return nodes.set_labels(draft, body)
        case c.RemoveNode():
            return nodes.remove(draft, body)
        case c.InitTrust():
            return trust.init(draft, body)
        case c.RotateJoinToken():
            return trust.rotate_join_token(draft, body)
        case c.CreateToken():
            return trust.create_token(draft, body)
        case c.KeepTokenKey():
            return trust.keep_token_key(draft, body)
        case c.RemoveToken():
            return trust.remove_token(draft, body)
        case c.InstallGossipKey():
            return trust.install_gossip_key(draft, body)
        case c.UseGossipKey():
            return trust.use_gossip_key(draft, body)
        case c.RemoveGossipKey():
            return trust.remove_gossip_key(draft, body)
        case c.StoreVersion():
            return stored.store(draft, body, command.actor)
        case c.RemoveStored():
            return stored.remove(draft, body)
        case c.InitCluster():
            return _init(draft, body)
        case c.ChangeSettings():
            return _change_settings(draft, body)
        case c.StartRebalance():
            return _start_rebalance(draft)
        case c.Noop():
            return Done(changed=False)
        case _:
            assert_never(body)


def _init(draft: Draft, body: c.InitCluster) -> Outcome:
    if draft.cluster_id:
        return Rejected(RejectReason.REFUSED, f"this is cluster {draft.cluster_name} already")
    draft.cluster_id = body.cluster_id
    draft.cluster_name = body.name
    draft.settings = body.settings
    draft.events.append(ClusterEvent("created"))
    return Done()


def _change_settings(draft: Draft, body: c.ChangeSettings) -> Outcome:
    given = {
        name: value
        for name in ClusterSettings.__struct_fields__
        if (value := getattr(body, name)) is not None
    }
    settings = msgspec.structs.replace(draft.settings, **given)
    if settings == draft.settings:
        return Done(changed=False)
    draft.settings = settings
    draft.events.append(ClusterEvent("settings"))
    return Done()


def _start_rebalance(draft: Draft) -> Outcome:
    is_new = draft.rebalance_since_ms == 0
    draft.rebalance_since_ms = draft.now_ms
    if is_new:
        draft.events.append(ClusterEvent("rebalance"))
    return Done(changed=is_new)


def _remember(state: ClusterState, command: c.Command, outcome: Outcome) -> ClusterState:
    """The outcome is kept under the command's id; the oldest one goes when there are too many."""
    sequence = state.outcome_next
    first = state.outcome_first
    outcomes = state.outcomes.set(
        command.id, RememberedOutcome(sequence, command.digest, state.index, outcome)
    )
    order = state.outcome_order.set(sequence, command.id)
    if sequence - first >= OUTCOMES_MAX:
        outcomes = outcomes.delete(order[first])
        order = order.delete(first)
        first += 1
    return msgspec.structs.replace(
        state,
        outcomes=outcomes,
        outcome_order=order,
        outcome_first=first,
        outcome_next=sequence + 1,
    )
