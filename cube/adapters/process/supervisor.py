"""One process per attempt of a task, outside the task's limits, that outlives the agent.

It claims the attempt (at most one supervisor ever does), starts the command, writes the command's
output to bounded files, waits for its end, kills all that the command left behind, and writes down
how it ended. Then it ends too. The agent learns of that through a pidfd.

Run by `python -I -S -c BOOTSTRAP` with the standard library and its sister modules wire, host and
output alone: it is the price of every task, so it imports next to nothing (no json, no re, no enum,
no contextlib: 3 MB of private memory instead of 5). It also must run on when the agent above it is
upgraded: all is imported at the start, and what it reads and writes is versioned.

File descriptors: 0 the order (a memfd, which stays open: the agent reads the environment back from
it, so that no secret touches the disk); 1 the pipe on which the agent waits for the start; 2 a log
for the case that this program itself is wrong.
"""

from __future__ import annotations

# The C half of `signal`: without its enums a supervisor is 0.7 MB smaller and 3 ms faster.
import _signal as signal  # type: ignore[import-not-found]
import ctypes
import errno
import os
import select
import time

from cube.adapters.process.host import (
    all_stats,
    boot_id,
    cgroup_pids,
    kill_marked,
    kill_round,
    oom_kills,
    remove_cgroups,
    start_time,
    task_pids,
)
from cube.adapters.process.lease import LeaseWatch
from cube.adapters.process.output import StreamFiles
from cube.adapters.process.wire import (
    READ_BYTES,
    VERSION,
    Order,
    first,
    ignoring,
    read_all,
    to_json,
    unpack,
    write_file,
    write_new,
    write_over,
)

BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from cube.adapters.process.supervisor import main; main()"
)
KILL_ROUNDS = 200  # × 1–50 ms: what survives 10 s of KILL hangs in the kernel
DRAIN_READS_MAX = 64  # 4 MiB: no pipe of an unprivileged user holds more than 1
RECORD_BYTES = 4096  # one block; JSON does not mind blanks behind it
MESSAGE_CHARS_MAX = 500  # escaped at worst six bytes each
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
NEVER_STARTED = 127
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)  # which a supervisor does not hear
STDIN_FD = 3  # where a command that somebody talks to finds its input


# When memory runs out the kernel shall take the task, not who tells of its end: as the kubelet has it
# for what holds a pod together. Only root may ask for this; the task is put back to what is usual.
OOM_SCORE_ADJ = b"-998"
OOM_SCORE_ADJ_OF_TASKS = b"0"


class Supervisor:
    """The life of one attempt."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._directory = first(order, "dir")
        self._reserved = f"{self._directory}/exit.json.{os.getpid()}"
        self._cgroups = [os.fsdecode(d) for d in order.get("cgroup", [])]
        self._pid = 0
        self._streams: dict[int, StreamFiles] = {}
        self._wake_fd = -1
        self._lease = LeaseWatch(order) if "lease_file" in order else None

    def run(self) -> None:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        set_oom_score_adj(OOM_SCORE_ADJ_OF_TASKS)  # at least not the agent's
        set_oom_score_adj(OOM_SCORE_ADJ)
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # it ends with its command, not before
        if not self._claim():
            self._tell(b"claimed")
            return
        failure = self._start()
        if failure is not None:
            code, message, may_pass = failure
            self._kill_the_rest()  # a child that was not let through its gate, at most
            self._record_end(None, code, message, may_pass)
            self._finish()
            self._tell(b"failed")
            return
        self._tell(b"running")
        exit_code = self._watch()
        self._kill_the_rest()
        self._drain()
        self._record_end(exit_code)
        self._finish()

    def _claim(self) -> bool:
        me = os.getpid()
        write_file(self._reserved, b" " * RECORD_BYTES, os.O_CREAT)
        is_ours = write_new(
            self._directory + "/claim.json",
            to_json(
                {
                    "version": VERSION,
                    "cluster_id": first(self._order, "cluster_id"),
                    "node_id": first(self._order, "node_id"),
                    "task_id": first(self._order, "task_id"),
                    "attempt": int(first(self._order, "attempt")),
                    "boot_id": boot_id(),
                    "supervisor_pid": me,
                    "supervisor_start_time": start_time(me),
                }
            ),
        )
        if not is_ours:
            os.unlink(self._reserved)
        return is_ours

    def _start(self) -> tuple[str, str, bool] | None:
        """The command runs; or why not. It is written down before it can do anything: its process
        waits at a gate, and ends by itself when this one dies before opening it."""
        outs = [os.pipe(), os.pipe()]
        gate, errors = os.pipe(), os.pipe()
        self._listen_for_children()
        # What is sent to the command before it can end by it waits until then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        try:
            self._pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            return "out_of_processes", f"cannot fork: {error.strerror}", True
        if self._pid == 0:
            for number in ENDING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._be_the_command(outs[0][1], outs[1][1], gate, errors[1])
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for fd in (outs[0][1], outs[1][1], gate[0], errors[1]):
            os.close(fd)
        self._open_streams(outs[0][0], outs[1][0])
        try:
            for directory in self._cgroups:
                write_file(directory + "/cgroup.procs", str(self._pid).encode())
        except OSError as error:
            os.close(gate[1])
            return "limits_not_set", f"cannot join a control group: {error.strerror}", True
        # Whoever reads of the run signals the session of that name: there must be one.
        os.read(errors[0], 1)
        try:
            self._record_run()
        except OSError as error:
            os.close(gate[1])
            return "host_refused", f"{self._directory}: {error.strerror}", True
        with ignoring(BrokenPipeError):  # it has ended by a signal already
            os.write(gate[1], b"!")
        os.close(gate[1])
        report = b""
        while part := os.read(errors[0], READ_BYTES):
            report += part
        os.close(errors[0])
        if not report:
            return None
        code, message, may_pass = report.decode("utf-8", "replace").split("\0")
        return code, message, may_pass == "1"

    def _record_run(self) -> None:
        write_over(
            self._directory + "/run.json",
            to_json(
                {
                    "version": VERSION,
                    "pid": self._pid,
                    "start_time": start_time(self._pid),
                    "started_at_ms": time.time_ns() // 1_000_000,
                }
            ),
        )

    def _be_the_command(self, out: int, err: int, gate: tuple[int, int], errors: int) -> None:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            os.write(errors, b".")
            os.close(gate[1])
            if os.read(gate[0], 1):
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(out, 1)
                os.dup2(err, 2)
                code, message, may_pass = become(self._order)
                os.write(errors, f"{code}\0{message}\0{int(may_pass)}".encode("utf-8", "replace"))
        finally:
            os._exit(NEVER_STARTED)

    def _listen_for_children(self) -> None:
        self._wake_fd, wake_up = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(wake_up, False)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _open_streams(self, out: int, err: int) -> None:
        directory = first(self._order, "logs")
        segment_bytes = int(first(self._order, "segment_bytes"))
        segments = int(first(self._order, "segments"))
        for fd, stream in ((out, "stdout"), (err, "stderr")):
            os.set_blocking(fd, False)
            self._streams[fd] = StreamFiles(directory, stream, segment_bytes, segments)

    def _watch(self) -> int:
        """Until the command has ended. Output is written, adopted orphans are buried meanwhile."""
        poll = select.poll()
        for fd in (self._wake_fd, *self._streams):
            poll.register(fd, select.POLLIN)
        while True:
            status = self._bury()
            if status is not None:
                return status
            self._keep_lease()
            for fd, _ in poll.poll(self._until_look_ms()):
                if fd == self._wake_fd:
                    self._forget_wake_ups()
                elif not self._copy(fd):
                    poll.unregister(fd)

    def _until_look_ms(self) -> int | None:
        return None if self._lease is None else self._lease.due_ms(monotonic_ms())

    def _keep_lease(self) -> None:
        """A task that needs a lease ends when there is none: with or without an agent."""
        if self._lease is None:
            return
        what = self._lease.look(monotonic_ms())
        if what == "stop":
            stop_signal = int(first(self._order, "stop_signal"))
            groups = {self._pid}
            for pid, stat in all_stats().items():
                if stat[2] == self._pid:
                    with ignoring(ProcessLookupError):
                        groups.add(os.getpgid(pid))
            for group in groups:
                for number in (stop_signal, signal.SIGCONT):
                    with ignoring(ProcessLookupError, PermissionError):
                        os.killpg(group, number)
        elif what == "kill":
            kill_round(task_pids(os.getpid(), self._pid, self._cgroups), self._cgroups)

    def _bury(self) -> int | None:
        """Buries who has died. The command's exit code once it was among them."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            if pid == self._pid:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code

    def _forget_wake_ups(self) -> None:
        with ignoring(BlockingIOError):
            while os.read(self._wake_fd, 4096):
                pass

    def _copy(self, fd: int) -> bool:
        """One piece of output is kept. False: there will be no more."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return True
        if data:
            self._streams[fd].write(data, time.time_ns() // 1_000_000)
        return bool(data)

    def _kill_the_rest(self) -> None:
        """The command is buried, and nothing that it started lives: by the kernel's own word that we
        have no child any more (all its orphans became ours), and that the cgroups are empty. Looking
        through /proc only finds whom to kill: a look can miss what forks meanwhile."""
        me = os.getpid()
        for turn in range(KILL_ROUNDS):
            if not self._has_children() and not cgroup_pids(self._cgroups):
                break
            kill_round(task_pids(me, 0, self._cgroups), self._cgroups)
            time.sleep(0.001 if turn < 10 else 0.05)
        if not self._cgroups:  # commands beside the task were the agent's children, not ours
            kill_marked(first(self._order, "task_id"))

    def _has_children(self) -> bool:
        """Buries the dead ones first."""
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return False
        return True

    def _drain(self) -> None:
        """What was written before the end is kept. All writers are dead: reading never waits."""
        for fd in self._streams:
            for _ in range(DRAIN_READS_MAX):
                if not self._copy(fd):
                    break
            self._streams[fd].close()

    def _record_end(
        self, exit_code: int | None, failure: str = "", message: str = "", may_pass: bool = False
    ) -> None:
        """In blocks that were reserved at the start: a full disk does not cost the exit code."""
        record = to_json(
            {
                "version": VERSION,
                "exit_code": exit_code,
                "oom_killed": exit_code not in (None, 0) and oom_kills(self._cgroups) > 0,
                "finished_at_ms": time.time_ns() // 1_000_000,
                "failure": failure,
                "message": message[:MESSAGE_CHARS_MAX],
                "is_transient": may_pass,
            }
        )
        write_file(self._reserved, record.ljust(RECORD_BYTES))
        os.rename(self._reserved, self._directory + "/exit.json")

    def _finish(self) -> None:
        """Nothing is left of it in the kernel."""
        remove_cgroups(self._cgroups)

    def _tell(self, word: bytes) -> None:
        """The agent that asked knows; when it has died meanwhile, nobody needs to."""
        with ignoring(BrokenPipeError):
            os.write(1, word)
        os.dup2(2, 1)


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def prctl(option: int, value: int) -> None:
    """Best effort: without it, daemons are found by cgroup alone."""
    with ignoring(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def set_oom_score_adj(value: bytes) -> None:
    """Best effort: who is not root may not make itself a less likely victim than others."""
    with ignoring(OSError):
        write_file("/proc/self/oom_score_adj", value)


def become(order: Order) -> tuple[str, str, bool]:
    """Does not return when all goes well. Else: a code, what to look at, whether it may pass."""
    argv, cwd = order["argv"], first(order, "cwd")
    env = dict(e.partition(b"=")[::2] for e in order.get("env", []))
    for number in (signal.SIGPIPE, signal.SIGXFSZ, *ENDING):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    set_oom_score_adj(OOM_SCORE_ADJ_OF_TASKS)
    try:
        os.chdir(cwd)  # before the user changes: the data directory above may be root's alone
    except OSError as error:
        return "working_dir_missing", f"cannot enter {cwd}: {error.strerror}", False
    for limit in order.get("rlimit", []):  # while it is still root, if it was
        failure = set_limit(limit)
        if failure:
            return "limits_not_set", failure, False
    try:
        if order.get("uid"):
            os.setgroups([int(g) for g in order.get("group", [])])
            os.setgid(int(order["gid"][0]))
            os.setuid(int(order["uid"][0]))
    except OSError as error:
        return "user_not_allowed", f"cannot become the user: {error.strerror}", False
    if (
        first(order, "mode") != "supervise"
    ):  # beside a task; another user than before has it no more
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return execute(argv, env)


def set_limit(limit: bytes) -> str:
    """This process has the limit; else why not."""
    import resource  # most tasks do without, and without its 70 KB

    number, soft, hard, name = limit.decode().split(" ")
    try:
        resource.setrlimit(int(number), (int(soft), int(hard)))
    except (OSError, ValueError) as error:
        have = resource.getrlimit(int(number))[1]
        return (
            f"cannot set ulimits.{name} to {soft} (hard: {hard}), the agent's own hard limit is {have}: "
            f"{error}"
        )
    return ""


def execute(argv: list[bytes], env: dict[bytes, bytes]) -> tuple[str, str, bool]:
    """Becomes the command. Comes back only when that failed: code, sentence, whether it may pass."""
    name = os.fsdecode(argv[0])
    folders = [b""] if b"/" in argv[0] else env.get(b"PATH", os.defpath.encode()).split(b":")
    denied, absent = "", f"no {name} in PATH ({os.fsdecode(b':'.join(folders))})"
    for folder in folders:
        path = os.path.join(folder, argv[0])
        try:
            os.execve(path, argv, env)
        except (FileNotFoundError, NotADirectoryError):
            if os.path.exists(path):
                absent = (
                    f"{os.fsdecode(path)} names an interpreter (first line) that does not exist"
                )
            elif folder == b"":
                absent = f"there is no {name}"
        except PermissionError:
            if folder and not os.path.exists(path):
                continue  # a folder of PATH that this user may not look into
            denied = f"{os.fsdecode(path)} may not be executed: look at its mode and its folders'"
        except OSError as error:
            may_pass = error.errno in (errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)
            code = "argv_too_long" if error.errno == errno.E2BIG else "command_not_executable"
            return code, f"cannot run {os.fsdecode(path)}: {error.strerror}", may_pass
    if denied:
        return "command_not_executable", denied, False
    return "command_not_found", absent, False


def run_beside(order: Order) -> None:
    """Become a command where a running task is: same cgroups, user, directory, environment."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for directory in order.get("cgroup", []):
        with ignoring(OSError):
            write_file(os.fsdecode(directory) + "/cgroup.procs", b"0")
    _, message, _ = become(order)
    os.write(2, message.encode("utf-8", "replace") + b"\n")
    os._exit(NEVER_STARTED)


def main() -> None:
    """Descriptor 0 is the order: what it says has been done. Does not return from an attached one."""
    order = unpack(read_all(0))
    mode = first(order, "mode")
    os.closerange(STDIN_FD + (mode == "attached"), os.sysconf("SC_OPEN_MAX"))
    if mode == "attached":
        from cube.adapters.process.attached import run_attached  # none of a supervisor's concern

        run_attached(order)
    if mode == "beside":
        run_beside(order)
    Supervisor(order).run()
