"""Answers of a running server for ``ppinfer chat --url``. Needs aiohttp."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from ppinfer.client.chunks import AnswerError, ChunkReader
from ppinfer.client.http import Client
from ppinfer.errors import ServerError

if TYPE_CHECKING:
    from ppinfer.cli.chat import Answers
    from ppinfer.request import ChatMessage

_PATH = "/v1/chat/completions"
_NAMES_SHOWN = 5


@contextmanager
def server_answers(
    url: str, model: str | None, api_key: str | None, fields: Mapping[str, Any]
) -> Iterator[Answers]:
    """Answers of a model that a server has, the only one if none is named.

    Args:
        url: the server's root, without ``/v1``.
        fields: what every request says beside its messages.

    Raises:
        ServerError: nobody answers there, or not to us, or there is a choice of models.
    """
    with asyncio.Runner() as runner:
        client = runner.run(_open(url, api_key))
        try:
            name = runner.run(_choose(client, url, model))

            def answer(messages: list[ChatMessage], take: Callable[[str], None]) -> str | None:
                return runner.run(
                    _answer(client, url, name, {"messages": messages, **fields}, take)
                )

            yield answer
        finally:
            runner.run(client.close())


async def _open(url: str, api_key: str | None) -> Client:
    return Client(url, api_key, timeout=None)


async def _choose(client: Client, url: str, model: str | None) -> str:
    served = await client.models()
    if model is not None:
        return model
    if not served:
        raise ServerError(f"{url}/v1/models names no model: name it with --model.")
    if len(served) > 1:
        names = ", ".join([*served[:_NAMES_SHOWN], *["…"] * (len(served) > _NAMES_SHOWN)])
        raise ServerError(f"{url} has {len(served)} models ({names}): choose with --model.")
    return served[0]


async def _answer(
    client: Client, url: str, model: str, fields: Mapping[str, Any], take: Callable[[str], None]
) -> str | None:
    """Hands on the text as it comes; why it ended, if the server says.

    Raises:
        ServerError: the server refuses, or the answer breaks off.
    """
    reader = ChunkReader()
    reason: str | None = None

    def receive(received: bytes) -> None:
        nonlocal reason
        for chunk in reader.feed(received):
            for choice in chunk.choices or ():
                if choice.delta is not None and choice.delta.content:
                    take(choice.delta.content)
                reason = choice.finish_reason or reason

    try:
        body = msgspec.json.encode({"model": model, "stream": True, **fields})
        await client.post_stream(_PATH, body, receive)
        reader.close()
    except AnswerError as problem:
        asked = f" (model {model!r})" if problem.status == "HTTP 404" else ""
        raise ServerError(f"{url} {_in_words(problem)}{asked}.") from problem
    return reason


def _in_words(problem: AnswerError) -> str:
    why = problem.why.rstrip(".")
    if problem.status.startswith("HTTP "):
        said = f"answers with status {problem.status.removeprefix('HTTP ')}"
        return f"{said}: {why}" if why else said
    words = {
        "no connection": "cannot be reached",
        "disconnected": "broke off",
        "timeout": "took too long",
        "error in stream": "failed in the middle of its answer",
        "no stream": "sends no stream",
        "malformed": "sends what is no stream of a chat",
    }
    return f"{words[problem.status]}: {why}"
