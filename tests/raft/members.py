"""Member processes of the bench, for tests: scripts/ is no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_raft.py"


def _load() -> Any:
    if "bench_raft" not in sys.modules:
        spec = importlib.util.spec_from_file_location("bench_raft", _SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["bench_raft"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["bench_raft"]


Processes: Any = _load().Processes
