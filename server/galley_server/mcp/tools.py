"""The list of Galley's tools: one definition for stdio and HTTP, in both protocol eras."""

from mcp.server.mcpserver.tools import Tool

from galley_server.mcp.catalogue_tools import CatalogueTools
from galley_server.mcp.session_tools import SessionTools
from galley_server.mcp.tool import GalleyTool
from galley_server.runtime.runtime import Runtime


def tools_of(runtime: Runtime) -> list[Tool]:
    sessions, catalogue = SessionTools(runtime), CatalogueTools(runtime)
    return [
        GalleyTool.of(sessions.create_session, title="Create session", effect="adds"),
        GalleyTool.of(sessions.send_message, title="Send message", effect="changes"),
        GalleyTool.of(sessions.read_events, title="Read events", effect="reads"),
        GalleyTool.of(sessions.get_session, title="Get session", effect="reads"),
        GalleyTool.of(sessions.list_sessions, title="List sessions", effect="reads"),
        GalleyTool.of(sessions.confirm_tool, title="Confirm tool call", effect="changes"),
        GalleyTool.of(sessions.interrupt_session, title="Interrupt session", effect="ends"),
        GalleyTool.of(sessions.archive_session, title="Archive session", effect="ends"),
        GalleyTool.of(catalogue.list_agents, title="List agents", effect="reads"),
        GalleyTool.of(catalogue.create_agent, title="Create agent", effect="adds"),
        GalleyTool.of(catalogue.list_environments, title="List environments", effect="reads"),
        GalleyTool.of(catalogue.create_environment, title="Create environment", effect="adds"),
        GalleyTool.of(catalogue.list_vaults, title="List vaults", effect="reads"),
        GalleyTool.of(catalogue.upload_file, title="Upload file", effect="adds"),
        GalleyTool.of(catalogue.download_file, title="Download file", effect="reads"),
    ]
