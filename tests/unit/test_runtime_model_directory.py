"""What an endpoint's list of models becomes, also when it is not quite one."""

import anthropic
import httpx2
import pytest
from galley_server.runtime.model_directory import EndpointDirectory
from galley_server.wire.model import ModelInfo
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

pytestmark = pytest.mark.anyio


async def offered(body: str, status: int = 200) -> list[ModelInfo] | None:
    async def answer(request: Request) -> Response:
        return Response(body, status, media_type="application/json")

    app = Starlette(routes=[Route("/v1/models", answer)])
    async with (
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http,
        anthropic.AsyncAnthropic(api_key="k", base_url="http://endpoint", http_client=http) as client,
    ):
        found = await EndpointDirectory(client).offered()
        return None if found is None else list(found)


async def test_a_full_entry_is_shown_as_it_is() -> None:
    entry = (
        '{"id":"m","type":"model","display_name":"M","created_at":"2026-01-01T00:00:00Z","lifecycle":"deprecated",'
        '"max_input_tokens":5,"line":"opus","new_field":1}'
    )
    found = await offered('{"data":[' + entry + '],"has_more":false}')
    assert found is not None
    (model,) = found
    assert (model.id, model.display_name, model.lifecycle, model.max_input_tokens) == ("m", "M", "deprecated", 5)


async def test_an_entry_with_only_an_id_is_enough() -> None:
    found = await offered('{"object":"list","data":[{"id":"local-model"}]}')
    assert found is not None
    assert found[0].model_dump(mode="json") == {
        **dict.fromkeys(ModelInfo.model_fields),
        "id": "local-model",
        "type": "model",
        "display_name": "local-model",
        "created_at": "1970-01-01T00:00:00.000Z",
        "lifecycle": "active",
    }


async def test_capabilities_of_another_shape_are_left_out() -> None:
    found = await offered('{"data":[{"id":"m","capabilities":{"vision":true}}]}')
    assert found is not None
    assert found[0].capabilities is None


@pytest.mark.parametrize(
    ("body", "status"), [("{}", 200), ("no json", 200), ("[]", 200), ("not found", 404), ("busy", 529)]
)
async def test_an_endpoint_without_a_list_says_nothing(body: str, status: int) -> None:
    assert await offered(body, status) is None


async def test_an_endpoint_that_is_not_there_says_nothing() -> None:
    async with anthropic.AsyncAnthropic(api_key="k", base_url="http://127.0.0.1:9") as client:
        assert await EndpointDirectory(client).offered() is None
