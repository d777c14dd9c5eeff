"""`localq serve`: OpenAI's protocol over both formats."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from localq.cli import arguments as flags
from localq.cli.completion import complete_reference
from localq.cli.output import say
from localq.errors import OptionError
from localq.options import MOST_BATCH_TOKENS, LoadOptions

KEY_VARIABLE = "LOCALQ_API_KEY"

_References = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REF",
        help="Models to make ready and to open first; all converted models are offered too.",
        autocompletion=complete_reference,
    ),
]
_Host = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="Listen here; others than this machine need a key.")
]
_Port = Annotated[int, typer.Option("--port", metavar="N", help="Listen at this port; 0: any free one.")]
_Reproducible = Annotated[
    bool, typer.Option("--reproducible", help="Give each seeded reply as if it were alone; slower.")
]
_ApiKey = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help=f"Ask clients for this key (default: {KEY_VARIABLE}).")
]
_Sequences = Annotated[
    int, typer.Option("--sequences", metavar="N", help="Compute N replies at the same time, each with a context.")
]
_KeepAlive = Annotated[
    float,
    typer.Option("--keep-alive", metavar="SECONDS", help="Close a model that was idle so long; -1: never."),
]
_LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the log too.")]
_Cors = Annotated[
    list[str] | None,
    typer.Option("--cors", metavar="ORIGIN", help="Let web pages of this origin in (repeatable)."),
]


def serve(
    refs: _References = None,
    host: _Host = "127.0.0.1",
    port: _Port = 8080,
    reproducible: _Reproducible = False,
    api_key: _ApiKey = None,
    sequences: _Sequences = 4,
    keep_alive: _KeepAlive = 300.0,
    log_prompts: _LogPrompts = False,
    cors: _Cors = None,
    context_length: flags.ContextLength = None,
    threads: flags.Threads = None,
    kv_cache_type: flags.KvCacheType = None,
    flash_attention: flags.FlashAttention = None,
    batch_tokens: flags.BatchTokens = MOST_BATCH_TOKENS,
    models_dir: flags.ModelsDir = None,
) -> None:
    """Serve models to programs, with OpenAI's protocol.

    Clients take http://127.0.0.1:8080/v1 as their base URL, without /v1 those
    of Anthropic; a browser finds a chat page at http://127.0.0.1:8080. A
    converted model is opened when a request names it; requests download and
    convert nothing. Ctrl-C lets running replies finish.
    """
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.serve.app import Settings, make_server
    from localq.serve.door import Access, origins, require_key
    from localq.serve.listening import bind, run
    from localq.serve.models import make_offer

    options = LoadOptions(**flags.load_options(locals()))
    if not (keep_alive >= 0 or keep_alive == -1):
        raise OptionError(f"--keep-alive is {keep_alive:g}; expected seconds, 0 or more", "-1 never closes a model")
    access = Access(host, api_key or os.environ.get(KEY_VARIABLE) or None, origins(cors or ()))
    require_key(access)
    with bind(host, port) as bound:
        with ByteBar() as bar:
            listener = TerminalListener(bar, tell_reused=False)
            offers = [make_offer(reference, models_dir, listener) for reference in refs or ()]
        app, models = make_server(Settings(models_dir, options, access, keep_alive, say, log_prompts), offers)
        models.open_now(offers)
        bound.listen()  # clients that come from now on are heard, in a moment
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{bound.getsockname()[1]}"
        if not models.catalogue.offers():
            say("there is no converted model yet: `localq convert MODEL` makes one, and this server finds it")
        say(f"serving at {address}/v1, with a chat page at {address}/; Ctrl-C ends")
        run(app, bound, say)
