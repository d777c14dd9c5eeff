"""`localq demo`: convert, ask and compare, with the built-in toy models and without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localq.cli import arguments as flags
from localq.cli.output import emit, say
from localq.reference import BUILT_IN_NAMES
from localq.tables import format_bytes, format_rate, format_table

if TYPE_CHECKING:
    from localq.model import Model
    from localq.store.manifest import Artifact

_SHOWN_QUESTIONS = 3
_NEXT = """
next: localq chat toy-llama
      localq bench toy-llama toy-phi
      localq convert org/name"""


@dataclass(slots=True)
class _Score:
    """How one artifact answered the questions."""

    artifact: Artifact
    replies: list[str]
    correct: int
    prompt_rate: float
    generation_rate: float


def demo(models_dir: flags.ModelsDir = None) -> None:
    """Convert two toy models to MLX and GGUF, and compare them.

    Both formats answer the same questions. Nothing is downloaded.
    """
    from localq.demo.questions import read_questions

    questions = read_questions()
    scores = []
    for toy in BUILT_IN_NAMES:
        say(f"== {toy}: convert to MLX and GGUF, then ask both {len(questions)} questions")
        of_toy = [_score(artifact, questions) for artifact in _artifacts(toy, models_dir)]
        for number, (question, _) in enumerate(questions[:_SHOWN_QUESTIONS]):
            emit(f"\n{toy} > {question}")
            for score in of_toy:
                emit(f"  {score.artifact.manifest.recipe:<12} {score.replies[number]}")
        emit("")
        scores += of_toy
    emit(_table(scores, len(questions)))
    say(_NEXT)


def _artifacts(toy: str, models_dir: Path | None) -> list[Artifact]:
    from localq.backends import default_recipe_names
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.conversion.convert import convert

    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=True)
        return convert(toy, default_recipe_names(), models_dir=models_dir, listener=listener)


def _score(artifact: Artifact, questions: list[tuple[str, str]]) -> _Score:
    from localq.model import open_form
    from localq.options import LoadOptions

    with open_form(artifact.folder, LoadOptions()) as model:
        return _ask(model, artifact, questions)


def _ask(model: Model, artifact: Artifact, questions: list[tuple[str, str]]) -> _Score:
    completions = [model.generate(question) for question, _ in questions]
    statistics = [completion.statistics for completion in completions]
    computed = sum(item.prompt_tokens - item.cached_prompt_tokens for item in statistics)
    decoded = sum(item.generated_tokens - 1 for item in statistics)
    correct = sum(completion.text == answer for completion, (_, answer) in zip(completions, questions, strict=True))
    return _Score(
        artifact=artifact,
        replies=[completion.text for completion in completions],
        correct=correct,
        prompt_rate=computed / sum(item.prompt_seconds for item in statistics),
        generation_rate=decoded / sum(item.decode_seconds for item in statistics),
    )


def _table(scores: list[_Score], question_count: int) -> str:
    header = ["model", "format", "weights", "bits/weight", "prompt", "generation", "correct"]
    rows = [
        [
            score.artifact.manifest.model,
            score.artifact.manifest.recipe,
            format_bytes(score.artifact.manifest.weight_bytes),
            f"{score.artifact.manifest.bits_per_weight:.2f}",
            f"{format_rate(score.prompt_rate)} t/s",
            f"{format_rate(score.generation_rate)} t/s",
            f"{score.correct}/{question_count}",
        ]
        for score in scores
    ]
    return format_table(header, rows, left_columns=2)
