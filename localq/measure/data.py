"""What the reports of measurements are made of: base classes, intervals and rates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from localq.measure.tables import Document


class Data(BaseModel):
    """Never changes; refuses infinities and numbers that are none."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Interval(Data):
    """An estimate, and the ends of its confidence interval."""

    estimate: float
    low: float
    high: float
    level: float
    """Share of runs in which such an interval holds the true value: 0.95, less with few repetitions."""


class Rate(Data):
    """Tokens per second, measured repeatedly."""

    median: Annotated[float, Field(gt=0)]
    stdev: float | None
    """Sample standard deviation (n - 1); None for a single sample."""
    confidence_interval: tuple[float, float] | None
    """Of the median; None for fewer than three samples."""
    confidence_level: float | None
    """Of that interval: 0.95 from six samples on; of fewer, 1 - 2 x 0.5^n."""
    samples: tuple[float, ...]
    """In the order in which they were measured."""


class Shown(Data):
    """What Python sessions and notebooks show as tables."""

    def __repr__(self) -> str:
        from localq.measure.tables import render

        return render(self._document(), "text")

    __str__ = __repr__

    def _repr_html_(self) -> str:
        from localq.measure.tables import render_notebook

        return render_notebook(self._document())

    def _document(self) -> Document:
        raise NotImplementedError
