"""Wall clocks that can be wrong: a small library, preloaded into an agent, and the file that it reads
the error from."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clockstep.c")
_LIBRARY = "clockstep.so"


def why_no_clocks() -> str:
    """Why this machine cannot do it; empty when it can."""
    return "" if shutil.which("cc") else "needs cc, to build a wrong clock"


def build(directory: Path) -> None:
    """`directory` has what clocks need."""
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(directory / _LIBRARY),
         str(_SOURCE), "-ldl"],
        check=True, capture_output=True,
    )  # fmt: skip


class Clock:
    """The wall clock of every process that is started with this environment."""

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / f"{name}.clock"
        self.environment = {
            "LD_PRELOAD": str(directory / _LIBRARY),
            "CUBE_TEST_CLOCK_STEP": str(self._path),
        }
        self._path.write_bytes(struct.pack("=q", 0))

    def step(self, error_ms: int) -> None:
        """It is wrong by so much from now on."""
        with self._path.open("r+b") as file:
            file.write(struct.pack("=q", error_ms))
