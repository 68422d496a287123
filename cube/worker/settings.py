from __future__ import annotations

import msgspec


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How patient a node is. Defaults are right for real nodes; tests shorten what they wait for."""

    report_delay_ms: int = 20  # reports of one node share a log entry (performance.md)
    report_retry_ms: int = 200  # after a report that did not get through; doubles
    report_retry_ms_max: int = 5_000  # a new leader is told of everything within this
    report_again_ms: int = (
        1_000  # acknowledged but not to be seen in the state: said again; doubles
    )
    report_again_ms_max: int = 60_000
    reports_per_minute_max: int = (
        30  # of one task, ends excepted: a crash loop must not fill the log
    )
    loop_delay_ms: int = 1_000  # reports of tasks in crash loops share a log entry
    resync_ms: int = 60_000  # hints of drivers may be lost; this bounds how long that goes unseen
    recover_retry_ms: int = 1_000  # an engine that does not answer is asked again; doubles
    recover_retry_ms_max: int = 15_000
    driver_patience_ms: int = (
        10_000  # new tasks wait this long for a driver that never answered yet
    )
    start_retries_max: int = 3  # of a preparation or start that failed for a passing reason
    start_retry_ms: int = 1_000  # doubles
    start_retry_ms_max: int = 10_000
    stop_retry_ms: int = 1_000  # of a stop or removal, without end: doubles
    stop_retry_ms_max: int = 30_000
    probe_start_ms: int = 500  # between probes until the first success, when its interval is longer
