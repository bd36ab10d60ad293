"""The whole HTTP side: the API behind the service key, and the doors mounted beside it with gates of their own."""

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from galley_vault_proxy.audit import Audit, AuditLine
from galley_vault_proxy.http.boundary import Boundary, Endpoint, Paths, unknown_path
from galley_vault_proxy.secret import Secret

BODY_LIMIT: Final = 1 << 20


class Face(Protocol):
    """A part of the API: its paths, each with an operation per method."""

    def paths(self) -> Paths: ...


def build_http(faces: Iterable[Face], *, key: Secret, audit: Audit, doors: Sequence[BaseRoute] = ()) -> ASGIApp:
    """Return the app. `doors` are routes that are behind no service key: each has a gate of its own."""

    def refused() -> None:
        audit.record(AuditLine("admin", "deny", reason="unauthenticated", who="nobody"))

    routes = [
        Route(path, Endpoint(operations, body_limit=BODY_LIMIT))
        for face in faces
        for path, operations in face.paths().items()
    ]
    # No redirects to a trailing slash: they would lose the body of a POST.
    api = Boundary(Router(routes, redirect_slashes=False, default=unknown_path), key, refused=refused)
    return Router(doors, redirect_slashes=False, default=api) if doors else api
