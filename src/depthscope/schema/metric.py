"""A measured quantity. Imports nothing, so that what measures can run with torch alone."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity: its column name, unit, range, and the sentence that defines it."""

    name: str
    unit: str
    title: str
    definition: str
    lowest: float | None = None
    highest: float | None = None
