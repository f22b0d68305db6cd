"""What the server needs of an engine. ``AsyncPPInferEngine`` is one; tests have another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ppinfer.engine.state import EngineState, LiveState
from ppinfer.request import RequestDelta
from ppinfer.sampling import SamplingParams

if TYPE_CHECKING:
    from ppinfer.engine.tokenizer import Tokenizer


class Info(Protocol):
    """What is fixed about an engine once it stands."""

    @property
    def max_model_len(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def notes(self) -> list[str]: ...


class TokenStream(Protocol):
    """An async iterator over one sequence's deltas; ``aclose`` aborts what is unfinished."""

    seq_id: int

    def __aiter__(self) -> AsyncIterator[RequestDelta]: ...

    async def __anext__(self) -> RequestDelta: ...

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """Makes streams of tokens. Everything it raises on purpose is a ``PPInferError``."""

    @property
    def info(self) -> Info: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def is_alive(self) -> bool: ...

    def stream(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        salt: str = "",
        streamed: bool = True,
    ) -> TokenStream: ...

    async def check(self, timeout: float) -> None: ...

    async def state(self) -> EngineState: ...

    async def live(self) -> LiveState: ...

    def look_away(self) -> None: ...

    async def close(self) -> None: ...
