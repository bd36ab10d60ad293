"""The tools a model is offered: the built-in ones with their official input schemas, and an agent's custom ones.

Source of the schemas: `anthropic.types.beta.beta_managed_agents_agent_toolset20260401_*_input`, package 2.12. The
descriptions are ours. `web_search` and `web_fetch` may be configured on an agent but are not offered.
"""

from collections.abc import Mapping
from typing import Final, get_args

from galley_server.hands.permission import enabled
from galley_server.hands.port import ToolDefinition
from galley_server.wire.agent import CustomTool, InputSchema, SandboxTool, SessionAgent
from galley_server.wire.base import JSON

SANDBOX_TOOLS: Final[frozenset[str]] = frozenset(get_args(SandboxTool))
"""The built-in tools that run in the sandbox."""


def _schema(required: list[JSON], **properties: JSON) -> Mapping[str, JSON]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


_BUILT_IN: Final = (
    ToolDefinition(
        name="bash",
        description=(
            "Run a command in a bash shell inside the sandbox and return its standard output and standard error, "
            "combined. The shell is persistent: working directory, variables and functions carry over from one call "
            "to the next. It starts in /workspace, which keeps files for the whole session. There is no "
            "terminal, and standard input is empty, so a command must not wait for input. A command that exits with "
            "a non-zero status gives an error result. Only the last 100 KiB of output are returned: redirect long "
            "output to a file and look at parts of it. A command that runs past its timeout is killed together with "
            "its shell. Calls run one after another; start long-running processes in the background with their "
            "output redirected to a file."
        ),
        input_schema=_schema(
            [],
            command={"type": "string", "description": "The command to run. Required unless `restart` is true."},
            restart={
                "type": "boolean",
                "description": "True kills the shell and starts a fresh one in /workspace; give no `command` then.",
            },
            timeout_ms={
                "type": "integer",
                "minimum": 0,
                "description": "Milliseconds until the command is killed. Omitted or 0: 120000.",
            },
        ),
    ),
    ToolDefinition(
        name="read",
        description=(
            "Read a file of the sandbox. Text comes back exactly as it is, without line numbers; it must be UTF-8. "
            "Images (png, jpg, gif, webp) and PDF files come back as something you can see. A text file larger than "
            "256 KiB is refused: give `view_range` to read part of it."
        ),
        input_schema=_schema(
            ["file_path"],
            file_path={"type": "string", "description": "Path of the file, absolute or relative to /workspace."},
            view_range={
                "type": "array",
                "items": {"type": "integer"},
                "minItems": 2,
                "maxItems": 2,
                "description": (
                    "First and last line to return, counted from 1, both included. A last line of 0 or less means "
                    "the end of the file. Only for text."
                ),
            },
        ),
    ),
    ToolDefinition(
        name="write",
        description=(
            "Write a text file in the sandbox, replacing it if it exists. Missing parent directories are created. "
            "To change part of an existing file, `edit` is shorter and safer."
        ),
        input_schema=_schema(
            ["file_path", "content"],
            file_path={"type": "string", "description": "Path of the file, absolute or relative to /workspace."},
            content={"type": "string", "description": "The whole new content of the file."},
        ),
    ),
    ToolDefinition(
        name="edit",
        description=(
            "Replace text in a file of the sandbox. `old_string` must match exactly, white space included, and must "
            "occur exactly once unless `replace_all` is true: give enough surrounding lines to make it unique."
        ),
        input_schema=_schema(
            ["file_path", "old_string", "new_string"],
            file_path={"type": "string", "description": "Path of the file, absolute or relative to /workspace."},
            old_string={"type": "string", "description": "The text to find."},
            new_string={"type": "string", "description": "The text to put in its place; empty to delete it."},
            replace_all={"type": "boolean", "description": "True replaces every occurrence."},
        ),
    ),
    ToolDefinition(
        name="glob",
        description=(
            "Find files by name. Returns absolute paths, most recently changed first, at most 200. "
            "`**` matches any number of directories, as in `src/**/*.py`."
        ),
        input_schema=_schema(
            ["pattern"],
            pattern={"type": "string", "description": "Glob pattern, relative to `path`, without `..`."},
            path={"type": "string", "description": "Directory to search. Omitted: /workspace."},
        ),
    ),
    ToolDefinition(
        name="grep",
        description=(
            "Search the contents of files for a regular expression. Returns lines as `file:line:text`. Binary files, "
            "`.git` and `node_modules` are left out."
        ),
        input_schema=_schema(
            ["pattern"],
            pattern={"type": "string", "description": "The regular expression to look for."},
            path={"type": "string", "description": "File or directory to search. Omitted: /workspace."},
        ),
    ),
)


def offered(agent: SessionAgent) -> tuple[ToolDefinition, ...]:
    """Built-in tools in a fixed order, then custom tools in the agent's: equal agents give equal bytes to the cache."""
    built_in = tuple(definition for definition in _BUILT_IN if enabled(agent, definition.name))
    custom = tuple(
        ToolDefinition(tool.name, tool.description, _plain(tool.input_schema))
        for tool in agent.tools
        if isinstance(tool, CustomTool)
    )
    return built_in + custom


def _plain(schema: InputSchema) -> Mapping[str, JSON]:
    # Not model_dump(exclude_none=True): a null inside a schema (`"default": null`) is the author's and stays.
    plain: dict[str, JSON] = {"type": schema.type}
    if schema.properties is not None:
        plain["properties"] = schema.properties
    if schema.required is not None:
        plain["required"] = list(schema.required)
    return plain | (schema.__pydantic_extra__ or {})
