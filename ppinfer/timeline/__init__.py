"""Shows traces: lanes in the terminal, tables, a picture. ``trace`` finds out what they say."""

from ppinfer.trace.analysis import Analysis, Bubble, Part, Section, StageTime, analyse
from ppinfer.trace.chrome import read_trace, write_trace
from ppinfer.trace.model import Lane, Span, StepFacts, Trace

__all__ = [
    "Analysis",
    "Bubble",
    "Lane",
    "Part",
    "Section",
    "Span",
    "StageTime",
    "StepFacts",
    "Trace",
    "analyse",
    "read_trace",
    "write_trace",
]
