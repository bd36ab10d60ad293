"""Which limit ended a command, judged from the kernel's counts and the command's own last words."""

import signal
from pathlib import Path

import pytest
from galley_sandbox.hand.config import Gauge
from galley_sandbox.hand.verdict import Ending, Gauges, Reading, exceeded, of_failure


def ending(
    *,
    code: int = 1,
    kills: int = 0,
    refused: int = 0,
    disk_full: bool = False,
    memory_uncounted: bool = False,
    said: str = "",
) -> Ending:
    return Ending(code, Reading(3, 5), Reading(3 + kills, 5 + refused), disk_full, memory_uncounted, said)


@pytest.mark.parametrize(
    ("end", "limit"),
    [
        (ending(), None),
        (ending(code=137), None),
        (ending(code=137, kills=1), "memory"),
        (ending(code=2, kills=1, refused=1), "memory"),
        (ending(refused=4), "pids"),
        (ending(said="bash: fork: retry: Resource temporarily unavailable"), "pids"),
        (ending(said="recv: Resource temporarily unavailable"), None),
        (ending(code=128 + signal.SIGXCPU), "cpu_time"),
        (ending(code=128 + signal.SIGXFSZ), "disk"),
        (ending(disk_full=True, said="dd: error writing 'f': No space left on device"), "disk"),
        (ending(disk_full=False, said="No space left on device"), None),
        (ending(disk_full=True), None),
        (ending(memory_uncounted=True, said="MemoryError"), "memory"),
        (ending(memory_uncounted=False, said="MemoryError"), None),
    ],
)
def test_the_limit_is_found(end: Ending, limit: str | None) -> None:
    assert of_failure(end) == limit


def test_a_verdict_comes_first_and_alone_on_its_line() -> None:
    assert exceeded("memory", "Killed") == "resource_limit_exceeded: memory\nKilled"
    assert exceeded("memory") == "resource_limit_exceeded: memory"


def test_counts_are_read_anew_each_time(tmp_path: Path) -> None:
    counts = tmp_path / "memory.events"
    counts.write_text("low 0\noom 2\noom_kill 1\n")
    gauges = Gauges(Gauge(str(counts), -1, "oom_kill"), Gauge("", -1, "max"))
    assert gauges.read() == Reading(1, 0)
    counts.write_text("low 0\noom 2\noom_kill 4\n")
    assert gauges.read() == Reading(4, 0)
    assert gauges.counts_memory


def test_a_missing_count_is_nothing_counted(tmp_path: Path) -> None:
    gauges = Gauges(Gauge(str(tmp_path / "absent"), -1, "oom_kill"), Gauge("", -1, "max"))
    assert gauges.read() == Reading(0, 0)
    assert not gauges.counts_memory
