"""What applying an entry changed. Hints: whoever loses one looks at the state."""

from __future__ import annotations

import msgspec

from cube.model.deployment import DeploymentStatus
from cube.model.ids import JobId, NodeId, TaskId
from cube.model.lifecycle import Desired, Health, NodeStatus, TaskState


class ClusterEvent(msgspec.Struct, frozen=True, tag="cluster", tag_field="topic"):
    kind: str  # created | settings | …


class NodeEvent(msgspec.Struct, frozen=True, tag="node", tag_field="topic"):
    node_id: NodeId
    node: str
    kind: str  # registered | facts | status | eligibility | drain | labels | removed
    status: NodeStatus
    reason: str = ""


class JobEvent(msgspec.Struct, frozen=True, tag="job", tag_field="topic"):
    job_id: JobId
    job: str
    # submitted | scaled | restarted | rolled_back | secret_changed | config_changed | stopped |
    # started | deleted | removed; of cron jobs: run_skipped; of their runs: run_started |
    # run_stopping | run_stopped | run_completed | run_failed | run_removed
    kind: str
    version: int
    run: int = 0  # of a cron job; 0: the event is not about one


class DeploymentEvent(msgspec.Struct, frozen=True, tag="deployment", tag_field="topic"):
    """A deployment as it is after the change."""

    job_id: JobId
    job: str
    version: int
    status: DeploymentStatus
    message: str = ""


class TaskEvent(msgspec.Struct, frozen=True, tag="task", tag_field="topic", gc=False):
    """A task as it is after the change; `kind` removed: it was reaped."""

    task_id: TaskId
    task: str
    job_id: JobId
    job: str
    group: str
    slot: int
    node_id: NodeId
    kind: str  # placed | state | health | desired | version | released | removed
    state: TaskState
    desired: Desired
    health: Health
    attempt: int
    reason: str = ""
    message: str = ""


class ExecEvent(msgspec.Struct, frozen=True, tag="exec", tag_field="topic"):
    """Somebody ran a command beside a task. See commands.NoteExec; the message has it as a sentence."""

    task_id: TaskId
    task: str
    job: str
    node_id: NodeId
    kind: str  # ran | counted
    attempt: int
    actor: str
    role: str
    name: str
    remote: str
    through: str
    program: str
    arguments: int
    tty: bool
    begun_at_ms: int
    more: int
    message: str


class SecretEvent(msgspec.Struct, frozen=True, tag="secret", tag_field="topic"):
    """Never with anything of its value."""

    name: str
    kind: str  # set | removed
    version: int


class ConfigEvent(msgspec.Struct, frozen=True, tag="config", tag_field="topic"):
    name: str
    kind: str  # set | removed
    version: int


Event = (
    ClusterEvent
    | NodeEvent
    | JobEvent
    | DeploymentEvent
    | TaskEvent
    | ExecEvent
    | SecretEvent
    | ConfigEvent
)
