"""A tool as Galley offers it: unknown arguments are refused, every error is one sentence that a model can act on."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeAlias

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp_types import ToolAnnotations
from pydantic import BaseModel, SerializerFunctionWrapHandler, ValidationError, model_serializer

from galley_server.errors import RequestError
from galley_server.wire.validation import refusal

Effect: TypeAlias = Literal["reads", "adds", "changes", "ends"]
"""What a call does to the world, as clients are told: `changes` and `ends` are for a person to think about."""

_ANNOTATIONS: Final[dict[Effect, ToolAnnotations]] = {
    "reads": ToolAnnotations(read_only_hint=True, open_world_hint=False),
    "adds": ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False),
    "changes": ToolAnnotations(
        read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=True
    ),
    "ends": ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False),
}


class Output(BaseModel):
    """A result. What is None is left out: a model reads every character of it."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class GalleyTool(Tool):
    """The SDK ignores unknown arguments and answers wrong ones with a dump of its own; this does neither."""

    @classmethod
    def of(cls, function: Callable[..., Awaitable[BaseModel]], *, title: str, effect: Effect) -> Tool:
        """Make a tool of an async function: its name, its docstring and its annotated parameters are the contract."""
        description = " ".join((function.__doc__ or "").split())
        tool = cls.from_function(
            function, title=title, description=description, annotations=_ANNOTATIONS[effect], structured_output=True
        )
        arguments = tool.fn_metadata.arg_model
        arguments.model_config["extra"] = "forbid"
        arguments.model_rebuild(force=True)
        tool.parameters = arguments.model_json_schema(by_alias=True)
        return tool

    async def run(self, arguments: dict[str, Any], context: Context[Any, Any], convert_result: bool = False) -> Any:
        try:
            given = self.fn_metadata.validate_arguments(arguments)
        except ValidationError as error:
            raise ToolError(f"{self.name}: {refusal(error).message}") from None
        try:
            result = await self.fn_metadata.call_fn(self.fn, self.is_async, given)
        except RequestError as error:
            raise ToolError(f"{self.name}: {error.message}") from None
        return self.fn_metadata.convert_result(result) if convert_result else result
