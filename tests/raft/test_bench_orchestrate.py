"""scripts/bench orchestrate at its smallest: everything in it works, figures aside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_small_cluster_is_orchestrated() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "bench", "orchestrate", "--sizes", "10:300"],
        stdout=subprocess.PIPE,
        timeout=240,
        check=True,
    )
    found = json.loads(done.stdout)["10_nodes_300_tasks"]
    assert (found["nodes"], found["tasks"], found["jobs"]) == (10, 300, 100)
    assert found["report_entries"] >= 10
    assert found["reads_ms"]["while_reporting"]["all"]["n"] > 0
