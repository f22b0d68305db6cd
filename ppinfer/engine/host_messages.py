"""What an ``AsyncPPInferEngine`` and the process of its driver say to each other."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from ppinfer import errors
from ppinfer.engine.prompts import Limits
from ppinfer.engine.report import EngineReport
from ppinfer.engine.state import LiveState
from ppinfer.errors import PPInferError, RequestError, StageError
from ppinfer.request import RequestDelta
from ppinfer.sampling import SamplingParams


class Start(msgspec.Struct, tag=True):
    """The first message: which engine to bring up."""

    model: str
    tokenizer: str | None
    settings: dict[str, Any]


class Submit(msgspec.Struct, tag=True):
    """A request that was checked and made whole (``RequestFactory``)."""

    seq_id: int
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: tuple[int, ...]
    priority: int
    salt: str
    streamed: bool


class Abort(msgspec.Struct, tag=True):
    seq_ids: list[int]


class Ask(msgspec.Struct, tag=True):
    """For an ``Answer`` with the figures of the run; every stage is asked."""

    number: int


class AskState(msgspec.Struct, tag=True):
    """For a ``StateAnswer``, soon, whatever stages do. ``watch`` asks for what they did since the
    last such question too; who watches asks often."""

    number: int
    watch: bool


class LookAway(msgspec.Struct, tag=True):
    """Nobody watches any more."""


class Stop(msgspec.Struct, tag=True):
    """Close the engine and end."""


class Progress(msgspec.Struct, tag=True):
    """Of the start-up: see ``ppinfer.progress``."""

    event: str
    done: float
    total: float


class Started(msgspec.Struct, tag=True):
    """The engine stands. What it is, for people and for checking requests."""

    dtype: str
    limits: Limits
    notes: list[str]
    choices: list[str]
    stage_pids: list[int | None]


class Failure(msgspec.Struct, tag=True):
    """An exception on its way: of one request, or where ``seq_id`` is -1 of the whole engine."""

    seq_id: int
    kind: str
    message: str
    stage: int | None = None
    param: str | None = None

    @classmethod
    def of(cls, error: PPInferError, seq_id: int = -1) -> Failure:
        stage = error.stage if isinstance(error, StageError) else None
        param = error.param if isinstance(error, RequestError) else None
        return cls(seq_id, type(error).__name__, str(error), stage, param)

    def exception(self) -> PPInferError:
        error = errors.from_name(self.kind, self.message, self.stage)
        if isinstance(error, RequestError):
            error.param = self.param
        return error


class Deltas(msgspec.Struct, tag=True):
    """What steps added to requests; ``index`` is each one's ``seq_id``."""

    deltas: list[RequestDelta]
    failures: list[Failure]


class Answer(msgspec.Struct, tag=True):
    number: int
    report: EngineReport


class StateAnswer(msgspec.Struct, tag=True):
    """Without spans where they were not asked for."""

    number: int
    live: LiveState


ToHost: TypeAlias = Start | Submit | Abort | Ask | AskState | LookAway | Stop
FromHost: TypeAlias = Progress | Started | Deltas | Failure | Answer | StateAnswer

encode = msgspec.msgpack.Encoder().encode
decode_to_host = msgspec.msgpack.Decoder(ToHost).decode
decode_from_host = msgspec.msgpack.Decoder(FromHost).decode
