"""``/metrics``: the engine's state as Prometheus reads it.

The engine counts; nothing is counted here. So every scrape is a picture of one moment, and what a
program gets of ``PPInferEngine.state`` is the same. Counters of stages fall to nought only with a
new process, which Prometheus understands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from ppinfer.engine.state import EngineState, Histogram, StageState
from ppinfer.server.exchange import Exchange
from ppinfer.server.service import Service
from ppinfer.version import __version__

_HEADERS = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]

_LATENCIES = {
    "time_to_first_token": "From a request's arrival at the engine to its first token",
    "inter_token": "Between two tokens of a request",
    "end_to_end": "From a request's arrival at the engine to its last token",
    "queue": "From a request's arrival at the engine to its first step",
    "prefill": "From a request's first step to its first token",
    "decode": "From a request's first token to its last",
}

_STAGE_COUNTERS = (
    ("busy_seconds", "busy", "Time that a stage did not wait"),
    ("compute_seconds", "compute", "Time in its layers"),
    ("sample_seconds", "sample", "Time in norm, head and drawing"),
    ("prepare_seconds", "prepare", "Time with plans and block tables"),
    ("steps", "steps", "Steps done"),
    ("bytes_sent", "bytes_sent", "Hidden states sent to the next stage"),
    ("restarts", "restarts", "Times that it was started anew"),
)
_STAGE_GAUGES = (
    ("heartbeat_age_seconds", "heartbeat_age", "Since it last said anything"),
    ("weight_bytes", "weight_bytes", "Its weights as they are stored"),
    ("kv_bytes", "kv_cache_bytes", "Its KV cache"),
    ("resident_bytes", "rss_bytes", "Memory of its process"),
)
"""Name, attribute of ``StageState``, and what it is."""


async def metrics(service: Service, exchange: Exchange, salt: str) -> None:
    state = await service.observed.refresh(service.engine_or_none)
    body = render(state, service.observed.is_fresh, service.model_name)
    await exchange.answer(body, _HEADERS)


def render(state: EngineState, is_up: bool, model_name: str) -> bytes:
    """``is_up`` says whether ``state`` is of now."""
    return generate_latest(_Snapshot(state, is_up, model_name))


class _Snapshot(Collector):
    def __init__(self, state: EngineState, is_up: bool, model_name: str) -> None:
        self._state, self._is_up, self._model_name = state, is_up, model_name

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily(
            "ppinfer_build_info", "What runs; always 1", labels=["version", "model"]
        )
        build.add_metric([__version__, self._model_name], 1)
        yield build
        yield _gauge("engine_up", "Whether the engine answers", self._is_up)
        yield from _engine(self._state)
        for name, words in _LATENCIES.items():
            found: Histogram = getattr(self._state.latency, name)
            yield _histogram(f"ppinfer_{name}_seconds", words, found)
        yield from _stages(self._state.stages)


def _engine(state: EngineState) -> Iterator[Metric]:
    yield _gauge("requests_running", "Sequences in the pipeline", state.running)
    yield _gauge("requests_waiting", "Sequences that wait to be taken in", state.waiting)
    yield _gauge("kv_blocks", "KV cache blocks there are", state.kv_blocks)
    yield _gauge("kv_blocks_used", "KV cache blocks in use", state.kv_blocks_used)
    usage = state.kv_blocks_used / max(1, state.kv_blocks)
    yield _gauge("kv_usage_ratio", "Share of KV cache blocks in use, 0 to 1", usage)
    yield _counter("prompt_tokens", "Prompt tokens of requests that began", state.prompt_tokens)
    yield _counter("generated_tokens", "Tokens handed out", state.new_tokens)
    yield _counter(
        "prefix_cache_queried_tokens",
        "Prompt tokens looked up in the prefix cache",
        state.queried_tokens,
    )
    yield _counter(
        "prefix_cache_hit_tokens", "Prompt tokens found in the prefix cache", state.cached_tokens
    )
    yield _counter(
        "preemptions",
        "Times that a running sequence had to give its KV blocks back",
        state.preemptions,
    )
    finished = CounterMetricFamily(
        "ppinfer_requests_finished", "Sequences that ended, by how", labels=["reason"]
    )
    for reason, count in state.finished.items():
        finished.add_metric([reason], count)
    yield finished
    driver = CounterMetricFamily(
        "ppinfer_driver_seconds", "The driver's time by activity", labels=["activity"]
    )
    for activity, seconds in state.driver_seconds.items():
        driver.add_metric([activity], seconds)
    yield driver


def _stages(stages: list[StageState]) -> Iterator[Metric]:
    for kind, table in ((CounterMetricFamily, _STAGE_COUNTERS), (GaugeMetricFamily, _STAGE_GAUGES)):
        for name, attribute, words in table:
            family = kind(f"ppinfer_stage_{name}", words, labels=["stage"])
            for stage in stages:
                family.add_metric([str(stage.stage)], getattr(stage, attribute))
            yield family
    bubbles = CounterMetricFamily(
        "ppinfer_stage_bubble_seconds",
        "Time that a stage waited, by what for; plan includes the time without requests",
        labels=["stage", "cause"],
    )
    for stage in stages:
        for cause, seconds in stage.waits.items():
            bubbles.add_metric([str(stage.stage), cause], seconds)
    yield bubbles


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ppinfer_{name}", words, value=value)


def _counter(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"ppinfer_{name}", words, value=value)


def _histogram(name: str, words: str, found: Histogram) -> Metric:
    edges = [*(repr(bound) for bound in found.bounds), "+Inf"]
    buckets = list(zip(edges, accumulate(found.counts), strict=True))
    return HistogramMetricFamily(name, words, buckets=buckets, sum_value=found.sum)
