"""Time to first token: from the POST of a `user.message` to the first `event_delta` at a listening client, minus the
same request to the same model made with the bare SDK.

Each message is the first of its session, and its answer goes on to call a tool. Targets: p50 at most 8 ms, p95 at most
20 ms added; unchanged when sandboxes take 0, 2 or 20 s to start. The last lines set this against a harness that starts
the sandbox before it asks the model, with a start of 1.5 s (p50) and 15 s (p95) and a model of 1 s.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import anthropic

from bench._server import KEY, MODEL_KEY, Served, scripted_model, served
from bench._wire import Wire

DELAY_S = 0.2
MESSAGES = 60
MESSAGES_SLOW = 40
MOST_P50_MS = 8.0
MOST_P95_MS = 20.0
HARNESS_MODEL_S = 1.0
HARNESS_START_S = {"p50": 1.5, "p95": 15.0}
RULES = {
    "rules": [
        {
            "when": {"results": 0},
            "reply": {"text": "Let me look.", "tools": [{"name": "bash", "input": {"command": "true"}}]},
        },
        {"reply": {"text": "Done."}},
    ]
}
QUESTION = "Say something, then do something."
BASH: anthropic.types.ToolParam = {
    "name": "bash",
    "description": "Run a command.",
    "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]},
}


async def bare(model: anthropic.AsyncAnthropic) -> float:
    began = time.perf_counter()
    async with model.messages.stream(
        model="scripted-1", max_tokens=1024, tools=[BASH], messages=[{"role": "user", "content": QUESTION}]
    ) as stream:
        async for event in stream:
            if event.type == "content_block_delta":
                return time.perf_counter() - began
    raise AssertionError("the model said nothing")


async def through_galley(server: Served, client: anthropic.AsyncAnthropic, agent: str, environment: str) -> float:
    session = await client.beta.sessions.create(agent=agent, environment_id=environment)
    async with Wire.open(server, session.id) as wire, asyncio.TaskGroup() as tasks:
        began = time.perf_counter()
        tasks.create_task(wire.say(QUESTION))
        await wire.hear(b"event_delta")
        took = time.perf_counter() - began
        # The sandbox, which starts now, must not start while the next session is measured.
        await client.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
        await wire.hear(b"session.status_idle")
    await client.beta.sessions.archive(session.id)
    return took


async def added(model_url: str, provision_s: float, messages: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token, bare and through Galley, one after the other so that both see the same machine."""
    direct: list[float] = []
    ours: list[float] = []
    async with (
        served(model_url, program=("-m", "bench._slow_sandbox", str(provision_s))) as server,
        anthropic.AsyncAnthropic(base_url=model_url, api_key=MODEL_KEY) as model,
        anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY) as client,
    ):
        agent = await client.beta.agents.create(
            name="a", model="scripted-1", tools=[{"type": "agent_toolset_20260401"}]
        )
        environment = await client.beta.environments.create(name="e")
        for number in range(messages + 3):
            pair = await bare(model), await through_galley(server, client, agent.id, environment.id)
            if number >= 3:  # the first ones open connections and fill caches
                direct.append(pair[0])
                ours.append(pair[1])
    return direct, ours


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[18]


def overhead(direct: list[float], ours: list[float]) -> tuple[float, float]:
    """What Galley adds to the p50 and to the p95, in seconds. What else the machine does is in both."""
    return statistics.median(ours) - statistics.median(direct), p95(ours) - p95(direct)


def report(provision_s: float, direct: list[float], ours: list[float]) -> bool:
    middle, late = (seconds * 1e3 for seconds in overhead(direct, ours))
    print(
        f"sandbox start +{provision_s:>2.0f} s: bare SDK {statistics.median(direct) * 1e3:6.1f} ms, "
        f"through Galley {statistics.median(ours) * 1e3:6.1f} ms; added p50 {middle:5.1f} ms, p95 {late:5.1f} ms"
    )
    return middle <= MOST_P50_MS and late <= MOST_P95_MS


def compare(added_s: tuple[float, float]) -> None:
    for name, ours in zip(HARNESS_START_S, added_s, strict=True):
        theirs = HARNESS_START_S[name] + HARNESS_MODEL_S
        mine = HARNESS_MODEL_S + ours
        print(
            f"against a harness that starts the sandbox first, {name}: {theirs:4.1f} s -> {mine:.2f} s, "
            f"{1 - mine / theirs:.0%} less"
        )


async def measure() -> bool:
    held = True
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "rules.json"
        script.write_text(json.dumps(RULES))
        async with scripted_model("--delay-ms", str(DELAY_S * 1000), "--script", str(script)) as model_url:
            for provision_s, messages in ((0.0, MESSAGES), (2.0, MESSAGES_SLOW), (20.0, MESSAGES_SLOW)):
                direct, ours = await added(model_url, provision_s, messages)
                held = report(provision_s, direct, ours) and held
                if provision_s == 0:
                    unslowed = overhead(direct, ours)
    compare(unslowed)
    print(f"(at most {MOST_P50_MS:.0f} ms and {MOST_P95_MS:.0f} ms)")
    return held


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(measure()) else 1)
