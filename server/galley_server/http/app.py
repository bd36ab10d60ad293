"""The HTTP face put together: every path of the API behind the request boundary."""

import asyncio
from collections.abc import Sequence

from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from galley_server.http.agents import AgentFace
from galley_server.http.answer import Json
from galley_server.http.boundary import HEALTH, Boundary, Endpoint, Operation, unknown_path
from galley_server.http.call import Call
from galley_server.http.environments import EnvironmentFace
from galley_server.http.events import EventFace
from galley_server.http.files import FileFace
from galley_server.http.models import ModelFace
from galley_server.http.sessions import SessionFace
from galley_server.http.stream import Pace
from galley_server.http.vaults import VaultFace
from galley_server.runtime.ports import NoRelay, Relay
from galley_server.runtime.runtime import Runtime
from galley_server.secret import Secret


def build_http(
    runtime: Runtime,
    *,
    api_key: Secret,
    closing: asyncio.Event,
    body_limit: int | None,
    file_limit: int | None,
    relay: Relay | None = None,
    routes: Sequence[BaseRoute] = (),
    pace: Pace | None = None,
) -> ASGIApp:
    """Return the app. `closing` ends every event stream; `routes` are other faces', each with a gate of its own."""
    faces = (
        AgentFace(runtime.agents),
        EnvironmentFace(runtime.environments),
        SessionFace(runtime.sessions),
        EventFace(runtime.events, closing=closing, pace=pace or Pace()),
        FileFace(runtime.files, file_limit=file_limit),
        ModelFace(runtime.models),
        VaultFace(relay or NoRelay(), body_limit=body_limit),
    )
    health = Operation(_healthy)
    paths = [Route(HEALTH, Endpoint({"GET": health, "HEAD": health}, body_limit=0))]
    for face in faces:
        for path, operations in face.paths().items():
            paths.append(Route(path, Endpoint(operations, body_limit=body_limit)))
    # No redirects to a trailing slash: they would lose the body of a POST.
    api = Boundary(Router(paths, redirect_slashes=False, default=unknown_path), api_key)
    return Router(routes, redirect_slashes=False, default=api) if routes else api


async def _healthy(call: Call) -> Json:
    return Json(b'{"status":"ok"}')
