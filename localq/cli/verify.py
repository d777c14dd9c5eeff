"""`localq verify`: whether artifacts are unchanged on disk, and still give what they gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli.arguments import Json, ModelsDir
from localq.cli.completion import complete_reference
from localq.cli.output import emit, emit_json, say
from localq.errors import StoreError
from localq.tables import format_bytes

if TYPE_CHECKING:
    from localq.measure.probe import ProbeResult
    from localq.store.manifest import Artifact

_Deep = Annotated[
    bool, typer.Option("--deep", help="Also open each artifact and compare logits with those of the first time.")
]


def verify(
    ref: Annotated[
        str | None,
        typer.Argument(
            metavar="REF", help="A model or one of its artifacts (default: all).", autocompletion=complete_reference
        ),
    ] = None,
    deep: _Deep = False,
    models_dir: ModelsDir = None,
    json: Json = False,
) -> None:
    """Compare artifacts with the hashes in their manifests.

    The first --deep only records some logits of each artifact; later ones compare with them.
    """
    from localq.cli.progress import ByteBar
    from localq.reference import parse_reference
    from localq.store.store import Store, problem_of
    from localq.store.upkeep import check_artifacts

    store = Store.existing(models_dir)
    damaged = [] if ref is not None else store.damaged()
    artifacts = store.artifacts() if ref is None else store.require(parse_reference(ref))
    with ByteBar() as bar:
        changed = check_artifacts(artifacts, lambda done, total: bar.update("verify", done, total))
    results = [
        _result(artifact, names, _probe(artifact) if deep and not names else None)
        for artifact, names in zip(artifacts, changed, strict=True)
    ]
    if json:
        emit_json([{key: result[key] for key in result if key != "outcome"} for result in results])
    else:
        for result in results:
            emit(f"{result['model']}:{result['recipe']}, {format_bytes(result['bytes'])}: {result['outcome']}")
    for folder in damaged:
        say(f"damaged: {problem_of(folder)}")
    if damaged or any(changed):
        raise StoreError(
            "some artifacts are damaged", "`localq convert SOURCE --to FORMAT --force` makes an artifact again"
        )
    if any(result.get("probe", "same") not in ("same", "recorded") for result in results):
        raise StoreError(
            "some artifacts do not give what they gave",
            "their files are unchanged: look at the version of the runtime, and at this machine",
        )


def _probe(artifact: Artifact) -> ProbeResult:
    from localq.measure.probe import probe_or_error

    return probe_or_error(artifact)


def _result(artifact: Artifact, changed: list[str], probe: ProbeResult | None) -> dict[str, Any]:
    manifest = artifact.manifest
    record = {"model": manifest.model, "recipe": manifest.recipe, "bytes": manifest.bytes, "changed": changed}
    outcome = f"changed: {', '.join(changed)}" if changed else "unchanged"
    if probe is None:
        return {**record, "outcome": outcome}
    by = "" if probe.difference is None else f" (largest difference: {probe.difference:.2g} standard deviations)"
    since = f"; since then {probe.versions}" if probe.versions else ""
    told = {"recorded": "logits recorded, to compare with the next time", "same": f"logits as recorded{by}{since}"}
    outcome += f"; {told.get(probe.state, f'logits: {probe.state}{by}{since}')}"
    return {**record, "probe": probe.state, "probe_difference": probe.difference, "outcome": outcome}
