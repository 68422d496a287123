"""The whole suite, as several pytest processes side by side; what scripts/test does without arguments.

Most tests wait: for elections, engines, deadlines. So those that compute have one process, and those
that wait for agents have others (PARTS). They share the machine and the Docker Engine of the tests;
listening ports come from a share for each part.

Dots are shown as they come, marked with the name of their part. What a part says of failures comes in
one piece when it has ended; the last lines tell how each part ended, and which tests to run again.

Exit: 0 when every part passed, 130 when interrupted, else 1.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import FIRST, LAST

ROOT = Path(__file__).resolve().parents[1]

# Each with what it runs; the last runs everything else, also what is added later. They should take about
# as long as each other: the longest is what people wait for.
PARTS = {
    "agents": ["tests/e2e"],
    "faults": [
        "tests/faults",
        "tests/raft",
        "tests/e2e/test_campaign.py",
        "tests/e2e/test_voters.py",
    ],
    "contract": ["tests/contract"],
    "rest": ["tests"],
}
SLOWEST = ("--durations=10", "--durations-min=5")  # told of each part
PROGRESS = re.compile(r"[.FEsxX]+( +\[ *\d+%\])?$")  # a line of dots, as pytest -q prints it
FAILED = re.compile(r"(?:FAILED|ERROR) (.+?)(?: - .*)?$")
TOTAL = re.compile(r"=* ?((?:\d+ [a-z]+(?:, )?)+ in [\d.]+s.*?) ?=*$")


def arguments(parts: dict[str, list[str]]) -> dict[str, list[str]]:
    """pytest's, by the name of the part: what another part names, and this one only includes, is the
    other's. So every test is run once."""
    everywhere = [path for paths in parts.values() for path in paths]
    return {
        name: [*paths, *(f"--ignore={one}" for one in everywhere if _is_within(one, paths))]
        for name, paths in parts.items()
    }


def _is_within(path: str, paths: list[str]) -> bool:
    return any(path.startswith(f"{outer}/") for outer in paths)


@dataclass
class Part:
    """One pytest process. `follow` returns when it has ended, with `code` and `lines` set."""

    name: str
    arguments: list[str]
    ports: str
    printing: threading.Lock
    lines: list[str] = field(default_factory=list)  # all that it said, but for the dots
    code: int = -1
    taken_s: float = 0.0
    _process: subprocess.Popen[str] = field(init=False)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "pytest", *SLOWEST, *self.arguments],
            cwd=ROOT,
            env={**os.environ, "CUBE_TEST_PORTS": self.ports},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def follow(self) -> None:
        began = time.monotonic()
        output = self._process.stdout
        assert output is not None
        with output:
            for line in map(str.rstrip, output):
                if PROGRESS.match(line):
                    with self.printing:
                        print(f"{self.name:>8} {line}", flush=True)
                else:
                    self.lines.append(line)
        self.code = self._process.wait()
        self.taken_s = time.monotonic() - began
        with self.printing:
            print(f"\n===== {self.name}: pytest {' '.join(self.arguments)}")
            print("\n".join(self.lines), flush=True)

    def failed(self) -> list[str]:
        return [found[1] for line in self.lines if (found := FAILED.match(line))]

    def told(self) -> str:
        totals = [found[1] for line in self.lines if (found := TOTAL.match(line))]
        how = "passed" if self.code == 0 else f"FAILED (exit {self.code})"
        return f"{self.name:>8} {how}: {totals[-1] if totals else f'{self.taken_s:.0f} s'}"


def run(parts: dict[str, list[str]]) -> int:
    """Every part has ended, and was told of; the exit code."""
    printing = threading.Lock()
    share = (LAST - FIRST + 1) // len(parts)
    running = []
    for number, (name, words) in enumerate(arguments(parts).items()):
        first = FIRST + number * share
        running.append(Part(name, words, f"{first}-{first + share - 1}", printing))
    for part in running:
        part.start()
    threads = [threading.Thread(target=part.follow) for part in running]
    for thread in threads:
        thread.start()
    is_interrupted = False
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt:  # the parts got it, too: each ends with what it has to say
                is_interrupted = True
    print()
    for part in running:
        print(part.told())
    failed = [test for part in running for test in part.failed()]
    if failed:
        print("\n".join(["try:", *(f"  scripts/test '{test}'" for test in failed)]))
    if is_interrupted:
        return 130
    return 0 if all(part.code == 0 for part in running) else 1


if __name__ == "__main__":
    sys.exit(run(PARTS))
