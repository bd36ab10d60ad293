"""Models: what the model endpoint offers, and what this server is set up to use."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

from galley_server.errors import InvalidRequest, NotFound
from galley_server.wire.model import ModelInfo
from galley_server.wire.query import ModelQuery

logger = logging.getLogger(__name__)

_FRESH_S: Final = 300.0
_UNKNOWN: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ModelDirectory(Protocol):
    """What an endpoint says it offers."""

    async def offered(self) -> Sequence[ModelInfo] | None:
        """Return its models, newest first, None if it cannot say. Bounded in time; never raises."""
        ...


class NoDirectory:
    """An endpoint that lists nothing."""

    async def offered(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class ModelPage:
    data: tuple[ModelInfo, ...]
    has_more: bool

    @property
    def first_id(self) -> str | None:
        return self.data[0].id if self.data else None

    @property
    def last_id(self) -> str | None:
        return self.data[-1].id if self.data else None


class Models:
    """The model of the default agent is always among them, whether or not the endpoint lists it."""

    def __init__(
        self, directory: ModelDirectory, *, default_model: str, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._default_model = default_model
        self._timer = timer
        self._known: tuple[ModelInfo, ...] = ()
        self._asked_at: float | None = None

    async def list(self, query: ModelQuery) -> ModelPage:
        lifecycles = query.lifecycle or ("active", "deprecated")
        models = [model for model in await self._all() if model.lifecycle in lifecycles]
        start, stop = 0, query.limit
        if query.after_id is not None:
            start = _index(models, query.after_id, "after_id") + 1
            stop = start + query.limit
        if query.before_id is not None:
            stop = _index(models, query.before_id, "before_id")
            start = max(0, stop - query.limit)
            return ModelPage(tuple(models[start:stop]), has_more=start > 0)
        return ModelPage(tuple(models[start:stop]), has_more=stop < len(models))

    async def retrieve(self, model_id: str) -> ModelInfo:
        """Raises NotFound."""
        for model in await self._all():
            if model.id == model_id:
                return model
        raise NotFound(f"Model {model_id[:80]} was not found.")

    async def _all(self) -> Sequence[ModelInfo]:
        if self._asked_at is None or self._timer() - self._asked_at >= _FRESH_S:
            offered = await self._directory.offered()
            # An endpoint that does not answer now is asked again by the next call, and what it said before holds.
            self._asked_at = None if offered is None else self._timer()
            self._known = self._known if offered is None else tuple(offered)
        if any(model.id == self._default_model for model in self._known):
            return self._known
        own = ModelInfo(id=self._default_model, display_name=self._default_model, created_at=_UNKNOWN)
        return (own, *self._known)


def _index(models: Sequence[ModelInfo], model_id: str, field: str) -> int:
    for index, model in enumerate(models):
        if model.id == model_id:
            return index
    raise InvalidRequest(f"{field}: '{model_id[:80]}' is not the id of a listed model")
