"""What the columns of a page mean, in a line each. The figures themselves are defined where they are computed."""

from __future__ import annotations

from collections.abc import Iterable

from localq.measure.page.figures import Table

_DEFINITIONS = {
    "size": "bytes of all files of the form on disk",
    "bits/weight": "8 × bytes of weights / number of weights",
    "prompt t/s": "prompt tokens / seconds until the logits of the last of them (ppN: of N tokens); median ± standard "
    "deviation of the repetitions",
    "generation t/s": "(generated tokens - 1) / seconds after the first of them (tgN: of N tokens); median ± standard "
    "deviation of the repetitions",
    "t/s": "of ppN: prompt tokens / seconds until the logits of the last of them; of tgN: (generated tokens - 1) / "
    "seconds after the first of them; @ dN: with N tokens in the cache before",
    "95% interval": "confidence interval of the median, by bootstrap over the repetitions",
    "of memory limit": "generation rate / (memory bandwidth / bytes that a token reads); the limit stands behind it, "
    "in t/s",
    "J/token": "energy of the processors while they worked / tokens",
    "first token": "seconds from the start of the prompt to the first token; median",
    "load": "seconds until the form is ready, with its files in the operating system's cache; cold: from the disk",
    "peak memory": "most memory that the form's process had, weights included",
    "mean KL": "mean over positions of Σ P (ln P - ln Q) over the vocabulary, in nats ± standard error; P is what the "
    "reference foretells, Q what the form does",
    "median KL": "that of the position in the middle; 99%: one position in a hundred has more",
    "same top": "share of positions where P and Q are largest for the same token ± standard error",
    "perplexity": "exp(mean of -ln Q(right token)); with its change against the reference's",
    "ln ratio": "ln(perplexity / the reference's) ± standard error",
    "RMS Δp": "√(mean of (Q - P)² of the right token) ± standard error",
    "read/token": "bytes of weights that a token reads",
}


def definitions(tables: Iterable[Table]) -> tuple[tuple[str, str], ...]:
    """Name and meaning of each column that one of the tables has, each once."""
    names = dict.fromkeys(cell.text for table in tables for cell in table.header)
    return tuple((name, _DEFINITIONS[name]) for name in names if name in _DEFINITIONS)
