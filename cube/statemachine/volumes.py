"""Volumes make their slots sticky: a slot's tasks go where its volumes are, or nowhere."""

from __future__ import annotations

from cube.model.cluster import Job
from cube.model.ids import NodeId
from cube.model.spec import GroupSpec, JobType
from cube.model.volumes import Volume, volumes_of
from cube.statemachine.draft import Draft


def elsewhere(
    draft: Draft, job: Job, name: str, slot: int, sources: tuple[str, ...], at: NodeId
) -> bool:
    """Whether one of the volumes `sources` of the slot is on another node than this one."""
    return any(
        volume is not None and volume.node_id != at
        for volume in (draft.volume(job.volumes_id, name, slot, source) for source in sources)
    )


def settle(
    draft: Draft, job: Job, name: str, slot: int, sources: tuple[str, ...], at: NodeId
) -> None:
    """The slot's volumes `sources` are on this node from now on."""
    for source in sources:
        if draft.volume(job.volumes_id, name, slot, source) is None:
            draft.put_volume(
                Volume(
                    name=source,
                    node_id=at,
                    job_id=job.volumes_id,
                    job=job.name,
                    group=name,
                    slot=slot,
                    created_at_ms=draft.now_ms,
                )
            )


def sticky(job: Job, group: GroupSpec) -> tuple[str, ...]:
    """The volumes that tie the group's slots to a node. A system job has a task on every node
    anyway, and on each its own volumes."""
    return () if job.spec.type is JobType.SYSTEM else volumes_of(group)


def forget_unused(draft: Draft, job: Job) -> None:
    """Volumes that no remembered version of the job, nor a run of it, mounts are forgotten; their data
    stays."""
    runs = () if job.cron is None else [draft.job(run.job_id) for run in job.cron.runs]
    specs = [version.spec for one in (job, *runs) if one is not None for version in one.versions]
    used = {
        (name, source)
        for spec in specs
        for name, group in spec.groups.items()
        for source in volumes_of(group)
    }
    draft.drop_volumes(job.id, lambda volume: (volume.group, volume.name) not in used)
