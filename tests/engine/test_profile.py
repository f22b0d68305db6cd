"""Which measurements a start-up asks for, and what is kept of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.checkpoints import make_model, random_ids, save_model

from ppinfer import PPInferEngine, SamplingParams
from ppinfer.config import EngineConfig
from ppinfer.engine import profile
from ppinfer.engine.setup import cut_and_tune
from ppinfer.messages import (
    DeviceInfo,
    Message,
    ProfileRequest,
    ProfileResult,
    StageReady,
    StepCosts,
)
from ppinfer.models.config import ModelConfig
from ppinfer.models.policy import LlamaForCausalLMPipelinePolicy
from ppinfer.schedule.pace import Measured

CPU = DeviceInfo("cpu", "a processor", 10**12, ("fp32", "bf16"))
SIZE = {
    "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12,
    "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 256,
}  # fmt: skip
MODEL = LlamaForCausalLMPipelinePolicy().model_config({"vocab_size": 10_000, **SIZE})


def costs(threads: int, layer: float, *, rows: tuple[int, ...] = (1, 16)) -> StepCosts:
    table = tuple((n, layer) for n in rows)
    return StepCosts(
        threads=threads, decode=table, prefill=((128, 0.1),),
        head=tuple((n, 3 * layer) for n in rows),
        embed=((1, 0.0),), prepare=((1, 0.0),),
    )  # fmt: skip


class Stages:
    """Stands in for a supervisor: answers each request with ``cost`` of (stage, threads)."""

    def __init__(self, cost: Any) -> None:
        self.asked: list[tuple[int, int]] = []
        self.pids: list[int | None] = []
        self._cost = cost

    def send(self, stage: int, message: Message) -> None:
        assert isinstance(message, ProfileRequest)
        assert msgspec.msgpack.decode(message.model, type=ModelConfig) == MODEL
        self.asked.append((stage, message.threads))

    def gather(
        self, kind: object, timeout: float, phase: str, on_message: object, stages: list[int]
    ) -> list[ProfileResult]:
        threads = dict(self.asked)
        return [ProfileResult(stage, self._cost(stage, threads[stage])) for stage in stages]


def ready(count: int, *, cores: int = 4, threads: int = 2, local: int = 2) -> list[StageReady]:
    return [
        StageReady(i, 1, "0", (CPU,), 0.0, cores, threads, local, "torch") for i in range(count)
    ]


def ask(
    stages: Stages,
    known: list[StageReady],
    devices: list[DeviceInfo] | None = None,
    model: ModelConfig = MODEL,
    dtype: str = "bf16",
    **settings: Any,
) -> Measured | None:
    config = EngineConfig(pp_size=len(known), **settings)
    given = devices or [CPU] * len(known)
    return profile.measure(stages, known, given, model, dtype, config)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ppinfer" / "profiles"


class Machine:
    """Says how much of the cores other programs take during each measurement in turn."""

    def __init__(self) -> None:
        self.others = [0.0]

    def now(self, pids: list[int]) -> Machine:
        assert os.getpid() in pids
        return self

    def shares_since(self, before: Machine) -> tuple[float, float]:
        return self.others.pop(0) if len(self.others) > 1 else self.others[0], 0.0


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A quiet one, unless the test says otherwise."""
    machine = Machine()
    monkeypatch.setattr(profile, "Reading", machine)
    monkeypatch.setattr(profile, "REPEAT_ABOVE", 0.05)
    return machine


def even(stage: int, threads: int) -> StepCosts:
    return costs(threads, 1e-3 / threads)


# ---------------------------------------------------------------- who measures what


def test_stages_of_one_host_measure_together_and_then_one_alone_on_all_cores() -> None:
    stages = Stages(lambda stage, threads: costs(threads, (1 + 2 * stage) / threads))
    measured = ask(stages, ready(2))
    assert stages.asked == [(0, 2), (1, 2), (0, 4)]
    assert measured is not None
    assert measured.cores == 4
    assert measured.side_by_side == (costs(2, 0.5),) * 2  # the least of .5 and 1.5
    assert measured.in_turn == (costs(4, 0.25),) * 2


def test_no_more_stages_measure_at_once_than_there_are_cores_for() -> None:
    stages = Stages(even)
    assert ask(stages, ready(4, cores=2, threads=1, local=4)) is not None
    assert stages.asked == [(0, 1), (1, 1), (0, 2)]


def test_what_other_programs_disturbed_is_measured_again_and_not_kept(
    machine: Machine, cache: Path
) -> None:
    stages = Stages(even)
    machine.others = [0.5, 0.2]
    assert ask(stages, ready(1, threads=4)) is not None
    assert stages.asked == [(0, 4)] * 2
    assert not list(cache.glob("*.json"))
    machine.others = [0.5, 0.01]
    assert ask(stages, ready(1, threads=4)) is not None
    assert stages.asked == [(0, 4)] * 4
    assert len(list(cache.glob("*.json"))) == 1


def test_where_stages_are_elsewhere_nobody_can_tell(machine: Machine, cache: Path) -> None:
    stages = Stages(even)
    stages.pids, machine.others = [None], [0.5]
    assert ask(stages, ready(1, threads=4)) is not None
    assert stages.asked == [(0, 4)]
    assert len(list(cache.glob("*.json"))) == 1


def test_a_given_number_of_threads_is_measured_alone() -> None:
    stages = Stages(even)
    measured = ask(stages, ready(2), threads=2)
    assert stages.asked == [(0, 2), (1, 2)]
    assert measured is not None
    assert measured.in_turn == ()


def test_stages_with_hosts_or_devices_of_their_own_each_measure_theirs() -> None:
    stages = Stages(lambda stage, threads: costs(threads, 1.0 + stage))
    measured = ask(stages, ready(2, threads=4, local=1))
    assert stages.asked == [(0, 4), (1, 4)]
    assert measured == Measured((costs(4, 1.0), costs(4, 2.0)))
    gpus = [DeviceInfo(f"cuda:{i}", "a GPU", 10**12, ("bf16",)) for i in range(2)]
    measured = ask(stages, ready(2), gpus)
    assert measured == Measured((costs(2, 1.0), costs(2, 2.0)))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_micro_batches": 2, "max_prefill_tokens": 64, "partition": (6, 6)},
        {"num_micro_batches": 2, "max_prefill_tokens": 64, "partition": "even"},
    ],
)
def test_nothing_is_measured_where_nothing_is_left_to_choose(settings: dict[str, Any]) -> None:
    stages = Stages(even)
    assert ask(stages, ready(2), **settings) is None
    assert ask(stages, ready(2), **(settings | {"partition": "auto"})) is not None


def test_a_small_model_is_not_measured() -> None:
    tiny = msgspec.structs.replace(MODEL, num_layers=2, vocab_size=100)
    stages = Stages(even)
    assert ask(stages, ready(2), model=tiny) is None
    assert stages.asked == []


def test_a_stage_without_memory_to_measure_with_ends_it(cache: Path) -> None:
    assert ask(Stages(lambda stage, threads: None if stage else even(0, 1)), ready(2)) is None
    assert (
        ask(Stages(lambda stage, threads: None if threads == 4 else even(0, 2)), ready(2)) is None
    )
    assert not cache.exists()


# ---------------------------------------------------------------- what follows


def test_a_measured_head_takes_layers_off_the_last_stage() -> None:
    config = EngineConfig(pp_size=2)
    measured = ask(Stages(even), ready(2))
    ranges, tuning = cut_and_tune(measured, MODEL, "bf16", ready(2), [CPU] * 2, config)
    assert [last - first for first, last in ranges] == [8, 4]  # the head is 3 layers' work
    assert tuning.choices


def test_without_measurements_one_micro_batch_may_still_use_all_cores() -> None:
    config = EngineConfig(pp_size=2, num_micro_batches=2, max_prefill_tokens=64)
    _, tuning = cut_and_tune(None, MODEL, "bf16", ready(2), [CPU] * 2, config)
    assert [tuning.threads_for(m) for m in (1, 2)] == [4, 2]
    assert tuning.choices == ()
    tiny = msgspec.structs.replace(MODEL, num_layers=2, vocab_size=100)
    _, tuning = cut_and_tune(None, tiny, "bf16", ready(2), [CPU] * 2, config)
    assert tuning.threads_for(1) == 0


# ---------------------------------------------------------------- the cache


def test_a_measurement_is_kept_and_found_again(cache: Path) -> None:
    first = ask(Stages(even), ready(2))
    again = Stages(even)
    assert ask(again, ready(2)) == first
    assert again.asked == []
    (file,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600


def test_more_stages_on_the_same_cores_measure_nothing_anew() -> None:
    """Two measured together, which is all there are cores for, and one stands for the others."""
    two = ask(Stages(even), ready(2, cores=2, threads=1), max_num_seqs=32)
    stages = Stages(even)
    four = ask(stages, ready(4, cores=2, threads=1, local=4), max_num_seqs=32)
    assert stages.asked == []
    assert two is not None
    assert four == Measured(two.side_by_side * 2, two.in_turn * 2, two.cores)
    assert ask(stages, ready(1, cores=2, threads=2, local=1)) is not None
    assert stages.asked == [(0, 2)]


def test_numbers_of_sequences_that_are_measured_alike_are_measured_once() -> None:
    ask(Stages(even), ready(2), max_num_seqs=32)
    for sequences, is_measured in ((17, False), (16, True), (33, True), (64, False)):
        stages = Stages(even)
        ask(stages, ready(2), max_num_seqs=sequences)
        assert bool(stages.asked) == is_measured, sequences


def test_what_a_step_costs_depends_on_is_part_of_the_key() -> None:
    ask(Stages(even), ready(2))
    wider = msgspec.structs.replace(MODEL, intermediate_size=2048)
    other_torch = [msgspec.structs.replace(stage, software="torch 9") for stage in ready(2)]
    other_cpu = [msgspec.structs.replace(CPU, description="another")] * 2
    for known, options in (
        (ready(2), {"dtype": "fp32"}),
        (ready(2, cores=8), {}),
        (ready(2), {"devices": other_cpu}),
        (other_torch, {}),
        (ready(2), {"micro_batch_size": 64}),
        (ready(2), {"block_size": 32}),
    ):
        stages = Stages(even)
        ask(stages, known, **options)  # type: ignore[arg-type]
        assert stages.asked, options
    assert profile._shape(wider) != profile._shape(MODEL)
    # … and what it does not depend on is not: free memory, or how a sequence ends.
    stages = Stages(even)
    ask(stages, ready(2), [msgspec.structs.replace(CPU, free_bytes=7)] * 2)
    assert stages.asked == []
    assert profile._shape(msgspec.structs.replace(MODEL, eos_token_ids=(5,))) == profile._shape(
        MODEL
    )


DAMAGE = [
    b"", b"{}", b"\xff\xfe", b'{"about": 1}', b"[" * 100_000,
    b'{"about":"KEY","measured":{"side_by_side":[]}}',
    b'{"about":"KEY","measured":{"side_by_side":[[1,[],[],[],[],[]],[1,[],[],[],[],[]]]}}',
    b'{"about":"KEY","measured":{"side_by_side":[[1,[[1,-1.0]],[[1,1]],[[1,1]],[[1,1]],[[1,1]]]]}}',
    b'{"about":"another","measured":{"side_by_side":[[1,[[1,1]],[[1,1]],[[1,1]],[[1,1]],[[1,1]]]]}}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
def test_a_damaged_file_is_measured_anew_and_replaced(cache: Path, content: bytes) -> None:
    first = ask(Stages(even), ready(2))
    (file,) = cache.iterdir()
    key = msgspec.json.decode(file.read_bytes())["about"]
    file.write_bytes(content.replace(b'"KEY"', msgspec.json.encode(key)))
    stages = Stages(even)
    assert ask(stages, ready(2)) == first
    assert stages.asked
    again = Stages(even)
    assert ask(again, ready(2)) == first
    assert again.asked == []


def test_a_folder_that_others_may_write_to_is_not_trusted(cache: Path) -> None:
    ask(Stages(even), ready(2))
    cache.chmod(0o777)
    stages = Stages(even)
    assert ask(stages, ready(2)) is not None
    assert stages.asked


@pytest.mark.parametrize("where", ["taken", "missing"])
def test_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "taken":
        cache.parent.mkdir(parents=True)
        cache.write_text("a file where the folder should be")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/no/such/place")
    assert ask(Stages(even), ready(2)) is not None


def test_nothing_half_written_stays_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    assert ask(Stages(even), ready(2)) is not None
    assert list(cache.iterdir()) == []


# ---------------------------------------------------------------- real stages


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama", num_hidden_layers=5, max_position_embeddings=256)


@pytest.mark.slow
def test_real_stages_measure_and_compute_the_same(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    folder = save_model(model, tmp_path / "model")
    prompts = [random_ids(length, seed=length) for length in (3, 40, 150)]
    params = SamplingParams(max_tokens=6, ignore_eos=True)
    with PPInferEngine(folder, pp_size=2) as engine:
        assert engine.choices == []
        expected = [result.token_ids for result in engine.generate(prompts, params)]
    monkeypatch.setattr(profile, "SMALL_MODEL", 0)
    for _ in range(2):  # measured, and then known
        with PPInferEngine(folder, pp_size=2) as engine:
            layers, micro_batches, prefill = engine.choices
            assert layers.startswith("layers ")
            assert "micro-batch" in micro_batches
            assert prefill.startswith("prefill of ")
            assert [r.token_ids for r in engine.generate(prompts, params)] == expected
        assert len(list(cache.iterdir())) == 1
