"""Settings of the server; those of the engine are in ``EngineConfig``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """
    Attributes:
        model_names: what requests may call the model; the first is what answers call it.
        api_keys: where there is one, only requests that bring one are answered.
        max_queue: sequences that are at work or wait, at most; more are told to come back.
        max_body_bytes: of one request.
        shutdown_timeout: seconds that running requests are given to end once the server is to.
        check_timeout: seconds within which a stage must answer for the server to be ready.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    max_queue: int = 1024
    max_body_bytes: int = 16 * 2**20
    shutdown_timeout: float = 30.0
    check_timeout: float = 5.0
