"""What a recorder behind the OpenTelemetry API sees: decisions, sizes, times, spans, and no text of an error."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.anyio

PROGRAM = Path(__file__).with_name("proxy_telemetry_program.py")


async def test_decisions_are_counted_and_doors_are_spans(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), str(tmp_path / "audit")), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    about = {"action": "mcp.tool"}
    assert json.loads(out) == [
        {
            "counter": "galley.proxy.decisions",
            "amount": 1,
            "decision": "deny",
            "reason": "tool_not_granted",
            **about,
        },
        {"counter": "galley.proxy.bytes", "amount": 7, **about},
        {"histogram": "galley.proxy.duration", "amount": 1.5, **about},
        {"span": "mcp_door", "server": "github"},
        {"status": "ERROR", "said": "ValueError"},
    ]
