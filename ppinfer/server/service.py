"""What endpoints share: the engine, once it is there, and what guards it."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TypeVar

import msgspec

from ppinfer.sampling import SamplingParams
from ppinfer.server import params as fields
from ppinfer.server.backend import Engine
from ppinfer.server.decoding import decode
from ppinfer.server.errors import (
    ApiError,
    context_length_exceeded,
    invalid,
    unavailable,
)
from ppinfer.server.exchange import Exchange
from ppinfer.server.hub import Hub
from ppinfer.server.in_flight import Requests
from ppinfer.server.limits import Places
from ppinfer.server.logprobs import TokenTexts
from ppinfer.server.observed import Observed
from ppinfer.server.protocol import Generate
from ppinfer.server.settings import ServerSettings
from ppinfer.server.stream import Answers, Job
from ppinfer.server.texts import Texts

StructT = TypeVar("StructT", bound=msgspec.Struct)

LOADING_SECONDS = 5
"""When to come back while the model is being loaded."""


class Service:
    """
    Attributes:
        draining: set once the server is to end; it takes no new requests then.
        places: what is at work or waits.
        requests: those that are being answered.
        hub: tells who watches.
        observed: the engine's state.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.places = Places(settings.max_queue)
        self.texts = Texts()
        self.requests = Requests()
        self.observed = Observed()
        self.hub = Hub(self)
        self.draining = False
        self._engine: Engine | None = None

    def open(self, engine: Engine) -> None:
        """The model is loaded: requests are answered from now on."""
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """Raises ``ApiError`` (503) while there is none."""
        if self._engine is None:
            raise unavailable("The model is being loaded.", "loading", LOADING_SECONDS)
        return self._engine

    @property
    def engine_or_none(self) -> Engine | None:
        """``None`` while the model is being loaded."""
        return self._engine

    @property
    def is_alive(self) -> bool:
        """Whether waiting can help: false once the engine has ended for good."""
        return self._engine is None or self._engine.is_alive

    @property
    def model_name(self) -> str:
        return self.settings.model_names[0]

    @cached_property
    def token_texts(self) -> TokenTexts:
        return TokenTexts(self.engine.tokenizer)

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Tokens that leave no text."""
        tokenizer = self.engine.tokenizer
        return tokenizer.special_ids if tokenizer is not None else frozenset()

    async def read(self, exchange: Exchange, kind: type[StructT]) -> StructT:
        """The request's body, for a model that is served here."""
        request = decode(await exchange.body(self.settings.max_body_bytes), kind)
        model = getattr(request, "model", None)
        if model is not None:
            self.check_model(model)
        return request

    def check_model(self, model: str) -> None:
        if model not in self.settings.model_names:
            raise ApiError(
                404, "There is no such model here.", param="model", code="model_not_found"
            )

    def check_prompt(self, ids: list[int], param: str) -> None:
        """Before anything is computed: not empty, in the vocabulary, and with room to go on."""
        info = self.engine.info
        if not ids:
            raise invalid(param, f"{param} is empty; it must come to at least one token.")
        if len(ids) >= info.max_model_len:
            raise context_length_exceeded(param, len(ids), info.max_model_len)
        fields.check_ids(ids, info.vocab_size, param)

    def answers(
        self, prompts: list[list[int]], request: Generate, params: SamplingParams, salt: str
    ) -> Answers:
        """``n`` answers to each prompt: first all of the first prompt, then all of the second."""
        jobs = []
        for ids in prompts:
            for index in range(fields.choices(request)):
                own = params
                if params.seed is not None and index:
                    seed = fields.seed_of_choice(params.seed, index)
                    own = msgspec.structs.replace(params, seed=seed)
                jobs.append(Job(ids, own))
        answers = Answers(
            self.engine,
            jobs,
            priority=fields.priority(request),
            salt=salt,
            streamed=bool(request.stream),
        )
        self.requests.generates(answers)
        return answers
