"""What Prometheus reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.exposition import of, samples
from support.fake_async_engine import RunningServer, running_server
from support.fake_state import fake_state

from ppinfer.engine.state import EngineState, StageState
from ppinfer.errors import EngineClosedError
from ppinfer.server.metrics import render

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "ppinfer.json"


def some_state() -> EngineState:
    stages = [
        StageState(
            stage=stage, first_layer=0, last_layer=2, weight_bytes=11, kv_cache_bytes=12,
            heartbeat_age=0.5, rss_bytes=13, steps=14, bytes_sent=15, compute=1.0, sample=2.0,
            prepare=3.0, wait_plan=4.0, wait_input=5.0, send=6.0,
        )
        for stage in range(2)
    ]  # fmt: skip
    state = EngineState(
        running=3, waiting=4, kv_blocks=50, kv_blocks_used=20, prompt_tokens=60, cached_tokens=16,
        queried_tokens=55, new_tokens=70, preemptions=2, finished={"stop": 5, "abort": 1},
        driver_seconds={"plan": 1.5}, stages=stages,
    )  # fmt: skip
    for seconds in (0.004, 0.005, 0.2, 700.0):
        state.latency.time_to_first_token.observe(seconds)
    return state


def test_every_figure_has_its_place() -> None:
    found = samples(render(some_state(), True, "a model"))
    plain = {
        "engine_up": 1, "requests_running": 3, "requests_waiting": 4, "kv_blocks": 50,
        "kv_blocks_used": 20, "kv_usage_ratio": 0.4, "prompt_tokens_total": 60,
        "prefix_cache_hit_tokens_total": 16, "prefix_cache_queried_tokens_total": 55,
        "generated_tokens_total": 70, "preemptions_total": 2,
        "time_to_first_token_seconds_count": 4,
    }  # fmt: skip
    assert {name: of(found, name) for name in plain} == plain
    assert of(found, "requests_finished_total", reason="stop") == 5
    assert of(found, "driver_seconds_total", activity="plan") == 1.5
    of_stage = {
        "busy_seconds_total": 6, "compute_seconds_total": 1, "sample_seconds_total": 2,
        "prepare_seconds_total": 3, "steps_total": 14, "bytes_sent_total": 15, "restarts_total": 0,
        "heartbeat_age_seconds": 0.5, "weight_bytes": 11, "kv_bytes": 12, "resident_bytes": 13,
    }  # fmt: skip
    assert {name: of(found, f"stage_{name}", stage="1") for name in of_stage} == of_stage
    for cause, seconds in {"plan": 4, "input": 5, "send": 6}.items():
        assert of(found, "stage_bubble_seconds_total", stage="0", cause=cause) == seconds
    first = "time_to_first_token_seconds_bucket"
    assert [of(found, first, le=edge) for edge in ("0.005", "0.1", "0.25", "60.0", "+Inf")] == [
        2, 2, 3, 3, 4,
    ]  # fmt: skip
    assert of(found, "time_to_first_token_seconds_sum") == pytest.approx(700.209)
    assert {name for name, _ in found if not name.startswith("ppinfer_")} == set()


def test_over_http(server: RunningServer) -> None:
    server.engine.state_fields = {"waiting": 9}
    answer = server.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.body)
    assert of(found, "requests_waiting") == 9
    assert any(
        name == "ppinfer_build_info" and ("model", "small") in labels for name, labels in found
    )


def test_an_engine_that_ended_is_told_as_it_was(server: RunningServer) -> None:
    before = samples(server.request("GET", "/metrics").body)
    server.engine.state_error = EngineClosedError("gone")
    after = samples(server.request("GET", "/metrics").body)
    assert (of(before, "engine_up"), of(after, "engine_up")) == (1, 0)
    assert of(after, "stage_steps_total", stage="0") == of(before, "stage_steps_total", stage="0")
    age = "stage_heartbeat_age_seconds"
    assert of(after, age, stage="1") > of(before, age, stage="1")


def test_while_the_model_is_loaded() -> None:
    with running_server(load=False) as server:
        found = samples(server.request("GET", "/metrics").body)
        assert of(found, "engine_up") == 0
        assert of(found, "requests_running") == 0


def test_with_a_key() -> None:
    with running_server(api_keys=("secret",)) as server:
        assert server.request("GET", "/metrics").status == 401
        given = {"Authorization": "Bearer secret"}
        assert server.request("GET", "/metrics", headers=given).status == 200


def expressions(panels: list[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_asks_for_what_there_is() -> None:
    state = fake_state([], 0, finished={"stop": 0}, driver_seconds={"plan": 0.0})
    families = text_string_to_metric_families(render(state, True, "m").decode())
    names = {sample.name for family in families for sample in family.samples}
    dashboard = json.loads(DASHBOARD.read_text())
    found = expressions(dashboard["panels"])
    assert len(found) > 15
    asked = {name for expr in found for name in re.findall(r"\bppinfer_\w+", expr)}
    assert asked <= names, asked - names
    untold = {"ppinfer_build_info"} | {name for name in names if name.endswith(("_sum", "_count"))}
    families_asked = {re.sub("_(sum|count|bucket)$", "", name) for name in asked}
    left = {re.sub("_(sum|count|bucket)$", "", name) for name in names - untold} - families_asked
    assert not left, f"not on the dashboard: {left}"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(
        panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
        for panel in dashboard["panels"]
    )
