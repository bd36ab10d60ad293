"""A whole server for the SDKs to talk to: the real runtime, brain, store and HTTP, over a scripted model.

Its sandboxes have no driver: what is tested here is the wire, and no call of a built-in tool is ever allowed to run.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anthropic
from galley_server.brain.brain import Brain
from galley_server.brain.model import MessagesModel
from galley_server.brain.runner import Workplace
from galley_server.demo.messages import serve_scripted
from galley_server.demo.reply import Answer, Pace, Reply, Stall, call, say
from galley_server.demo.transcript import Request, Text, Thinking
from galley_server.hands.nowhere import Nowhere
from galley_server.hands.sandboxes import SandboxHands
from galley_server.http.app import build_http
from galley_server.http.serving import serve
from galley_server.log.chain import ChainKey
from galley_server.log.database import Database
from galley_server.log.log import Log
from galley_server.log.sqlite import SqliteStore
from galley_server.log.summary import SessionSummaries
from galley_server.runtime.attachments import Attachments
from galley_server.runtime.liveness import Liveness
from galley_server.runtime.model_directory import EndpointDirectory
from galley_server.runtime.runtime import Runtime, open_files
from galley_server.secret import Secret
from galley_server.settings import ModelSettings, Settings

KEY = "galley-test-key-0123456789"
CHUNKS = Pace(per_token_s=0.001, chunk_chars=6)


@dataclass(frozen=True)
class Galley:
    url: str
    key: str


def scripted(request: Request) -> Answer:
    """What the model says: each phrase of a user asks for one behaviour."""
    asked = request.asked
    if request.steps:
        return say(f"The tool said: {request.steps[-1][1].text}", pace=CHUNKS)
    if "which tools" in asked:
        return say(" ".join(sorted(request.tool_names)) or "no tools")
    if "call weather" in asked:
        return call("weather", city="Paris")
    if "run" in asked:
        return call("bash", command="true")
    if "take for ever" in asked:
        return Reply((Text("Well..."),), fault=Stall("text"))
    if len(asked) > 1000:
        return say("You said a lot.", pace=CHUNKS)
    said = Text(f"You said: {asked}")
    return Reply((Thinking("Hm."), said) if "think" in asked else (said,), pace=CHUNKS)


@asynccontextmanager
async def running_galley(home: Path) -> AsyncIterator[Galley]:
    async with AsyncExitStack() as stack:
        model_url = await stack.enter_async_context(serve_scripted(scripted))
        settings = Settings(
            home=home, model=ModelSettings(api_key=Secret("k"), base_url=model_url, default="scripted-1")
        )
        database = await stack.enter_async_context(Database.open(home / "galley.db"))
        store = await stack.enter_async_context(SqliteStore.open(database, ChainKey(b"k" * 32), SessionSummaries()))
        log = await stack.enter_async_context(Log.open(store))
        files = await stack.enter_async_context(open_files(settings, database))
        hands = await stack.enter_async_context(SandboxHands.open((), sessions=Liveness(store), files=files))
        model = await stack.enter_async_context(MessagesModel.open(settings.model))
        brain = await stack.enter_async_context(Brain.open(Workplace(log, model, hands, Nowhere(), Attachments(files))))
        client = await stack.enter_async_context(anthropic.AsyncAnthropic(base_url=model_url, api_key="k"))
        runtime = Runtime(
            settings,
            database=database,
            log=log,
            summaries=store,
            files=files,
            brain=brain,
            hands=hands,
            directory=EndpointDirectory(client),
        )
        closing = asyncio.Event()
        limits = settings.limits
        app = build_http(
            runtime,
            api_key=Secret(KEY),
            closing=closing,
            body_limit=limits.body_bytes,
            file_limit=limits.file_bytes,
        )
        address = await stack.enter_async_context(serve(app, host="127.0.0.1", port=0, closing=closing))
        yield Galley(address.url, KEY)
