"""``/v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from contextlib import aclosing

import msgspec

from ppinfer.request import RequestDelta
from ppinfer.server import params as fields
from ppinfer.server.exchange import Exchange
from ppinfer.server.logprobs import chat_logprobs
from ppinfer.server.protocol import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
)
from ppinfer.server.service import Service
from ppinfer.server.stream import Answers, Whole, finish_reason, usage

_encode = msgspec.json.Encoder().encode


async def chat_completions(service: Service, exchange: Exchange, salt: str) -> None:
    request = await service.read(exchange, ChatRequest)
    engine = service.engine
    count = fields.choices(request)
    fields.with_usage(request)
    params = fields.chat_params(request, engine.info.vocab_size, engine.info.max_model_len)
    with service.places.take(count, "n"):
        ids = await service.texts.encode_chat(engine.tokenizer, request.messages)
        service.check_prompt(ids, "messages")
        async with service.answers([ids], request, params, salt) as answers:
            reply = _Reply(service, exchange, request, ids, count)
            await (reply.stream(answers) if request.stream else reply.whole(answers))


class _Reply:
    def __init__(
        self, service: Service, exchange: Exchange, request: ChatRequest, ids: list[int], count: int
    ) -> None:
        self._service, self._exchange, self._request = service, exchange, request
        self._prompt, self._count = ids, count
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = request.model or service.model_name

    async def whole(self, answers: Answers) -> None:
        wholes = [Whole() for _ in range(self._count)]
        async with aclosing(answers.deltas()) as deltas:
            async for index, delta in deltas:
                wholes[index].add(delta)
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(whole.text),
                logprobs=chat_logprobs(whole.logprobs, self._service.token_texts)
                if self._request.logprobs
                else None,
                finish_reason=whole.finish_reason,
            )
            for index, whole in enumerate(wholes)
        ]
        new_tokens = sum(whole.num_tokens for whole in wholes)
        await self._exchange.json(
            ChatCompletion(
                self._id, self._created, self._model, choices, usage([self._prompt], new_tokens)
            )
        )

    async def stream(self, answers: Answers) -> None:
        """The status is sent with the first token: until then, an error still has its own."""
        begun: set[int] = set()
        new_tokens = 0
        async with aclosing(answers.deltas()) as deltas:
            async for index, delta in deltas:
                if not self._exchange.started:
                    await self._exchange.start_events()
                if index not in begun:
                    begun.add(index)
                    await self._send(ChatChunkChoice(index, ChatDelta("assistant", "")))
                new_tokens += len(delta.token_ids)
                await self._send_delta(index, delta)
        if fields.with_usage(self._request):
            chunk = self._chunk([])
            chunk.usage = usage([self._prompt], new_tokens)
            await self._exchange.event(_encode(chunk))
        await self._exchange.end_events()

    async def _send_delta(self, index: int, delta: RequestDelta) -> None:
        """Text, where there is some, and then the end by itself."""
        reason = finish_reason(delta.finish_reason)
        logprobs = None
        if delta.logprobs and self._request.logprobs:
            logprobs = chat_logprobs(delta.logprobs, self._service.token_texts)
        if delta.text or logprobs:
            await self._send(ChatChunkChoice(index, ChatDelta(content=delta.text), logprobs))
        if reason is not None:
            await self._send(ChatChunkChoice(index, ChatDelta(), None, reason))

    async def _send(self, choice: ChatChunkChoice) -> None:
        await self._exchange.event(_encode(self._chunk([choice])))

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(self._id, self._created, self._model, choices)
        if self._request.stream_options and self._request.stream_options.include_usage:
            chunk.usage = None
        return chunk
