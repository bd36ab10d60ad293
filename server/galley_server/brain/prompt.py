"""The next model request, from the folded log. Pure: the contents of attached files come in as an argument."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from galley_server.brain.model import ModelRequest
from galley_server.hands.access import Access, access_of
from galley_server.hands.port import ToolDefinition
from galley_server.log.state import AssistantTurn, Call, SessionState, SystemTurn, Turn, UserTurn
from galley_server.wire.agent import AgentToolset, SessionAgent
from galley_server.wire.base import JSON
from galley_server.wire.content import (
    Base64Source,
    DocumentBlock,
    FileSource,
    ImageBlock,
    PlainTextSource,
    ResultBlock,
    SearchResultBlock,
    TextBlock,
    UserBlock,
)
from galley_server.wire.environment import Limited, Unrestricted

FileContents = Mapping[str, Base64Source | PlainTextSource]
"""What `file` sources in messages stand for, by file id. A file that is gone is missing here."""

_CACHED: Final[dict[str, JSON]] = {"type": "ephemeral"}
_ADAPTIVE: Final = re.compile(r"claude-[a-z]+-(?:4-[6-9]|[5-9])(?:\D|$)")
"""Models that take `thinking: adaptive`. Others would answer 400, and Galley talks to any Messages API endpoint."""

_WORKPLACE: Final = """\
Your tools run in a Linux sandbox of this session. The working directory is /workspace; files there last as long as \
the session. Put files that the user should get into /mnt/session/outputs."""
_PLACEHOLDERS: Final = """\
Credentials in environment variables are placeholders. Send them as they are, over HTTPS, to the host they are for; \
the real ones are put in on the way."""
_PROXY: Final = "over HTTP and HTTPS, through the proxy that HTTPS_PROXY names"
_DOOR: Final = """\
Programs reach these MCP servers at $GALLEY_MCP_URL/NAME, with the content of $GALLEY_TOKEN_FILE as bearer token:"""


def attached_files(turns: Iterable[Turn]) -> frozenset[str]:
    """Return the ids of the files that messages refer to."""
    return frozenset(
        block.source.file_id
        for turn in turns
        if isinstance(turn, UserTurn)
        for block in turn.content
        if not isinstance(block, TextBlock) and isinstance(block.source, FileSource)
    )


def build_request(
    state: SessionState, agent: SessionAgent, tools: Sequence[ToolDefinition], files: FileContents
) -> ModelRequest:
    """Every tool_use of the transcript must have its result."""
    return ModelRequest(
        model=agent.model.id,
        system=_system(agent, state),
        messages=_messages(state, files),
        tools=_tools(tools or _gone(state.transcript), cached=not agent.system),
        effort=agent.model.effort.type if agent.model.effort and _ADAPTIVE.match(agent.model.id) else None,
        thinking=_ADAPTIVE.match(agent.model.id) is not None,
        speed=agent.model.speed,
    )


def _system(agent: SessionAgent, state: SessionState) -> list[dict[str, JSON]]:
    texts = [agent.system] if agent.system and agent.system.strip() else []
    if any(isinstance(tool, AgentToolset) for tool in agent.tools):
        lines = [_WORKPLACE, *_way_out(access_of(agent, state.networking, state.vault_ids))]
        listed = [f"- {resource.mount_path}" for resource in state.resources]
        texts.append("\n".join([*lines, "Files given to this session:", *listed] if listed else lines))
    blocks: list[dict[str, JSON]] = [{"type": "text", "text": text} for text in texts]
    if blocks:
        # The prefix ends here: tools come before the system prompt, so one breakpoint covers both.
        blocks[-1]["cache_control"] = _CACHED
    return blocks


def _way_out(access: Access) -> list[str]:
    """What programs in the sandbox reach, and how."""
    match access.networking:
        case None:
            return ["There is no network."]
        case Unrestricted():
            lines = [f"Programs reach public hosts {_PROXY}."]
        case Limited() as limited:
            hosts = _hosts(limited, access)
            lines = [f"Programs reach these hosts {_PROXY}, and no other: {', '.join(hosts)}."]
            if not hosts:
                lines = ["Programs reach no host."]
    if access.vault_ids:
        lines.append(_PLACEHOLDERS)
    doors = [server.door for server in access.servers if server.blocked is None and not server.unasked.empty]
    if doors:
        lines.append(f"{_DOOR} {', '.join(doors)}.")
    return lines


def _hosts(limited: Limited, access: Access) -> list[str]:
    hosts = list(limited.allowed_hosts)
    if limited.allow_package_managers:
        hosts.append("the public package registries")
    if limited.allow_mcp_servers and access.servers:
        hosts.append("the hosts of the MCP servers")
    return hosts


def _tools(tools: Sequence[ToolDefinition], *, cached: bool) -> list[dict[str, JSON]]:
    listed: list[dict[str, JSON]] = [
        {"name": tool.name, "description": tool.description, "input_schema": dict(tool.input_schema)} for tool in tools
    ]
    if listed and cached:
        listed[-1]["cache_control"] = _CACHED
    return listed


def _gone(transcript: Iterable[Turn]) -> list[ToolDefinition]:
    """The tools of earlier calls, for an agent that has none any more: the API refuses calls without definitions."""
    names = {
        str(block.get("name")): None
        for turn in transcript
        if isinstance(turn, AssistantTurn)
        for block in turn.blocks
        if block.get("type") == "tool_use"
    }
    return [ToolDefinition(name, "No longer available.", {"type": "object"}) for name in names]


def _messages(state: SessionState, files: FileContents) -> list[dict[str, JSON]]:
    """Alternate user and assistant messages: the results of a turn's calls come first in the message after it."""
    messages: list[dict[str, JSON]] = []
    user: list[JSON] = []
    for turn in state.transcript:
        match turn:
            case UserTurn(content=content):
                user.extend(_blocks(content, files) or [{"type": "text", "text": "(an empty message)"}])
            case SystemTurn(text=text):
                user.append({"type": "text", "text": f"<system>\n{text or '(empty)'}\n</system>"})
            case AssistantTurn():
                blocks: list[JSON] = [block for block in turn.blocks if not _is_blank(block)]
                if any(isinstance(block, dict) and block.get("type") != "thinking" for block in blocks):
                    if user:
                        messages.append({"role": "user", "content": user})
                    messages.append({"role": "assistant", "content": blocks})
                    user = [_result(tool_id, state.calls[event_id], files) for tool_id, event_id in turn.calls.items()]
    if user:
        messages.append({"role": "user", "content": user})
    _mark_cached(messages)
    return messages


def _is_blank(block: Mapping[str, JSON]) -> bool:
    """The API refuses text without a visible character."""
    return block.get("type") == "text" and not str(block.get("text", "")).strip()


def _result(tool_id: str, call: Call, files: FileContents) -> dict[str, JSON]:
    assert call.result is not None, f"{call.event_id} has no result"
    result: dict[str, JSON] = {"type": "tool_result", "tool_use_id": tool_id}
    blocks = _blocks(call.result.content, files)
    if blocks:
        result["content"] = blocks
    if call.result.is_error:
        result["is_error"] = True
        # An error result without content is refused.
        result.setdefault("content", [{"type": "text", "text": "(no output)"}])
    return result


def _blocks(content: Iterable[UserBlock | ResultBlock], files: FileContents) -> list[JSON]:
    return [param for block in content if (param := _block(block, files)) is not None]


def _block(block: UserBlock | ResultBlock, files: FileContents) -> dict[str, JSON] | None:
    match block:
        case TextBlock(text=text):
            return {"type": "text", "text": text} if text.strip() else None
        case SearchResultBlock():
            return block.model_dump(mode="json", exclude_none=True)
        case ImageBlock() | DocumentBlock():
            param: dict[str, JSON] = block.model_dump(mode="json", exclude_none=True)
            if isinstance(block.source, FileSource):
                content = files.get(block.source.file_id)
                if content is None:
                    return {"type": "text", "text": f"(the attached file {block.source.file_id} no longer exists)"}
                param["source"] = content.model_dump(mode="json")
            return param


def _mark_cached(messages: Sequence[dict[str, JSON]]) -> None:
    """Mark the end of the newest user message, and of the one before it: there the last request's entry ends."""
    ends = [message for message in messages if message["role"] == "user"][-2:]
    for message in ends:
        content = message["content"]
        assert isinstance(content, list)
        last = content[-1]
        assert isinstance(last, dict)
        content[-1] = {**last, "cache_control": _CACHED}
