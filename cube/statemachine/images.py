"""Which image a version of a job runs: the first digest that a node reports for its tag, everywhere.

A tag may come to mean another image at any time. What a version ran first it runs on every node, in every
slot and after every restart; a new version asks anew, but for the groups whose tasks go on.
"""

from __future__ import annotations

import msgspec

from cube.model.cluster import Job, JobVersion, Task
from cube.model.images import digest_in, is_digest
from cube.statemachine.draft import Draft


def record(draft: Draft, task: Task) -> None:
    """The versions that the task may go on in know the digest of its image, unless they know one."""
    job = draft.job(task.job_id)
    if job is None or not is_digest(task.image_digest):
        return
    known = {
        entry.version: _with(entry, task.group, task.image_digest)
        for entry in job.versions
        if job.same_container(task.group, task.version, entry.version)
    }
    versions = tuple(known.get(entry.version, entry) for entry in job.versions)
    if versions == job.versions:
        return
    draft.put_job(msgspec.structs.replace(job, versions=versions), "")
    parent = draft.job(job.parent) if job.parent else None
    if parent is not None:  # of a run: later runs of the same version have the same image
        versions = tuple(
            _with(entry, task.group, task.image_digest) if entry.version == task.version else entry
            for entry in parent.versions
        )
        draft.put_job(msgspec.structs.replace(parent, versions=versions), "")


def _with(entry: JobVersion, group: str, digest: str) -> JobVersion:
    spec = entry.spec.groups.get(group)
    if spec is None or not spec.image or digest_in(spec.image) or spec.image in entry.digests:
        return entry
    return msgspec.structs.replace(entry, digests={**entry.digests, spec.image: digest})


def inherited(job: Job) -> Job:
    """The newest version has the digests of those groups whose tasks go on in it; of several versions
    the newest one's counts."""
    newest = job.versions[-1]
    for entry in reversed(job.versions[:-1]):
        for name, group in newest.spec.groups.items():
            digest = entry.digests.get(group.image)
            if digest and job.same_container(name, entry.version, newest.version):
                newest = _with(newest, name, digest)
    if newest is job.versions[-1]:
        return job
    return msgspec.structs.replace(job, versions=(*job.versions[:-1], newest))
