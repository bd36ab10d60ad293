"""Environments: names, merged updates, archiving, deleting, the default one."""

import asyncio

import pytest
from anthropic.types import beta
from galley_server.errors import Conflict, InvalidRequest, NotFound
from galley_server.wire.environment import Environment, EnvironmentCreate, EnvironmentUpdate
from galley_server.wire.query import EnvironmentQuery
from galley_server.wire.validation import take

from tests.contract.catalogue_kit import Kitchen
from tests.contract.sdk_strict import left_out, validate

pytestmark = pytest.mark.anyio


def cloud(**networking: object) -> dict[str, object]:
    return {"type": "cloud", "networking": networking}


async def make(kitchen: Kitchen, name: str = "n", **fields: object) -> Environment:
    return await kitchen.runtime.environments.create(take(EnvironmentCreate, {"name": name, **fields}))


async def change(kitchen: Kitchen, environment: Environment, **fields: object) -> Environment:
    return await kitchen.runtime.environments.update(environment.id, take(EnvironmentUpdate, fields))


async def test_an_environment_validates_against_the_sdks_own_type(kitchen: Kitchen) -> None:
    for name, config in {"a": None, "b": cloud(type="limited", allowed_hosts=["*.example.com"])}.items():
        environment = await make(kitchen, name, config=config, scope="organization")
        validate(beta.BetaEnvironment, environment.model_dump_json())
        assert set(left_out(beta.BetaEnvironment, environment.model_dump(mode="json"))) == set()
        assert await kitchen.runtime.environments.retrieve(environment.id) == environment


async def test_a_name_is_given_once(kitchen: Kitchen) -> None:
    first = await make(kitchen, "one")
    second = await make(kitchen, "two")
    with pytest.raises(Conflict, match=f"^name: an environment called 'one' exists \\({first.id}\\)"):
        await make(kitchen, "one")
    with pytest.raises(Conflict):
        await change(kitchen, second, name="one")
    assert (await change(kitchen, first, name="one")).name == "one"


async def test_of_two_that_want_one_name_at_once_one_gets_it(kitchen: Kitchen) -> None:
    ends = await asyncio.gather(make(kitchen), make(kitchen), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["Conflict", "Environment"]


async def test_an_archived_or_deleted_environment_gives_its_name_free(kitchen: Kitchen) -> None:
    await kitchen.runtime.environments.archive((await make(kitchen)).id)
    second = await make(kitchen)
    deleted = await kitchen.runtime.environments.delete(second.id)
    validate(beta.BetaEnvironmentDeleteResponse, deleted.model_dump_json())
    await make(kitchen)


async def test_limited_networking_is_merged_field_by_field(kitchen: Kitchen) -> None:
    environment = await make(kitchen, config=cloud(type="limited", allowed_hosts=["a.example"]))
    environment = await change(kitchen, environment, config=cloud(type="limited", allow_mcp_servers=True))
    assert environment.config.networking.model_dump() == {
        "type": "limited",
        "allowed_hosts": ("a.example",),
        "allow_mcp_servers": True,
        "allow_package_managers": False,
    }
    environment = await change(kitchen, environment, config=cloud(type="unrestricted"))
    assert environment.config.networking.type == "unrestricted"


async def test_left_out_keeps_and_null_clears_the_description_only(kitchen: Kitchen) -> None:
    environment = await make(kitchen, description="d", metadata={"a": "1", "b": "2", "c": "3"})
    same = await change(kitchen, environment, name=None, config=None, scope=None, metadata={})
    assert same == environment
    after = await change(kitchen, environment, description=None, metadata={"a": None, "b": "", "c": "4"})
    assert (after.description, after.metadata) == (None, {"c": "4"})
    assert (await change(kitchen, after, description="")).description == ""


async def test_an_archived_environment_is_read_only_and_out_of_the_list(kitchen: Kitchen) -> None:
    environments = kitchen.runtime.environments
    environment = await make(kitchen)
    archived = await environments.archive(environment.id)
    assert archived.archived_at is not None
    assert await environments.archive(environment.id) == archived
    with pytest.raises(InvalidRequest, match="archived") as refused:
        await change(kitchen, environment, name="x")
    assert refused.value.error_code == "environment_archived"
    assert (await environments.list(EnvironmentQuery())).data == ()
    assert (await environments.list(EnvironmentQuery(include_archived=True))).data == (archived,)


async def test_a_list_is_walked_to_its_end_newest_first(kitchen: Kitchen) -> None:
    made = [(await make(kitchen, f"e{number}")).id for number in range(3)]
    first = await kitchen.runtime.environments.list(EnvironmentQuery(limit=2))
    rest = await kitchen.runtime.environments.list(EnvironmentQuery(limit=2, page=first.next_page))
    assert [one.id for one in (*first.data, *rest.data)] == made[::-1]
    assert rest.next_page is None


async def test_what_is_deleted_is_not_found(kitchen: Kitchen) -> None:
    environment = await make(kitchen)
    await kitchen.runtime.environments.delete(environment.id)
    for call in (kitchen.runtime.environments.retrieve, kitchen.runtime.environments.delete):
        with pytest.raises(NotFound, match=f"Environment {environment.id} was not found"):
            await call(environment.id)


async def test_the_default_environment_is_one_and_is_made_anew_when_it_is_gone(kitchen: Kitchen) -> None:
    environments = kitchen.runtime.environments
    first, second = await asyncio.gather(environments.default(), environments.default())
    assert first == second
    await environments.archive(first.id)
    third = await environments.default()
    await environments.delete(third.id)
    assert len({first.id, third.id, (await environments.default()).id}) == 3


async def test_an_environment_that_took_the_defaults_name_becomes_the_default(kitchen: Kitchen) -> None:
    own = await make(kitchen, "Galley environment")
    assert (await kitchen.runtime.environments.default()).id == own.id
