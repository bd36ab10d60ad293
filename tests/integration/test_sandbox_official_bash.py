"""bash in the sandbox answers as the official persistent shell does.

Two departures, both from `eval`: a trace (`set -x`) is one level deeper, and a command
with an open quote is an error at once, where the official shell waits for its timeout.
"""

import asyncio
from pathlib import Path

import pytest
from anthropic.lib.tools import ToolError
from anthropic.lib.tools._beta_functions import aclose_runnable_tool
from anthropic.lib.tools.agent_toolset import AgentToolContext, beta_agent_toolset_20260401
from galley_sandbox.bubblewrap.driver import Bubblewrap
from galley_sandbox.port import JSON, Limits, MiB, Spec

pytestmark = [pytest.mark.anyio, pytest.mark.bubblewrap]

# Each is a conversation with one fresh shell.
CONVERSATIONS: dict[str, list[dict[str, JSON]]] = {
    "plain": [
        {"command": "echo hi"},
        {"command": "printf 'a\\n\\n\\n'"},
        {"command": "true"},
        {"command": "echo; echo x"},
    ],
    "failing": [
        {"command": "false"},
        {"command": "echo no; exit_with() { return 7; }; exit_with"},
        {"command": "echo on"},
    ],
    "state": [{"command": "X=1; f() { echo f$X; }; cd /; set -- a b"}, {"command": "f; pwd; echo $#"}],
    "streams": [{"command": "echo out; echo err >&2; echo out"}, {"command": "cat; echo read:$?"}],
    "colours": [{"command": "printf '\\033[1;31mred\\033[0m \\033[2Kx\\n'"}],
    "missing command": [{}, {"command": ""}, {"command": "echo fine"}],
    "restart": [
        {"command": "A=1"},
        {"restart": True},
        {"command": "echo [$A]"},
        {"restart": True, "command": "echo no"},
    ],
    "timeout": [
        {"command": "echo x; sleep 30", "timeout_ms": 300},
        {"command": "echo no"},
        {"restart": True},
        {"command": "echo yes"},
    ],
    "zero timeout is the default": [{"command": "echo x", "timeout_ms": 0}],
    "heredoc": [{"command": "cat <<'END'\n$HOME 'quoted' \"too\"\nEND"}],
    "several lines": [{"command": "for i in 1 2\ndo\n  echo $i # comment\ndone"}, {"command": "echo a; # comment"}],
    "jobs": [{"command": "sleep 30 & echo started; jobs -p | wc -l"}, {"command": "kill %1; wait; echo done"}],
    "no bytes": [{"command": "printf 'a\\0b'"}],
    "not utf-8": [{"command": "printf '\\xff\\xfe'"}],
    "options": [
        {"command": "set -u"},
        {"command": 'echo "$-" | grep -c u'},
    ],
    "environment": [{"command": 'echo "$TERM [$PS1]"; shopt -q login_shell || echo not a login shell'}],
}


async def official(folder: Path, conversation: list[dict[str, JSON]]) -> list[tuple[str, bool]]:
    (bash,) = [tool for tool in beta_agent_toolset_20260401(AgentToolContext(workdir=folder)) if tool.name == "bash"]
    answers: list[tuple[str, bool]] = []
    for given in conversation:
        try:
            answers.append((str(await bash.call(given)), False))
        except ToolError as e:
            answers.append((str(e), True))
    await aclose_runnable_tool(bash)
    return answers


async def ours(folder: Path, conversation: list[dict[str, JSON]]) -> list[tuple[str, bool]]:
    driver = Bubblewrap(folder, "home_official")
    sandbox = await driver.provision(Spec("sesn_1", Limits(memory_bytes=128 * MiB, disk_bytes=16 * MiB)))
    answers: list[tuple[str, bool]] = []
    try:
        async with sandbox.connect() as hand:
            for number, given in enumerate(conversation):
                result = await hand.call(f"sevt_{number}", "bash", given)
                answers.append((result.text, result.is_error))
    finally:
        await driver.destroy(sandbox.id)
    return answers


@pytest.mark.parametrize("name", CONVERSATIONS)
async def test_a_conversation_reads_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / "work").mkdir()
    async with asyncio.timeout(30):
        expected = await official(tmp_path / "work", CONVERSATIONS[name])
        assert await ours(tmp_path / "sandboxes", CONVERSATIONS[name]) == expected
