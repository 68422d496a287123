"""Between the fork of a command and its becoming what it is to be."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SUPERVISE = """
import os, sys, time
from cube.adapters.process import supervisor
from cube.adapters.process.supervisor import Supervisor, signal

folder, number = sys.argv[1], int(sys.argv[2])
setsid = os.setsid
os.setsid = lambda: time.sleep(0.3) or setsid()  # a busy machine
order = {"argv": [b"sleep", b"1000"], "cwd": [folder.encode()], "dir": [folder.encode()],
         "logs": [folder.encode()], "segment_bytes": [b"1000"], "segments": [b"2"],
         "env": [b"PATH=" + os.environb[b"PATH"]], "mode": [b"supervise"]}
for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(ignored, signal.SIG_IGN)  # as run() has it
one = Supervisor(order)
record = one._record_run
def known():
    record()
    os.killpg(one._pid, number)  # everybody can read of the run now, and the gate is shut still
    os.waitid(os.P_PID, one._pid, os.WEXITED | os.WNOWAIT)
one._record_run = known
assert one._start() is None
print(os.waitstatus_to_exitcode(os.waitpid(one._pid, 0)[1]))
os.kill(os.getpid(), signal.SIGTERM)  # and the supervisor itself is as deaf as before
print("still here")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_command_that_does_not_run_yet_is_stopped_by_its_signal(
    tmp_path: Path, number: signal.Signals
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUPERVISE, str(tmp_path), str(int(number))],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == [str(-number), "still here"], done.stderr
