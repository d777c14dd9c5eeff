"""`localq serve`: OpenAI's protocol over both formats."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from localq.cli import arguments as flags
from localq.cli.completion import complete_reference
from localq.cli.output import say
from localq.errors import NotEnoughMemoryError
from localq.options import MOST_BATCH_TOKENS, LoadOptions

KEY_VARIABLE = "LOCALQ_API_KEY"

_References = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[REF]...",
        help="Models to make ready and to open first; all converted models are offered too.",
        autocompletion=complete_reference,
    ),
]
_Host = Annotated[
    str, typer.Option("--host", metavar="ADDRESS", help="Listen here; others than this machine need a key.")
]
_Port = Annotated[
    int, typer.Option("--port", metavar="N", min=0, max=65535, help="Listen at this port; 0: any free one.")
]
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

    The base URL for clients is http://127.0.0.1:8080/v1. Besides OpenAI's chat
    completions, completions and responses there are Anthropic's messages.
    A model that a request names is opened when it is needed, from the models
    that were converted; a request downloads and converts nothing.
    """
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.serve.app import PATHS, make_app
    from localq.serve.core import Core
    from localq.serve.door import Access, origins, require_key
    from localq.serve.listening import bind
    from localq.serve.listening import serve as listen
    from localq.serve.models import Catalogue, Models, make_offer
    from localq.serve.tally import Tally

    options = LoadOptions(**flags.load_options(locals()))
    access = Access(host, api_key or os.environ.get(KEY_VARIABLE) or None, origins(cors or ()))
    require_key(access)
    bound = bind(host, port)
    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=False)
        offers = [make_offer(reference, models_dir, listener) for reference in refs or ()]
    models = Models(Catalogue(models_dir, offers), options, keep_alive, say)
    for offer in offers:
        try:
            models.open_now(offer)
        except NotEnoughMemoryError:
            if not models.opened():
                raise
    core = Core(models, Tally(say, PATHS), sequences, log_prompts)
    name = f"[{host}]" if ":" in host else host
    say(f"serving at http://{name}:{bound.getsockname()[1]}/v1; Ctrl-C ends")
    listen(make_app(core, access), bound)
