"""A Docker Engine of a test's own, that can be hung, killed, filled up and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.docker_rig import CHECKOUT, add_image

STOPS_S = 60.0  # for a signal to take effect
SCRIPT = CHECKOUT / "scripts" / "test-engine"


class PrivateEngine:
    def __init__(self, home: Path, *flags: str) -> None:
        self.home = home
        self._flags = flags
        self.host = f"unix://{home}/docker.sock"

    def start(self) -> None:
        words = [
            sys.executable,
            str(SCRIPT),
            "start",
            str(self.home),
            "--net",
            "none",
            *self._flags,
        ]
        subprocess.run(words, check=True, capture_output=True, timeout=120)

    def stop(self) -> None:
        words = [sys.executable, str(SCRIPT), "stop", str(self.home)]
        subprocess.run(words, check=True, capture_output=True, timeout=120)

    def signal(self, number: int) -> None:
        os.kill(int((self.home / "docker.pid").read_text()), number)

    def _stands_still(self) -> bool:
        """The signal is sent at once, and takes effect thread by thread: one may still answer."""
        threads = Path(f"/proc/{(self.home / 'docker.pid').read_text()}/task").glob("*/stat")
        return all(one.read_text().rpartition(")")[2].split()[0] == "T" for one in threads)

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        self.signal(signal.SIGSTOP)
        try:
            deadline = time.monotonic() + STOPS_S
            while not self._stands_still():
                assert time.monotonic() < deadline, "the engine does not stand still"
                time.sleep(0.001)
            yield
        finally:
            self.signal(signal.SIGCONT)


@contextlib.contextmanager
def private_engine(*flags: str) -> Iterator[PrivateEngine]:
    """Started with those flags of scripts/test-engine, and with the image; skips where it cannot be."""
    if os.geteuid() != 0:
        pytest.skip("a private Docker Engine needs root")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in ("dockerd", "containerd") if not shutil.which(name, path=path)]:
        pytest.skip(f"{', '.join(missing)} missing: apt-get install -y docker.io")
    home = Path(tempfile.mkdtemp(prefix="cube", dir="/tmp"))  # short: a socket's path is bounded
    engine = PrivateEngine(home, *flags)
    try:
        engine.start()
        add_image(engine.host)
        yield engine
    finally:
        engine.stop()
