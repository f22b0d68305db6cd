"""``/v1/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import aclosing

import msgspec

from ppinfer.request import PromptTokenLogprobs, TokenLogprobs
from ppinfer.server import params as fields
from ppinfer.server.errors import invalid
from ppinfer.server.exchange import Exchange
from ppinfer.server.formats import FIELD, blaming
from ppinfer.server.logprobs import CompletionLogprobsMaker
from ppinfer.server.protocol import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from ppinfer.server.service import Service
from ppinfer.server.stream import Answers, Whole, finish_reason, usage

_encode = msgspec.json.Encoder().encode


async def completions(service: Service, exchange: Exchange, salt: str) -> None:
    request = await service.read(exchange, CompletionRequest)
    engine = service.engine
    given = _prompts(request.prompt)
    count = fields.choices(request)
    fields.with_usage(request)
    params = fields.completion_params(request, engine.info.vocab_size)
    with service.places.take(len(given) * count, "prompt" if len(given) > 1 else "n"):
        least = 0 if request.max_tokens == 0 else 1
        prompts = [await _encoded(service, prompt, least) for prompt in given]
        echoes = await _echoes(service, request, given)
        reply = _Reply(service, exchange, request, prompts, echoes, count)
        if request.max_tokens == 0 and request.logprobs is None:
            await reply.echo_alone()
            return
        async with service.answers(prompts, request, params, salt) as answers:
            with blaming(FIELD):
                await (reply.stream(answers) if request.stream else reply.whole(answers))


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """One prompt or several, each text or token ids, but all of one kind."""
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if not prompt:
        raise invalid("prompt", "prompt is empty; give text, token ids, or a list of either.")
    if len(kinds) > 1:
        raise invalid("prompt", "prompt must hold items of one kind: texts, ids, or lists of ids.")
    if kinds == {int}:
        return [list(prompt)]  # type: ignore[arg-type]
    return list(prompt)  # type: ignore[arg-type]


async def _encoded(service: Service, prompt: str | list[int], new_tokens: int) -> list[int]:
    if isinstance(prompt, str):
        prompt = await service.texts.encode(service.engine.tokenizer, prompt, True, "prompt")
    service.check_prompt(prompt, "prompt", new_tokens)
    return prompt


async def _echoes(
    service: Service, request: CompletionRequest, given: list[str | list[int]]
) -> list[str]:
    """What each answer begins with."""
    if not request.echo:
        return [""] * len(given)
    tokenizer = service.engine.tokenizer
    return [
        prompt
        if isinstance(prompt, str)
        else await service.texts.decode(tokenizer, prompt, "prompt")
        for prompt in given
    ]


class _Reply:
    def __init__(
        self,
        service: Service,
        exchange: Exchange,
        request: CompletionRequest,
        prompts: list[list[int]],
        echoes: list[str],
        count: int,
    ) -> None:
        self._service, self._exchange, self._request = service, exchange, request
        self._prompts, self._count = prompts, count
        self._echoes = [echo for echo in echoes for _ in range(count)]
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = request.model or service.model_name
        self._logprobs = [
            CompletionLogprobsMaker(service.token_texts, service.hidden_ids, echo)
            for echo in self._echoes
        ]

    async def echo_alone(self) -> None:
        """Nothing was to be computed."""
        choices = [
            CompletionChoice(index, echo, None, "length") for index, echo in enumerate(self._echoes)
        ]
        answer = self._answer(choices)
        answer.usage = usage(self._prompts, 0)
        if not self._request.stream:
            await self._exchange.json(answer)
            return
        await self._exchange.start_events()
        for choice in choices:
            await self._exchange.event(_encode(self._chunk(choice)))
        await self._end(0)

    async def whole(self, answers: Answers) -> None:
        wholes = [Whole([echo]) for echo in self._echoes]
        async with aclosing(answers.deltas()) as deltas:
            async for index, delta in deltas:
                wholes[index].add(delta)
        choices = [
            CompletionChoice(
                index,
                whole.text,
                self._made(index, whole.logprobs, whole.prompt_logprobs),
                whole.finish_reason,
            )
            for index, whole in enumerate(wholes)
        ]
        answer = self._answer(choices)
        answer.usage = usage(self._prompts, sum(whole.num_tokens for whole in wholes))
        await self._exchange.json(answer)

    async def stream(self, answers: Answers) -> None:
        """The status is sent with the first token: until then, an error still has its own."""
        echoes = dict(enumerate(self._echoes))
        new_tokens = 0
        async with aclosing(answers.deltas()) as deltas:
            async for index, delta in deltas:
                if not self._exchange.started:
                    await self._exchange.start_events()
                new_tokens += len(delta.token_ids)
                text = echoes.pop(index, "") + delta.text
                reason = finish_reason(delta.finish_reason)
                logprobs = self._made(index, delta.logprobs or (), delta.prompt_logprobs or ())
                if text or reason or (logprobs and logprobs.tokens):
                    choice = CompletionChoice(index, text, logprobs, reason)
                    await self._exchange.event(_encode(self._chunk(choice)))
        await self._end(new_tokens)

    async def _end(self, new_tokens: int) -> None:
        if fields.with_usage(self._request):
            answer = self._answer([])
            answer.usage = usage(self._prompts, new_tokens)
            await self._exchange.event(_encode(answer))
        await self._exchange.end_events()

    def _made(
        self,
        index: int,
        entries: Sequence[TokenLogprobs],
        prompt: Sequence[PromptTokenLogprobs | None],
    ) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        return self._logprobs[index].make(entries, self._prompts[index // self._count], prompt)

    def _chunk(self, choice: CompletionChoice) -> Completion:
        chunk = self._answer([choice])
        if fields.with_usage(self._request):
            chunk.usage = None
        return chunk

    def _answer(self, choices: list[CompletionChoice]) -> Completion:
        return Completion(self._id, self._created, self._model, choices)
