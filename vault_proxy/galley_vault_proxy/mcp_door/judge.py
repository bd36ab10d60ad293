"""The decision on one message: by the grant, by the pins, by the schema. What is refused gets an answer here."""

from collections.abc import Mapping
from typing import Any

from galley_vault_proxy.mcp_door.answers import Answer, refusal, rpc_error, tool_error
from galley_vault_proxy.mcp_door.arguments import UncheckableSchema
from galley_vault_proxy.mcp_door.catalogue import Known, Lister
from galley_vault_proxy.mcp_door.jsonrpc import RpcMessage
from galley_vault_proxy.mcp_door.screen import Screen
from galley_vault_proxy.mcp_door.trace import Trace
from galley_vault_proxy.mcp_door.visit import Visit
from galley_vault_proxy.mcp_door.wire import INVALID_PARAMS, METHOD_NOT_FOUND
from galley_vault_proxy.policy import Deny, ServerAccess, ToolCall, decide


async def judge(visit: Visit, screen: Screen, lister: Lister, trace: Trace) -> Answer | None:
    """None: it may pass. Raises what `lister` raises, and Unavailable when the pins cannot be read."""
    message = visit.message
    if message is None or message.kind == "answer":
        return None
    trace.method = message.method
    if message.kind == "request" and message.method == "tools/call":
        return await _tool_call(visit, message, screen, lister, trace)
    decision = decide(visit.grant, ServerAccess(visit.rule.name, message.method))
    if not isinstance(decision, Deny):
        return None
    trace.deny(decision.reason)
    if message.kind == "notification":
        return refusal(403, decision.message)
    return rpc_error(message.id, METHOD_NOT_FOUND, decision.message, visit.era)


async def _tool_call(visit: Visit, message: RpcMessage, screen: Screen, lister: Lister, trace: Trace) -> Answer | None:
    trace.action = "mcp.tool"
    name, arguments = message.params.get("name"), message.params.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        trace.deny("bad_call")
        text = "tools/call needs a name, which is a string, and arguments, which are an object"
        return rpc_error(message.id, INVALID_PARAMS, text, visit.era)
    trace.tool = name
    decision = decide(visit.grant, ToolCall(visit.rule.name, name))
    if isinstance(decision, Deny):
        trace.deny(decision.reason)
        return _unknown(visit, message, name)
    found = await screen.catalogue.find(name, lister, screen.news)
    if found is None:
        # A server may take calls of tools that it lists to nobody: only who may call everything may do that.
        trace.reason = "tool_not_listed"
        if visit.rule.everything:
            return None
        trace.deny("tool_not_listed")
        return _unknown(visit, message, name)
    return _by_definition(visit, message, found, arguments, trace)


def _unknown(visit: Visit, message: RpcMessage, name: str) -> Answer:
    """The same words for a tool that does not exist and for one that this grant is not to know of."""
    return rpc_error(message.id, INVALID_PARAMS, f"Unknown tool: {name}", visit.era)


def _by_definition(
    visit: Visit, message: RpcMessage, found: Known, arguments: Mapping[str, Any], trace: Trace
) -> Answer | None:
    tool, server = found.pin.name, visit.rule.name
    if found.drifted:
        trace.deny("definition_drifted")
        text = (
            f"The tool {tool} of {server} is held back: its definition has changed since it was first seen, or is too "
            "large to be kept. "
            "Do not try again; tell the user that whoever runs the vault proxy has to look at it and approve it."
        )
        return tool_error(message.id, text, visit.era)
    try:
        problems = found.check.problems(arguments)
    except UncheckableSchema as error:
        trace.deny("schema_unusable")
        text = f"The call was not made: the input schema of {tool} of {server} cannot be used, because {error}."
        return tool_error(message.id, text, visit.era)
    if problems:
        trace.deny("bad_arguments")
        text = f"The call was not made: its arguments do not fit the input schema of {tool}.\n" + "\n".join(problems)
        return tool_error(message.id, text, visit.era)
    return None
