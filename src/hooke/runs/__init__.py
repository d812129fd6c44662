"""Run folders: where a command leaves its settings, its numbers and what it made."""

from __future__ import annotations

from hooke.runs.environment import describe
from hooke.runs.folder import RunFolder, RunSink
from hooke.runs.index import IndexedRun, RunIndex
from hooke.runs.metrics import MetricRow, Metrics
from hooke.runs.record import Artefact, RunInfo

__all__ = ["Artefact", "IndexedRun", "MetricRow", "Metrics", "RunFolder", "RunIndex", "RunInfo", "RunSink", "describe"]
