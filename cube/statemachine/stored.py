"""Secrets and configs: kept in versions, and which of them each version of a job has.

`JobVersion.uses` says so: key → version, 0 for what is looked up when it is needed (a registry's
login, and all that a cron job names: its runs have versions of their own). A version of a job goes on
with what it has, whatever comes later; going back to it goes back to that.
"""

from __future__ import annotations

import msgspec

from cube.model import commands as c
from cube.model.cluster import Job
from cube.model.events import ConfigEvent, SecretEvent
from cube.model.outcome import Done, Outcome, Rejected, RejectReason, StoredAccepted
from cube.model.spec import JobSpec, JobType
from cube.model.stored import (
    FINGERPRINT_BYTES,
    JOBS_MAX_EACH,
    NAME,
    NAME_ACCEPTED,
    NAMES_MAX,
    SEALED_BYTES_MAX,
    STORE_BYTES_MAX,
    VALUE_BYTES_MAX,
    VERSIONS_KEPT,
    Stored,
    StoredKind,
    StoredRef,
    StoredVersion,
    parse_key,
    refs_of,
)
from cube.statemachine import deployments
from cube.statemachine.draft import Draft
from cube.statemachine.volumes import forget_unused

NAMED_MAX = 5  # jobs named in a sentence
LISTED_MAX = 20  # jobs listed in an outcome
_ROLLED = (JobType.SERVICE, JobType.SYSTEM)


# What jobs use


def uses_of(draft: Draft, spec: JobSpec) -> dict[str, int]:
    """What a version of a job with this spec has when it begins now: all of it is there."""
    uses: dict[str, int] = {}
    for ref, is_in_tasks in refs_of(spec).items():
        stored = draft.stored(ref.key)
        is_fixed = is_in_tasks and spec.type is not JobType.CRON
        uses[ref.key] = stored.newest.version if stored is not None and is_fixed else 0
    return uses


def refusal(draft: Draft, spec: JobSpec) -> Rejected | None:
    """Why no version of a job can have this spec now, as far as it is about secrets and configs."""
    refs = list(refs_of(spec))
    missing = [ref for ref in refs if draft.stored(ref.key) is None]
    if missing:
        what = ", ".join(f"no {ref}" for ref in missing[:NAMED_MAX])
        more = f" (and {len(missing) - NAMED_MAX} more)" if len(missing) > NAMED_MAX else ""
        first = missing[0]
        return Rejected(
            RejectReason.REFUSED,
            f"there is {what}{more}; `cube {first.kind.value} set {first.name}` makes it",
        )
    if not refs:
        return None
    for ref in refs:
        others = (job for job in draft.jobs_using(ref.key) if job.listed and job.name != spec.name)
        if sum(ref.key in job.versions[-1].uses for job in others) >= JOBS_MAX_EACH:
            return Rejected(RejectReason.LIMIT, f"{ref} is used by {JOBS_MAX_EACH} jobs, its limit")
    return None


def lost(draft: Draft, uses: dict[str, int]) -> str:
    """What of it was removed; empty: nothing."""
    for key, version in sorted(uses.items()):
        stored = draft.stored(key)
        if stored is None or (version and stored.at(version) is None):
            return f"version {version} of {parse_key(key)}" if version else str(parse_key(key))
    return ""


# Setting


def store(draft: Draft, body: c.StoreVersion, actor: str) -> Outcome:
    """The value is the newest version, and services whose tasks are started with it have a new version
    too, with a deployment that says so. The same value again changes nothing."""
    wrong = _wrong(body)
    if wrong:
        return Rejected(RejectReason.INVALID, wrong)
    ref = StoredRef(body.kind, body.name)
    known = draft.stored(ref.key)
    present = 0 if known is None else known.newest.version
    if body.expected_version is not None and body.expected_version != present:
        at = f"is at version {present}" if present else "does not exist"
        wanted = f", not {body.expected_version}" if body.expected_version and present else ""
        return Rejected(RejectReason.CONFLICT, f"{ref} {at}{wanted}")
    if known is not None and _is_same(known.newest, body):
        return StoredAccepted(body.kind, body.name, present, changed=False)
    using = draft.jobs_using(ref.key)
    version = StoredVersion(
        version=present + 1 if known is not None else _last_remembered(using, ref.key) + 1,
        data=body.data,
        fingerprint=body.fingerprint,
        size_bytes=body.size_bytes,
        created_at_ms=draft.now_ms,
        actor=actor,
    )
    after = _with_version(draft, ref, known, version, using)
    over = _over_limits(draft, known, after)
    if over:
        return Rejected(RejectReason.LIMIT, over)
    draft.put_stored(after)
    _announce(draft, ref, "set", version.version)
    rolled = _roll(draft, ref, version.version, actor, using)
    return StoredAccepted(
        body.kind, body.name, version.version, True, tuple(rolled[:LISTED_MAX]), len(rolled)
    )


def _wrong(body: c.StoreVersion) -> str:
    is_secret = body.kind is StoredKind.SECRET
    if not NAME.fullmatch(body.name):
        return f"the name of a {body.kind.value} has {NAME_ACCEPTED}"
    if not 0 <= body.size_bytes <= VALUE_BYTES_MAX:
        return f"a value has at most {VALUE_BYTES_MAX} bytes"
    if len(body.fingerprint) != (FINGERPRINT_BYTES if is_secret else 0):
        return "no fingerprint of a secret"
    if is_secret and not body.size_bytes < len(body.data) <= SEALED_BYTES_MAX:
        return "a secret that is not sealed"
    if not is_secret and len(body.data) != body.size_bytes:
        return "a size that is not the value's"
    return ""


def _is_same(newest: StoredVersion, body: c.StoreVersion) -> bool:
    if body.kind is StoredKind.SECRET:  # sealed anew each time
        return newest.fingerprint == body.fingerprint
    return newest.data == body.data


def _last_remembered(using: list[Job], key: str) -> int:
    """A version of a job that remembers one of before must not take another value for it."""
    numbers = [entry.uses.get(key, 0) for job in using for entry in job.versions]
    return max(numbers, default=0)


def _with_version(
    draft: Draft,
    ref: StoredRef,
    known: Stored | None,
    version: StoredVersion,
    using: list[Job],
) -> Stored:
    """With it, and without those of before that are neither recent nor any job's."""
    if known is None:
        return Stored(kind=ref.kind, name=ref.name, versions=(version,), created_at_ms=draft.now_ms)
    recent = known.versions[1 - VERSIONS_KEPT :]
    used = {entry.uses.get(ref.key, 0) for job in using for entry in job.versions}
    older = [one for one in known.versions[: 1 - VERSIONS_KEPT] if one.version in used]
    return msgspec.structs.replace(known, versions=(*older, *recent, version))


def _over_limits(draft: Draft, known: Stored | None, after: Stored) -> str:
    others = [one for one in draft.every_stored() if one.ref != after.ref]
    if known is None and sum(one.kind is after.kind for one in others) >= NAMES_MAX:
        return f"the cluster has {NAMES_MAX} {after.kind.value}s, its limit"
    total = sum(one.size_bytes for one in others) + after.size_bytes
    if total > STORE_BYTES_MAX:
        return f"secrets and configs would have {total} bytes; {STORE_BYTES_MAX} are the limit"
    return ""


def _roll(draft: Draft, ref: StoredRef, version: int, actor: str, using: list[Job]) -> list[str]:
    """The names of the jobs that have a new version because of it, sorted."""
    jobs = [
        job
        for job in using
        if job.listed
        and not job.stopped
        and job.spec.type in _ROLLED
        and job.versions[-1].uses.get(ref.key, 0)
    ]
    jobs.sort(key=lambda job: job.name)
    reason = f"{ref} is at version {version}"
    for job in jobs:
        newest = job.versions[-1]
        uses = {**newest.uses, ref.key: version}
        after = deployments.add_version(
            draft, job, newest.spec, actor, newest.generation, uses, reason=reason
        )
        # A new password must not bring a new image with it.
        entry = msgspec.structs.replace(
            after.versions[-1], digests={**after.versions[-1].digests, **newest.digests}
        )
        after = msgspec.structs.replace(after, versions=(*after.versions[:-1], entry))
        draft.put_job(after, f"{ref.kind.value}_changed")
        forget_unused(draft, after)
    return [job.name for job in jobs]


# Removing


def remove(draft: Draft, body: c.RemoveStored) -> Outcome:
    """Nothing is kept of it. Refused while a job needs it, or would when it goes back."""
    ref = StoredRef(body.kind, body.name)
    known = draft.stored(ref.key)
    if known is None:
        return Rejected(RejectReason.NOT_FOUND, f"there is no {ref}")
    users = users_of(draft, ref.key)
    if users:
        named = ", ".join(users[:NAMED_MAX])
        more = f" and {len(users) - NAMED_MAX} more" if len(users) > NAMED_MAX else ""
        return Rejected(
            RejectReason.REFUSED,
            f"{ref} is used by {named}{more}; run them without it first, or remove them",
        )
    draft.drop_stored(ref.key)
    _announce(draft, ref, "removed", known.newest.version)
    return Done()


def users_of(draft: Draft, key: str) -> list[str]:
    """The jobs that need it, sorted: what they run with, want, or would go back to."""
    return sorted({job.name for job in draft.jobs_using(key) if _needs(draft, job, key)})


def _needs(draft: Draft, job: Job, key: str) -> bool:
    using = {entry.version for entry in job.versions if key in entry.uses}
    if not using or job.deleted:
        return False
    if not job.parent and not using.isdisjoint({job.version, deployments.last_stable(job)}):
        return True
    if job.parent:
        parent = draft.job(job.parent)
        if parent is not None and parent.cron is not None:
            return any(run.job_id == job.id for run in parent.cron.active)
    return any(task.version in using for task in draft.tasks_of_job(job.id) if not task.released)


def _announce(draft: Draft, ref: StoredRef, kind: str, version: int) -> None:
    event = SecretEvent if ref.kind is StoredKind.SECRET else ConfigEvent
    draft.events.append(event(ref.name, kind, version))
