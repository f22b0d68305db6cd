"""Every transport carries the same tensors, in order, posted late or early."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from ppinfer.comm.links import TRANSPORTS, Links, Rings, open_links
from ppinfer.comm.memory import MemoryLink
from ppinfer.comm.ring_end import ring_of
from ppinfer.comm.stage_manager import PipelineStageManager
from ppinfer.comm.transport import Receive
from ppinfer.errors import StageError

_OPENED: list[Links] = []


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    while _OPENED:
        _OPENED.pop().close()


SHAPES = [(1, 8), (5, 8), (2, 8), (64, 8), (1, 8)]


def in_threads(*jobs: Callable[[], object]) -> list[object]:
    """Run jobs side by side, as stages would; the first exception is raised."""
    results: list[object] = [None] * len(jobs)

    def run(index: int) -> None:
        try:
            results[index] = jobs[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def open_pipeline(
    comm: str, store: Path, num_stages: int, dtype: torch.dtype = torch.float32, **options: object
) -> list[Links]:
    ends = ring_of(num_stages)

    def rings_of(stage: int) -> Rings | None:
        if comm == "shm" and ends:
            size = 64 * 8 * dtype.itemsize
            return Rings.sized(*ends[stage], hidden_bytes=size, max_sequences=9, depth=3)
        for end in ends[stage] if ends else ():
            end.close()
        return None

    def opener(stage: int) -> Callable[[], Links]:
        manager = PipelineStageManager(stage, num_stages, stage, stage + 1)
        settings: dict[str, object] = {"generation": 0, "timeout": 20.0} | options
        return lambda: open_links(
            manager,
            comm=comm,
            store=f"file:{store}",
            address="127.0.0.1",
            dtype=dtype,
            device=torch.device("cpu"),
            send_depth=2,
            rings=rings_of(stage),
            **settings,  # type: ignore[arg-type]
        )

    stages: list[Links] = in_threads(*(opener(stage) for stage in range(num_stages)))  # type: ignore[assignment]
    _OPENED.extend(stages)
    return stages


@pytest.fixture(params=["memory", *TRANSPORTS])
def link(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Links]:
    """Both ends of one link: ``outbox`` of stage 0 and ``inbox`` of stage 1."""
    if request.param == "memory":
        memory = MemoryLink(torch.float32)
        yield Links(inbox=memory, outbox=memory)
        return
    first, second = open_pipeline(request.param, tmp_path / "store", 2)
    yield Links(inbox=second.inbox, outbox=first.outbox)
    first.close()
    second.close()


def test_tensors_arrive_in_order_when_receives_are_posted_late(link: Links) -> None:
    assert link.inbox is not None
    assert link.outbox is not None
    sent = [torch.randn(shape) for shape in SHAPES]

    def send() -> None:
        assert link.outbox is not None
        for tensor in sent:
            link.outbox.send(tensor)
        link.outbox.flush()

    def receive() -> list[torch.Tensor]:
        assert link.inbox is not None
        return [link.inbox.post(shape).wait() for shape in SHAPES]

    _, received = in_threads(send, receive)
    for ours, theirs in zip(sent, received, strict=True):  # type: ignore[call-overload]
        assert torch.equal(ours, theirs)


def test_receives_may_be_posted_before_anything_is_sent(link: Links) -> None:
    assert link.inbox is not None
    assert link.outbox is not None
    posted = [link.inbox.post(shape) for shape in SHAPES[:3]]
    sent = [torch.randn(shape) for shape in SHAPES[:3]]
    for tensor in sent:
        link.outbox.send(tensor)
    for ours, receive in zip(sent, posted, strict=True):
        assert torch.equal(ours, receive.wait())


@pytest.mark.parametrize("comm", TRANSPORTS)
@pytest.mark.parametrize("num_stages", [1, 3, 4])
def test_a_chain_of_stages_joins_without_a_ring(comm: str, num_stages: int, tmp_path: Path) -> None:
    stages = open_pipeline(comm, tmp_path / "store", num_stages, torch.bfloat16)
    assert stages[0].inbox is None
    assert stages[-1].outbox is None
    value = torch.arange(12, dtype=torch.bfloat16).view(3, 4)

    def stage_job(stage: Links) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            hidden = value if stage.inbox is None else stage.inbox.post((3, 4)).wait()
            if stage.outbox is not None:
                stage.outbox.send(hidden + 1)
                stage.outbox.flush()
            return hidden

        return run

    results = in_threads(*(stage_job(stage) for stage in stages))
    for index, hidden in enumerate(results):
        assert torch.equal(hidden, value + index)  # type: ignore[arg-type]
    for stage in stages:
        stage.close()


@pytest.mark.parametrize("comm", TRANSPORTS)
@pytest.mark.parametrize("num_stages", [2, 3])
def test_drawn_ids_go_from_the_last_stage_to_the_first(
    comm: str, num_stages: int, tmp_path: Path
) -> None:
    stages = open_pipeline(comm, tmp_path / "store", num_stages)
    assert [stage.token_inbox is not None for stage in stages] == [True] + [False] * (
        num_stages - 1
    )
    assert [stage.token_outbox is not None for stage in stages] == [False] * (num_stages - 1) + [
        True
    ]
    first, last = stages[0].token_inbox, stages[-1].token_outbox
    assert first is not None
    assert last is not None
    receive = first.post((3,))
    last.send(torch.tensor([5, 49151, 2**40]))
    assert receive.wait().tolist() == [5, 49151, 2**40]
    for stage in stages:
        stage.close()


def test_a_new_generation_joins_on_the_same_store(tmp_path: Path) -> None:
    for generation in range(3):
        first, second = open_pipeline("p2p", tmp_path / "store", 2, generation=generation)
        assert first.outbox is not None
        assert second.inbox is not None
        receive = second.inbox.post((1,))
        first.outbox.send(torch.tensor([float(generation)]))
        assert receive.wait().item() == generation
        first.close()
        second.close()


@pytest.mark.parametrize("comm", ["p2p", "shm"])
def test_a_receive_names_the_stage_it_waited_for(comm: str, tmp_path: Path) -> None:
    for timeout in (0.5, 10.0):  # gloo's neighbours must meet within the same time
        with suppress(StageError):
            first, second = open_pipeline(comm, tmp_path / f"{timeout}", 2, timeout=timeout)
            break
    assert second.inbox is not None
    receive = second.inbox.post((4,))
    with pytest.raises(StageError, match="stage 0") as caught:
        receive.wait()
    assert caught.value.stage == 0
    first.close()


def test_a_neighbour_that_never_comes_is_named(tmp_path: Path) -> None:
    manager = PipelineStageManager(0, 2, 0, 1)
    with pytest.raises(StageError, match="Stage 1 could not be reached") as caught:
        open_links(
            manager,
            comm="p2p",
            store=f"file:{tmp_path / 'store'}",
            generation=0,
            address="127.0.0.1",
            dtype=torch.float32,
            device=torch.device("cpu"),
            send_depth=2,
            timeout=0.5,
        )
    assert caught.value.stage == 1


class TestSharedMemory:
    def test_a_full_ring_waits_for_its_reader(self, tmp_path: Path) -> None:
        first, second = open_pipeline("shm", tmp_path / "store", 2)
        sent = [torch.randn(64, 8) for _ in range(12)]  # the ring holds three

        def send() -> None:
            assert first.outbox is not None
            for tensor in sent:
                first.outbox.send(tensor)

        def receive() -> list[torch.Tensor]:
            assert second.inbox is not None
            received = []
            for shape in [(64, 8)] * 12:
                time.sleep(0.01)
                received.append(second.inbox.post(shape).wait())
            return received

        _, received = in_threads(send, receive)
        for ours, theirs in zip(sent, received, strict=True):  # type: ignore[call-overload]
            assert torch.equal(ours, theirs)

    def test_sizes_in_any_order_never_overlap(self, tmp_path: Path) -> None:
        first, second = open_pipeline("shm", tmp_path / "store", 2)
        assert first.outbox is not None
        assert second.inbox is not None
        generator = random.Random(0)
        waiting: list[tuple[torch.Tensor, Receive]] = []
        for _ in range(500):
            tensor = torch.randn(generator.randint(1, 64), 8)
            first.outbox.send(tensor)
            waiting.append((tensor, second.inbox.post(tuple(tensor.shape))))
            while len(waiting) >= generator.randint(1, 3):
                expected, receive = waiting.pop(0)
                assert torch.equal(receive.wait(), expected)

    def test_a_sender_that_nobody_reads_gives_up_and_names_the_stage(self, tmp_path: Path) -> None:
        first, _second = open_pipeline("shm", tmp_path / "store", 2, timeout=0.2)
        assert first.outbox is not None
        with pytest.raises(StageError, match="Stage 1 took nothing within") as caught:
            for _ in range(9):
                first.outbox.send(torch.randn(64, 8))
        assert caught.value.stage == 1

    def test_both_ends_see_the_other_close(self, tmp_path: Path) -> None:
        first, second = open_pipeline("shm", tmp_path / "store", 2)
        assert first.outbox is not None
        assert second.inbox is not None
        first.outbox.send(torch.ones(1, 8))
        first.close()
        assert second.inbox.post((1, 8)).wait().sum() == 8  # what had been sent still arrives
        with pytest.raises(StageError, match="Nothing more came from stage 0") as caught:
            second.inbox.post((1, 8)).wait()
        assert caught.value.stage == 0
        first, second = open_pipeline("shm", tmp_path / "store", 2)
        second.close()
        assert first.outbox is not None
        with pytest.raises(StageError, match="Stage 1 took nothing more"):
            first.outbox.send(torch.ones(1, 8))
