"""Endpoints that generate nothing: models, tokens, and how the server is."""

from __future__ import annotations

from ppinfer.server.errors import ApiError, invalid, unavailable
from ppinfer.server.exchange import Exchange
from ppinfer.server.params import check_ids
from ppinfer.server.protocol import (
    DetokenizeRequest,
    Model,
    ModelList,
    Text,
    TokenizeRequest,
    Tokens,
)
from ppinfer.server.service import Service
from ppinfer.version import __version__


async def health(service: Service, exchange: Exchange, salt: str) -> None:
    """Live: the process need not be started anew."""
    if not service.is_alive:
        raise unavailable("The engine has ended.", "engine_closed")
    await exchange.json({"status": "ok"})


async def ready(service: Service, exchange: Exchange, salt: str) -> None:
    """A stage really answers."""
    try:
        await service.engine.check(service.settings.check_timeout)
    except ApiError:
        raise
    except Exception:
        raise unavailable("The pipeline does not answer.", "not_ready") from None
    await exchange.json({"status": "ready"})


async def version(service: Service, exchange: Exchange, salt: str) -> None:
    await exchange.json({"version": __version__})


async def models(service: Service, exchange: Exchange, salt: str) -> None:
    await exchange.json(ModelList([_model(service, name) for name in service.settings.model_names]))


async def model(service: Service, exchange: Exchange, salt: str) -> None:
    name = exchange.path.removeprefix("/v1/models/")
    service.check_model(name)
    await exchange.json(_model(service, name))


def _model(service: Service, name: str) -> Model:
    return Model(name, service.created, service.engine.info.max_model_len)


async def tokenize(service: Service, exchange: Exchange, salt: str) -> None:
    request = await service.read(exchange, TokenizeRequest)
    tokenizer, texts = service.engine.tokenizer, service.texts
    if (request.prompt is None) == (request.messages is None):
        raise invalid("prompt", "Give either prompt or messages.")
    if request.messages is not None:
        if request.add_special_tokens is not None:
            raise invalid("add_special_tokens", "add_special_tokens goes with prompt only.")
        header = request.add_generation_prompt is not False
        ids = await texts.encode_chat(tokenizer, request.messages, header)
    else:
        if request.add_generation_prompt is not None:
            raise invalid("add_generation_prompt", "add_generation_prompt goes with messages only.")
        special = request.add_special_tokens is not False
        ids = await texts.encode(tokenizer, request.prompt or "", special, "prompt")
    await exchange.json(Tokens(len(ids), service.engine.info.max_model_len, ids))


async def detokenize(service: Service, exchange: Exchange, salt: str) -> None:
    """Special tokens included, so that tokenizing the text again gives the same ids."""
    request = await service.read(exchange, DetokenizeRequest)
    engine = service.engine
    if request.tokens:
        check_ids(request.tokens, engine.info.vocab_size, "tokens")
    text = await service.texts.decode(engine.tokenizer, request.tokens, "tokens")
    await exchange.json(Text(text))
