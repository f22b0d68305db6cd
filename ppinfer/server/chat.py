"""``/v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from contextlib import aclosing

import msgspec

from ppinfer.request import RequestDelta
from ppinfer.server import params as fields
from ppinfer.server.exchange import Exchange
from ppinfer.server.formats import FIELD, blaming, format_grammar
from ppinfer.server.logprobs import chat_logprobs
from ppinfer.server.protocol import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
    FinishReason,
)
from ppinfer.server.service import Service
from ppinfer.server.stream import Answers, Whole, finish_reason, usage
from ppinfer.server.tool_calls import AnswerReader
from ppinfer.server.tools import read_tools

_encode = msgspec.json.Encoder().encode


async def chat_completions(service: Service, exchange: Exchange, salt: str) -> None:
    request = await service.read(exchange, ChatRequest)
    engine = service.engine
    count = fields.choices(request)
    fields.with_usage(request)
    tools, grammar = read_tools(request), format_grammar(request.response_format)
    if tools:
        grammar = tools.grammar(grammar, engine.tokenizer)
    info = engine.info
    params = fields.chat_params(request, info.vocab_size, info.max_model_len, grammar)
    with service.places.take(count, "n"):
        ids = await service.texts.encode_chat(engine.tokenizer, request.messages, tools=tools)
        service.check_prompt(ids, "messages")
        async with service.answers([ids], request, params, salt) as answers:
            reply = _Reply(service, exchange, request, ids, count, bool(tools))
            with blaming("tools" if tools else FIELD):
                await (reply.stream(answers) if request.stream else reply.whole(answers))


class _Reply:
    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        request: ChatRequest,
        ids: list[int],
        count: int,
        may_call: bool,
    ) -> None:
        self._service, self._exchange, self._request = service, exchange, request
        self._prompt, self._count = ids, count
        self._readers = [AnswerReader() for _ in range(count)] if may_call else []
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
                message=self._message(index, whole),
                logprobs=chat_logprobs(whole.logprobs, self._service.token_texts)
                if self._request.logprobs
                else None,
                finish_reason=self._reason(index, whole.finish_reason),
            )
            for index, whole in enumerate(wholes)
        ]
        new_tokens = sum(whole.num_tokens for whole in wholes)
        await self._exchange.json(
            ChatCompletion(
                self._id, self._created, self._model, choices, usage([self._prompt], new_tokens)
            )
        )

    def _message(self, index: int, whole: Whole) -> AnswerMessage:
        if not self._readers:
            return AnswerMessage(whole.text)
        reader = self._readers[index]
        parts = [*reader.push(whole.text), *reader.finish()]
        content = "".join(part for part in parts if isinstance(part, str))
        if not reader.calls:
            return AnswerMessage(content)
        return AnswerMessage(content or None, tool_calls=reader.calls)

    def _reason(self, index: int, reason: FinishReason) -> FinishReason:
        return self._readers[index].reason(reason) if self._readers else reason

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
                    first = ChatDelta("assistant", None if self._readers else "")
                    await self._send(ChatChunkChoice(index, first))
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
        parts = self._parts(index, delta)
        if logprobs and not parts:
            parts = [ChatDelta(content="")]
        for part in parts:
            await self._send(ChatChunkChoice(index, part, logprobs))
            logprobs = None  # they go with the first
        if reason is not None:
            reason = self._reason(index, reason)
            await self._send(ChatChunkChoice(index, ChatDelta(), None, reason))

    def _parts(self, index: int, delta: RequestDelta) -> list[ChatDelta]:
        if not self._readers:
            return [ChatDelta(content=delta.text)] if delta.text else []
        reader = self._readers[index]
        found = list(reader.push(delta.text))
        if delta.finish_reason is not None:
            found += reader.finish()
        return [
            ChatDelta(content=part) if isinstance(part, str) else ChatDelta(tool_calls=[part])
            for part in found
        ]

    async def _send(self, choice: ChatChunkChoice) -> None:
        await self._exchange.event(_encode(self._chunk([choice])))

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(self._id, self._created, self._model, choices)
        if self._request.stream_options and self._request.stream_options.include_usage:
            chunk.usage = None
        return chunk
