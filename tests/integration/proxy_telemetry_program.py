"""Use the proxy's audit and spans with a recorder behind the OpenTelemetry API, and print what it saw as JSON.

A program of its own, because a process has one recorder for its whole life.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import NoOpCounter, NoOpHistogram, NoOpMeter, NoOpMeterProvider
from opentelemetry.trace import NonRecordingSpan, NoOpTracer, NoOpTracerProvider

SEEN: list[dict[str, Any]] = []


class Counter(NoOpCounter):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.label = name

    def add(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        SEEN.append({"counter": self.label, "amount": amount, **(attributes or {})})


class Histogram(NoOpHistogram):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.label = name

    def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        SEEN.append({"histogram": self.label, "amount": amount, **(attributes or {})})


class Meter(NoOpMeter):
    def create_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        return Counter(name)

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        return Histogram(name)


class Meters(NoOpMeterProvider):
    def get_meter(self, name: str, *rest: Any, **more: Any) -> Meter:
        return Meter(name)


class Span(NonRecordingSpan):
    def set_status(self, status: Any, description: str | None = None) -> None:
        SEEN.append({"status": status.status_code.name, "said": status.description})

    def record_exception(self, exception: BaseException, *rest: Any, **more: Any) -> None:
        SEEN.append({"exception": str(exception)})


class Tracer(NoOpTracer):
    def start_span(self, name: str, *rest: Any, attributes: Any = None, **more: Any) -> Span:
        SEEN.append({"span": name, **(attributes or {})})
        return Span(trace.INVALID_SPAN_CONTEXT)

    def start_as_current_span(self, name: str, *rest: Any, attributes: Any = None, **more: Any) -> Any:
        return trace.use_span(
            self.start_span(name, attributes=attributes),
            record_exception=more.get("record_exception", True),
            set_status_on_exception=more.get("set_status_on_exception", True),
        )


class Tracers(NoOpTracerProvider):
    def get_tracer(self, *rest: Any, **more: Any) -> Tracer:
        return Tracer()


async def main(directory: Path) -> None:
    from galley_vault_proxy.audit import Audit, AuditLine
    from galley_vault_proxy.telemetry import span

    async with Audit.open(directory, max_bytes=1 << 20) as audit:
        audit.record(AuditLine("mcp.tool", "deny", reason="tool_not_granted", session_id="s", bytes=7, duration_ms=1.5))
    try:
        with span("mcp_door", {"server": "github"}):
            raise ValueError("canary")
    except ValueError:
        pass


if __name__ == "__main__":
    metrics.set_meter_provider(Meters())
    trace.set_tracer_provider(Tracers())
    asyncio.run(main(Path(sys.argv[1])))
    json.dump(SEEN, sys.stdout)
