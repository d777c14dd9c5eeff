"""The models that the server offers by name, and those of them that are open.

Names are those of the models folder and of the command line: a request can't name a path, a URL or a repository, and
nothing is downloaded or converted for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from localq.backends import default_recipe_name, has_backend
from localq.batching import Batcher
from localq.conversion.convert import ConversionListener, make_forms
from localq.conversion.plan import Request
from localq.engine_thread import borrow_engine_thread, return_engine_thread
from localq.errors import LocalqError, NotEnoughMemoryError, UnknownRecipeError
from localq.model import Model, chosen_recipe, open_form, open_gguf_file, ready_form
from localq.options import LoadOptions
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.serve.refusals import Refusal, failure, try_later
from localq.store.manifest import Artifact, read_artifact
from localq.store.store import Store, shown_name

_SHOWN_CHARACTERS = 100
_KEEPER_SECONDS = 0.5

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Offer:
    """A model in one form, ready to be opened."""

    model: str
    form: str
    path: Path
    """Its folder, or the `.gguf` file."""
    created: int
    """Seconds since 1970."""

    @property
    def id(self) -> str:
        """What requests name it by."""
        return f"{self.model}:{self.form}"


def make_offer(reference: str, models_dir: Path | None, listener: ConversionListener) -> Offer:
    """Make ready what the command line names: download and convert where needed. Raises errors of the tree."""
    parsed = parse_reference(reference)
    ready = ready_form(parsed, models_dir, listener.on_download)
    if ready is None:
        request = Request(parsed.without_recipe(), [chosen_recipe(parsed)], models_dir)
        return _offer(make_forms(request, listener)[0].artifact)
    artifact = read_artifact(ready) if ready.is_dir() else None
    if artifact is not None:
        return _offer(artifact)
    form = "gguf" if ready.is_file() else "mlx"
    name = parsed.name if parsed.kind == "repo" else ready.stem if ready.is_file() else ready.name
    return Offer(name, parsed.recipe.name if parsed.recipe else form, ready, int(ready.stat().st_mtime))


def _offer(artifact: Artifact) -> Offer:
    created = int(datetime.fromisoformat(artifact.manifest.created).timestamp())
    return Offer(shown_name(artifact.folder), artifact.manifest.recipe, artifact.folder, created)


class Catalogue:
    """What may be named."""

    def __init__(self, models_dir: Path | None, named: Sequence[Offer]) -> None:
        self._store = Store(models_dir)
        self._named = {offer.id: offer for offer in named}
        self._default_form = default_recipe_name()

    def offers(self) -> dict[str, Offer]:
        """All by id: of the command line, then of the models folder as it is now."""
        found = [_offer(one) for one in self._store.artifacts() if has_backend(one.recipe.format)]
        return self._named | {offer.id: self._named.get(offer.id, offer) for offer in found}

    def find(self, name: str) -> Offer:
        """The offer of an id. A short form is completed; without one it is the default form, or else the only one.

        Raises Refusal (404).
        """
        offers = self.offers()
        forms = [offer for offer in offers.values() if offer.model == name]
        model, _, form = name.rpartition(":")
        wanted = {name, f"{name}:{self._default_form}"}
        with suppress(UnknownRecipeError):
            wanted.add(f"{model}:{parse_recipe(form).name}")
        found = [offers[one] for one in wanted if one in offers] or (forms if len(forms) == 1 else [])
        if found:
            return found[0]
        shown = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..."
        there = f"; it is there as {', '.join(offer.form for offer in forms)}" if forms else ""
        reason = f"there is no model {shown!r} here{there}; GET /v1/models lists the names"
        raise Refusal(404, reason, "model", "model_not_found")


@dataclass(eq=False)
class Opened:
    """A model in memory."""

    offer: Offer
    model: Model
    batcher: Batcher
    users: int = 0
    """Requests that it is answering: while there are any, it stays."""
    last_used: float = field(default_factory=time.monotonic)

    def release(self) -> None:
        """A request is over."""
        self.users -= 1
        self.last_used = time.monotonic()


class Models:
    """Opens models when they are asked for, and closes those that nobody uses."""

    def __init__(self, catalogue: Catalogue, options: LoadOptions, keep_alive: float, log: Callable[[str], None]):
        """A model that was not used for `keep_alive` seconds is closed; below 0 never."""
        self.catalogue = catalogue
        self._options, self._keep_alive, self._log = options, keep_alive, log
        self._opened: dict[str, Opened] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()
        """One model is opened or closed at a time: each needs to know what memory is free."""

    def opened(self) -> list[Opened]:
        """Those in memory."""
        return list(self._opened.values())

    async def use(self, name: str) -> Opened:
        """The model of a name, opened if it was not, with one user more. Raises Refusal."""
        known = self._opened.get(name)
        offer = known.offer if known else await asyncio.to_thread(self.catalogue.find, name)
        while offer.id not in self._opened:
            if offer.id not in self._opening:
                task = self._opening[offer.id] = asyncio.create_task(self._open(offer))
                task.add_done_callback(lambda done: self._opening.pop(offer.id) and done.exception())
            # Opening goes on when this client goes away: others may wait for it.
            await asyncio.shield(self._opening[offer.id])
        opened = self._opened[offer.id]
        opened.users += 1
        return opened

    def open_now(self, offers: Sequence[Offer]) -> None:
        """Before the server runs, open as many as fit, at least one. Raises errors of the tree."""
        for offer in offers:
            try:
                self._opened[offer.id] = self._load(offer)
            except NotEnoughMemoryError:
                if not self._opened:
                    raise

    async def _open(self, offer: Offer) -> None:
        async with self._turn:
            while True:
                try:
                    self._opened[offer.id] = await asyncio.to_thread(self._load, offer)
                    return
                except NotEnoughMemoryError as error:
                    self._log(f"{offer.id}: {error.message}")
                    idle = sorted((one for one in self.opened() if not one.users), key=lambda one: one.last_used)
                    if not idle:
                        raise try_later(503, f"there is no memory for {offer.id} now", "not_enough_memory") from error
                    await self._close(idle[0])
                except LocalqError as error:
                    self._log(f"{offer.id} can't be opened: {error.message}")
                    raise failure() from error

    def _load(self, offer: Offer) -> Opened:
        started = time.perf_counter()
        # The batcher borrows the thread that is returned last: what MLX makes belongs to one thread.
        opens = open_gguf_file if offer.path.is_file() else open_form
        model = in_engine_thread(lambda: opens(offer.path, self._options))
        self._log(f"{offer.id} opened in {time.perf_counter() - started:.2f} seconds")
        return Opened(offer, model, Batcher(model))

    async def _close(self, opened: Opened) -> None:
        self._opened.pop(opened.offer.id, None)  # from now on nobody gets it
        await asyncio.to_thread(_close, opened)
        self._log(f"{opened.offer.id} closed")

    async def keep(self) -> None:
        """Close what was not used for long, until cancelled."""
        while True:
            await asyncio.sleep(_KEEPER_SECONDS)
            if self._keep_alive < 0:
                continue
            async with self._turn:
                for one in self.opened():
                    if not one.users and time.monotonic() - one.last_used >= self._keep_alive:
                        await self._close(one)

    async def close(self) -> None:
        """Close all, at the end."""
        async with self._turn:
            for one in self.opened():
                await self._close(one)


def _close(opened: Opened) -> None:
    opened.batcher.close()
    in_engine_thread(opened.model.close)


def in_engine_thread(work: Callable[[], _Result]) -> _Result:
    """Run something in an engine thread. Raises what it raises."""
    thread = borrow_engine_thread()
    try:
        return thread.run(work)
    finally:
        return_engine_thread(thread)
