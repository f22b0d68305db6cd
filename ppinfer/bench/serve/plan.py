"""All that a run of the load tool is told, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppinfer.bench.serve.arrivals import Extent, Load
from ppinfer.bench.serve.lengths import Lengths
from ppinfer.bench.serve.objective import Objective
from ppinfer.bench.serve.target import Target
from ppinfer.bench.serve.workload import Entry, FromFile, Gauge, MadeUp, Workload
from ppinfer.client.address import check_key
from ppinfer.errors import ConfigError


@dataclass(frozen=True)
class Plan:
    """One run: what is asked of which server, at which levels of load.

    Attributes:
        entries: a file's prompts, used instead of made-up ones.
        shared_prefix: tokens that all made-up prompts begin with.
        timeout: seconds after which a request has failed.

    Raises:
        ConfigError: the parts do not go together.
    """

    target: Target
    api_key: str | None
    loads: tuple[Load, ...]
    extent: Extent
    prompt: Lengths
    output: Lengths
    entries: Sequence[Entry] = ()
    shared_prefix: int = 0
    seed: int = 0
    objective: Objective | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        self.extent.check(self.loads)
        if self.entries and self.shared_prefix:
            raise ConfigError("--shared-prefix goes with made-up prompts, not with a dataset.")
        check_key(self.api_key)

    def workload(self, gauge: Gauge) -> Workload:
        if self.entries:
            return FromFile(self.entries, self.output, self.seed)
        return MadeUp(gauge, self.prompt, self.output, self.seed, self.shared_prefix)

    def in_words(self) -> str:
        """What each request is."""
        answer = f"answers of up to {self.output} tokens"
        if self.entries:
            return f"{len(self.entries):,} prompts of a file, {answer} unless it says so"
        prefix = f"{self.shared_prefix:,} shared tokens and " if self.shared_prefix else ""
        return f"prompts of {prefix}{self.prompt} tokens, {answer}"
