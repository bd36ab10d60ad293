"""Counters and spans, through the OpenTelemetry API only: without an SDK in the process they cost next to nothing."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import metrics, trace

_NAME: Final = "galley_vault_proxy"
_TRACER: Final = trace.get_tracer(_NAME)
_METER: Final = metrics.get_meter(_NAME)

DECISIONS: Final = _METER.create_counter("galley.proxy.decisions", description="Decisions by action, verdict, reason")
BYTES: Final = _METER.create_counter("galley.proxy.bytes", unit="By", description="Bytes that passed a door")
DURATION: Final = _METER.create_histogram("galley.proxy.duration", unit="ms", description="Time of one use of a door")


@contextmanager
def span(name: str, attributes: Mapping[str, str] | None = None) -> Iterator[trace.Span]:
    """A span around one use of a door. Attributes are ids and names, never a header, a body or a secret."""
    # The text of an exception may quote what a foreign server sent, so it is not recorded.
    with _TRACER.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
            raise
