"""Nothing of the SDK's parameters or answers is forgotten: every field is ours too."""

import typing
from typing import Any, get_args

import pytest
from anthropic.types import beta
from anthropic.types.beta import (
    agent_create_params,
    agent_list_params,
    agent_update_params,
    environment_create_params,
    environment_list_params,
    environment_update_params,
    file_list_params,
    file_upload_params,
    model_list_params,
    session_create_params,
    session_list_params,
    session_update_params,
    sessions,
)
from anthropic.types.beta.agents import version_list_params
from anthropic.types.beta.sessions import event_list_params
from galley_server.wire import agent, agent_request, environment, event_request, query, session_request
from galley_server.wire.environment import CloudConfig, Environment, Limited, Packages
from galley_server.wire.file import File, FileScope, FileUpload
from galley_server.wire.model import ModelInfo
from galley_server.wire.page import DeletedEnvironment, DeletedFile, DeletedSession
from galley_server.wire.resource import FileResource
from galley_server.wire.session import Session, SessionStats
from galley_server.wire.union import ByType
from galley_server.wire.usage import SessionUsage
from pydantic import BaseModel

HEADERS = {"betas", "workspace_id"}
OURS = {"after_event_id"}
UPLOAD = {"file": "the bytes of the form", "filename": "of the file's part", "media_type": "of the file's part"}

REQUESTS: list[tuple[Any, type[BaseModel]]] = [
    (agent_create_params.AgentCreateParams, agent_request.AgentCreate),
    (agent_update_params.AgentUpdateParams, agent_request.AgentUpdate),
    (beta.BetaManagedAgentsModelConfigParams, agent_request.ModelConfigParams),
    (beta.BetaManagedAgentsAgentToolset20260401Params, agent_request.AgentToolsetParams),
    (beta.BetaManagedAgentsAgentToolsetDefaultConfigParams, agent_request.ToolDefaultParams),
    (beta.BetaManagedAgentsBashToolConfigParams, agent_request.SandboxToolParams),
    (beta.BetaManagedAgentsWebFetchToolConfigParams, agent_request.WebFetchParams),
    (beta.BetaManagedAgentsWebFetchURLSourcesParams, agent_request.UrlSourcesParams),
    (beta.BetaManagedAgentsWebSearchToolConfigParams, agent_request.WebSearchParams),
    (beta.BetaManagedAgentsUserLocationParam, agent.UserLocation),
    (beta.BetaManagedAgentsMCPToolsetParams, agent_request.McpToolsetParams),
    (beta.BetaManagedAgentsMCPToolConfigParams, agent_request.McpToolConfigParams),
    (beta.BetaManagedAgentsCustomToolParams, agent_request.CustomToolParams),
    (beta.BetaManagedAgentsCustomToolInputSchemaParam, agent_request.InputSchemaParam),
    (beta.BetaManagedAgentsURLMCPServerParams, agent_request.McpServerParams),
    (agent_list_params.AgentListParams, query.AgentQuery),
    (version_list_params.VersionListParams, query.PageQuery),
    (environment_create_params.EnvironmentCreateParams, environment.EnvironmentCreate),
    (environment_update_params.EnvironmentUpdateParams, environment.EnvironmentUpdate),
    (beta.BetaCloudConfigParams, environment.CloudConfigParams),
    (beta.BetaLimitedNetworkParams, environment.LimitedParams),
    (beta.BetaPackagesParams, environment.PackagesParams),
    (environment_list_params.EnvironmentListParams, query.EnvironmentQuery),
    (session_create_params.SessionCreateParams, session_request.SessionCreate),
    (beta.BetaManagedAgentsAgentParams, agent_request.AgentRef),
    (beta.BetaManagedAgentsAgentWithOverridesParams, agent_request.AgentWithOverrides),
    (beta.BetaManagedAgentsFileResourceParams, session_request.FileResourceParams),
    (session_update_params.SessionUpdateParams, session_request.SessionUpdate),
    (beta.BetaManagedAgentsSessionAgentUpdateParam, session_request.SessionAgentUpdate),
    (session_list_params.SessionListParams, query.SessionQuery),
    (event_list_params.EventListParams, query.EventQuery),
    (sessions.BetaManagedAgentsUserMessageEventParams, event_request.UserMessageParam),
    (sessions.BetaManagedAgentsUserInterruptEventParams, event_request.UserInterruptParam),
    (sessions.BetaManagedAgentsUserToolConfirmationEventParams, event_request.UserToolConfirmationParam),
    (sessions.BetaManagedAgentsUserCustomToolResultEventParams, event_request.UserCustomToolResultParam),
    (sessions.BetaManagedAgentsSystemMessageEventParams, event_request.SystemMessageParam),
    (sessions.BetaManagedAgentsImageBlockParam, event_request.ImageParam),
    (sessions.BetaManagedAgentsDocumentBlockParam, event_request.DocumentParam),
    (sessions.BetaManagedAgentsSearchResultBlockParam, event_request.SearchResultParam),
    (file_list_params.FileListParams, query.FileQuery),
    (file_upload_params.FileUploadParams, FileUpload),
    (model_list_params.ModelListParams, query.ModelQuery),
]

ANSWERS: list[tuple[type[BaseModel], type[BaseModel]]] = [
    (beta.BetaManagedAgentsAgent, agent.Agent),
    (beta.BetaManagedAgentsSessionAgent, agent.SessionAgent),
    (beta.BetaManagedAgentsModelConfig, agent.ModelConfig),
    (beta.BetaManagedAgentsAgentToolset20260401, agent.AgentToolset),
    (beta.BetaManagedAgentsBashToolConfig, agent.SandboxToolConfig),
    (beta.BetaManagedAgentsWebFetchToolConfig, agent.WebFetchConfig),
    (beta.BetaManagedAgentsWebFetchURLSources, agent.UrlSources),
    (beta.BetaManagedAgentsWebSearchToolConfig, agent.WebSearchConfig),
    (beta.BetaManagedAgentsUserLocation, agent.UserLocation),
    (beta.BetaManagedAgentsMCPToolset, agent.McpToolset),
    (beta.BetaManagedAgentsCustomTool, agent.CustomTool),
    (beta.BetaManagedAgentsMCPServerURLDefinition, agent.McpServer),
    (beta.BetaEnvironment, Environment),
    (beta.BetaCloudConfig, CloudConfig),
    (beta.BetaLimitedNetwork, Limited),
    (beta.BetaPackages, Packages),
    (beta.BetaEnvironmentDeleteResponse, DeletedEnvironment),
    (beta.BetaManagedAgentsSession, Session),
    (beta.BetaManagedAgentsSessionUsage, SessionUsage),
    (beta.BetaManagedAgentsSessionStats, SessionStats),
    (beta.BetaManagedAgentsDeletedSession, DeletedSession),
    (sessions.BetaManagedAgentsFileResource, FileResource),
    (beta.BetaFileMetadata, File),
    (beta.BetaFileScope, FileScope),
    (beta.BetaDeletedFile, DeletedFile),
    (beta.BetaModelInfo, ModelInfo),
]


def literal(arm: Any) -> str:
    hint = typing.get_type_hints(arm)["type"]
    return str(get_args(hint)[0])


@pytest.mark.parametrize(("params", "model"), REQUESTS, ids=lambda kind: getattr(kind, "__name__", ""))
def test_every_parameter_of_the_sdk_is_known(params: Any, model: type[BaseModel]) -> None:
    theirs = set(typing.get_type_hints(params)) - HEADERS - set(UPLOAD)
    assert theirs == set(model.model_fields) - OURS - set(UPLOAD)


@pytest.mark.parametrize(("answer", "model"), ANSWERS, ids=lambda kind: getattr(kind, "__name__", ""))
def test_every_field_of_the_sdks_answers_is_ours(answer: type[BaseModel], model: type[BaseModel]) -> None:
    assert set(answer.model_fields) == set(model.model_fields)


@pytest.mark.parametrize(
    ("union", "served", "refused"),
    [
        (
            sessions.BetaManagedAgentsEventParams,
            {"user.message", "user.interrupt", "user.tool_confirmation", "user.custom_tool_result", "system.message"},
            event_request.NO_OUTCOMES,
        ),
        (session_create_params.Resource, {"file"}, session_request.ONLY_FILES),
        (session_create_params.InitialEvent, {"user.message"}, event_request.NOT_INITIAL),
        (environment_create_params.Config, {"cloud"}, environment.NO_SELF_HOSTED),
        (beta.BetaManagedAgentsExecutionIdentityParams, {"service_account"}, agent_request.NO_AWS_ROLE),
        (agent_create_params.Tool, {"agent_toolset_20260401", "mcp_toolset", "custom"}, ByType()),
    ],
)
def test_every_kind_the_sdk_can_send_is_served_or_refused_in_words(
    union: Any, served: set[str], refused: ByType
) -> None:
    assert {literal(arm) for arm in get_args(union)} == served | dict(refused.refused).keys()


def test_every_event_type_the_sdk_can_ask_for_can_be_asked_for() -> None:
    assert set(get_args(sessions.BetaManagedAgentsSessionEventType)) == set(get_args(query.EventType))
    assert set(get_args(beta.BetaManagedAgentsDeltaType)) == set(get_args(query.PreviewType))
