"""The server's paths, over the protocols and the core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from localq.options import LoadOptions
from localq.serve.chat_completions import CHAT
from localq.serve.completions import COMPLETIONS
from localq.serve.core import Core, Replies, Wanted
from localq.serve.door import Access, App, Door
from localq.serve.intake import ClientGone, Receive, Strict, check, parse_json
from localq.serve.messages import MESSAGES, CountRequest, count_wanted
from localq.serve.models import Catalogue, Models, Offer
from localq.serve.openapi import describe
from localq.serve.page import make_page
from localq.serve.protocols import Named, Protocol
from localq.serve.refusals import Refusal
from localq.serve.responses import RESPONSES, ResponsesRequest, responses_wanted
from localq.serve.tally import Tally


@dataclass(frozen=True, slots=True)
class Count:
    """How a protocol counts the tokens of a request."""

    request: type[Named]
    wanted: Callable[[Any], Wanted]
    answer: Mapping[str, str]
    """What else the answer has."""


PROTOCOLS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
}
COUNTS: dict[str, Count] = {
    "/v1/messages/count_tokens": Count(CountRequest, count_wanted, {}),
    "/v1/responses/input_tokens": Count(ResponsesRequest, responses_wanted, {"object": "response.input_tokens"}),
}
PATHS = frozenset({*PROTOCOLS, *COUNTS, "/v1/models", "/health", "/metrics", "/openapi.json", "/"})

_LARGE_BODY_BYTES = 100_000  # takes a millisecond or more to read

_Result = TypeVar("_Result")


class EventStream(StreamingResponse):
    """An answer as it comes; the replies are closed at its end, also where nothing was sent."""

    def __init__(self, events: AsyncIterator[bytes], replies: Replies, protocol: Protocol) -> None:
        super().__init__(_guarded(events, protocol), media_type="text/event-stream")
        self.headers["cache-control"] = "no-cache"
        self._replies = replies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See ASGI."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._replies.close()


async def _guarded(events: AsyncIterator[bytes], protocol: Protocol) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            yield event
    except Refusal as refusal:  # too late for a status
        yield protocol.failed(refusal)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What `work` gives; it is cancelled when the client goes away, with ClientGone."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
            with suppress(BaseException):
                await one


class Endpoints:
    """What each path answers."""

    def __init__(self, core: Core, models: Models, tally: Tally) -> None:
        self._core, self._models, self._tally = core, models, tally
        self._page = make_page()

    def of(self, protocol: Protocol) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of a protocol."""

        async def answer(request: Request) -> Response:
            asked = await _asked(protocol.request, request)
            wanted, record = protocol.wanted(asked), request.scope["localq.record"]
            record.client += _user(asked)
            replies = await _unless_gone(request.receive, self._core.begin(wanted, record))
            if asked.stream:
                return EventStream(protocol.events(asked, replies), replies, protocol)
            try:
                whole = await _unless_gone(request.receive, replies.whole())
                return JSONResponse(protocol.answer(asked, replies, whole))
            finally:
                replies.close()

        return answer

    def count(self, how: Count) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint that counts the tokens of a request."""

        async def answer(request: Request) -> Response:
            wanted = how.wanted(await _asked(how.request, request))
            return JSONResponse({**how.answer, "input_tokens": await self._core.count(wanted)})

        return answer

    async def models(self, request: Request) -> Response:
        """All names."""
        offers = await asyncio.to_thread(self._models.catalogue.offers)
        data = [_model(offer) for offer in offers.values()]
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
        return JSONResponse({"object": "list", "data": data, "has_more": False, **ends})

    async def model(self, request: Request) -> Response:
        """One name."""
        offer = await asyncio.to_thread(self._models.catalogue.find, request.path_params["name"])
        return JSONResponse(_model(offer))

    async def health(self, request: Request) -> Response:
        """That the server runs."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """The figures."""
        return PlainTextResponse(self._tally.metrics(self._models), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        ids = list(await asyncio.to_thread(self._models.catalogue.offers))
        return JSONResponse(describe(PROTOCOLS, {path: one.request for path, one in COUNTS.items()}, ids))

    async def page(self, request: Request) -> Response:
        """For a browser."""
        return self._page


async def _asked(kind: type[Strict], request: Request) -> Any:
    content = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content != "application/json":
        raise Refusal(415, "the body must be JSON, with Content-Type: application/json")
    body = request.scope["localq.body"]
    if len(body) < _LARGE_BODY_BYTES:
        return check(kind, parse_json(body))
    return await asyncio.to_thread(lambda: check(kind, parse_json(body)))


def _user(asked: Any) -> str:
    """Whom a program asks for, as the protocols name that; empty where the request does not say."""
    user = getattr(asked, "user", None) or getattr(asked, "safety_identifier", None)
    return user or getattr(getattr(asked, "metadata", None), "user_id", None) or ""


def _model(offer: Offer) -> dict[str, Any]:
    """As OpenAI lists a model, and with the fields that Anthropic's clients read."""
    created = datetime.fromtimestamp(offer.created, UTC).isoformat().replace("+00:00", "Z")
    own = {"id": offer.id, "object": "model", "created": offer.created, "owned_by": "localq"}
    return {**own, "type": "model", "display_name": offer.id, "created_at": created}


@dataclass(frozen=True, slots=True)
class Settings:
    """How a server is set up."""

    models_dir: Path | None
    options: LoadOptions
    access: Access
    keep_alive: float
    """Seconds after which an idle model is closed; below 0 never."""
    log: Callable[[str], None]
    log_prompts: bool = False


def make_server(settings: Settings, offers: Sequence[Offer]) -> tuple[App, Models]:
    """The whole server as an ASGI application, and its models; `offers` are those of the command line."""
    catalogue = Catalogue(settings.models_dir, offers)
    models = Models(catalogue, settings.options, settings.keep_alive, settings.log)
    core = Core(models, Tally(settings.log, PATHS), settings.options.sequences, settings.log_prompts)
    return _make_app(core, settings.access), models


def _make_app(core: Core, access: Access) -> App:
    endpoints = Endpoints(core, core.models, core.tally)
    routes = [Route(path, endpoints.of(protocol), methods=["POST"]) for path, protocol in PROTOCOLS.items()]
    routes += [Route(path, endpoints.count(how), methods=["POST"]) for path, how in COUNTS.items()]
    for path, endpoint in (
        ("/v1/models", endpoints.models),
        ("/v1/models/{name:path}", endpoints.model),
        ("/health", endpoints.health),
        ("/metrics", endpoints.metrics),
        ("/openapi.json", endpoints.openapi),
        ("/", endpoints.page),
    ):
        routes.append(Route(path, endpoint, methods=["GET"]))

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        keeper = asyncio.create_task(core.models.keep())
        yield
        keeper.cancel()
        await core.models.close()

    return Door(Router(routes, redirect_slashes=False, lifespan=lifespan), access, core.tally)
