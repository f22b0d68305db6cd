"""``PPInferEngine``: a pipeline of stage processes behind a handful of methods."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ppinfer.config import EngineConfig
from ppinfer.engine.build import Pipeline, build_pipeline
from ppinfer.engine.detokenizer import Detokenizer
from ppinfer.engine.driver import Driver
from ppinfer.engine.grammars import Grammars, Latecomers
from ppinfer.engine.live import Item, LiveRequest, Sink
from ppinfer.engine.masks import Masks
from ppinfer.engine.prompts import Limits, RequestFactory, as_list, pair_params, rows_of_batches
from ppinfer.engine.report import EngineReport
from ppinfer.engine.source import ModelSource
from ppinfer.engine.state import EngineState, LiveState
from ppinfer.engine.stream import Stream
from ppinfer.engine.supervisor import Launcher, Supervisor
from ppinfer.engine.tracing import Tracing
from ppinfer.errors import PPInferError, RequestError
from ppinfer.launch import torchrun
from ppinfer.launch.local import LocalLauncher
from ppinfer.messages import StageLoaded
from ppinfer.progress import Progress, no_progress
from ppinfer.request import Prompt, Request, RequestDelta, RequestOutput, Score
from ppinfer.sampling import SamplingParams
from ppinfer.schedule.block_pool import BlockPool
from ppinfer.schedule.generate import GenerateSchedule
from ppinfer.schedule.micro_batch import MicroBatchManager
from ppinfer.trace.model import counted

if TYPE_CHECKING:
    from ppinfer.engine.tokenizer import Tokenizer

STATE_SECONDS = 0.5
"""How long stages are given to say how they are; a step may take longer."""


class PPInferEngine:
    """Runs a model as a pipeline of stages, one process and device each.

    Args:
        model: a local folder, a ``.gguf`` file, a hub id, ``"demo"``, or a Hugging Face model
            object.
        model_policy: how the architecture is cut and mapped; by default looked up by the
            checkpoint's ``architectures``.
        tokenizer: a folder with ``tokenizer.json``, where the model brings none.
        progress: called with (event, done, total) while the pipeline comes up.
        settings: see ``EngineConfig``; an unknown one is an error.

    Use it as a context manager, or call ``close()``: no process and no socket stays behind. The
    methods may be called from several threads.

    Under ``torchrun`` every rank makes the same engine: rank 0 drives and returns results, the
    others serve their stage, and their calls return nothing once rank 0 has closed.

    Raises:
        PPInferError: what stands in the way, in one sentence; see ``ppinfer.errors``.
    """

    def __init__(
        self,
        model: Any,
        *,
        model_policy: Any = None,
        tokenizer: Any = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> None:
        rank = torchrun.current_rank()
        if rank is not None:
            settings.setdefault("pp_size", rank.world_size)
        self.config = EngineConfig.from_settings(settings)
        self.stage_pids: list[int | None] = []
        """Process ids of the stages; ``None`` for one on another host."""
        self.startup_seconds: dict[str, float] = {}
        """Seconds of each part of the start-up."""
        self.loaded: list[StageLoaded] = []
        """What each stage said of its loading: bytes, peak memory, seconds."""
        self.notes: list[str] = []
        """What was decided otherwise than asked for, each a sentence."""
        self.choices: list[str] = []
        """What was left open and chosen by measurement, each a phrase with predicted figures."""
        self.pipeline: Pipeline | None = None
        """What stands, with what was measured of it; ``None`` where another rank drives."""
        self.dtype: str = self.config.dtype
        """The arithmetic in force."""
        self.tokenizer: Tokenizer | None = None
        """The model's tokenizer, where it has one."""
        self.limits = Limits()
        """What bounds a request."""
        named = isinstance(model, str | Path)
        self._model_name = Path(model).name if named else type(model).__name__
        self._follower: torchrun.Follower | None = None
        launcher: Launcher = LocalLauncher(self.config.pp_size, self.config.timeout)
        if rank is not None:
            torchrun.check_size(rank, self.config)
        source = ModelSource(model, model_policy, tokenizer, self.config.load_format)
        try:
            if rank is not None and rank.rank > 0:
                self._follower = torchrun.Follower(rank, self.config, source.model_fd)
                self._finalizer = weakref.finalize(self, self._follower.close)
                return
            if rank is not None:
                launcher = torchrun.TorchrunLauncher(rank, self.config)
            self._start(Supervisor(launcher), source, progress or no_progress)
        finally:
            source.close()

    def _start(self, supervisor: Supervisor, source: ModelSource, progress: Progress) -> None:
        try:
            self._take_up(supervisor, build_pipeline(supervisor, source, self.config, progress))
        except BaseException:
            supervisor.close()
            raise

    def _take_up(self, supervisor: Supervisor, pipeline: Pipeline) -> None:
        """Hand the pipeline that stands to a driver."""
        self.pipeline = pipeline
        self.stage_pids = supervisor.pids
        self.startup_seconds, self.loaded = pipeline.startup_seconds, pipeline.loaded
        self.notes, self.dtype = pipeline.notes, pipeline.dtype
        self.choices = list(pipeline.tuning.choices)
        self.tokenizer = pipeline.tokenizer
        self.limits = Limits(
            vocab_size=pipeline.config.vocab_size,
            max_model_len=pipeline.max_model_len,
            eos_token_ids=pipeline.eos_token_ids,
            kv_tokens=pipeline.num_blocks * self.config.block_size,
        )
        self._requests = RequestFactory(pipeline.tokenizer, self.limits)
        masks = Masks()
        self._grammars = Grammars(pipeline.tokenizer, self.limits, masks)
        manager = MicroBatchManager(
            pipeline.tuning.num_slots,
            self.config.max_sequences,
            BlockPool(pipeline.num_blocks, self.config.block_size),
            self.config.prefix_caching,
        )
        self._driver = Driver(
            supervisor,
            manager,
            GenerateSchedule(
                manager,
                pipeline.tuning.max_prefill_tokens,
                pipeline.tuning,
                pipeline.tuning.steps,
            ),
            pipeline.layouts,
            timeout=self.config.timeout,
            masks=masks,
        )
        self._latecomers = Latecomers(self._grammars, self._driver)
        # The driver knows nothing of the engine, so an engine that is dropped can be collected,
        # and takes its stages along; so does the end of the program.
        self._finalizer = weakref.finalize(self, self._driver.close)
        self._driver.start()

    # ------------------------------------------------------------ results

    def inference(self, batches: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Greedy continuation of tokenizer batches, ``new_length`` ids a row, whatever they are.

        Args:
            batches: each with ``input_ids`` and ``attention_mask`` of shape (rows, tokens), padded
                on either side.

        Returns:
            New token ids, one list a row, in the order of batches and rows.
        """
        if self._follower is not None:
            self._follower.join()
            return []
        length = self.config.new_length
        params = SamplingParams(max_tokens=length, ignore_eos=True)
        rows = rows_of_batches(batches)
        for row in rows:
            self._requests.require_room(row, length)
        return [output.token_ids for output in self.generate(rows, params)] if rows else []

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Progress | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or several, each text, token ids or chat messages.

        Args:
            params: for all prompts, or one for each; greedy by default.
            progress: called with ("generate", finished prompts, prompts).

        Returns:
            One result a prompt, in input order, also for a single prompt.

        Raises:
            RequestError: a prompt cannot be served; nothing was computed then.
            CapacityError: a prompt can never fit in the KV cache.
            StageError: a stage failed.
            EngineClosedError: the engine was closed.
        """
        if self._follower is not None:
            self._follower.join()
            return []
        requests, texts, sink = self._make_requests(prompts, params)
        report = progress or no_progress
        report("generate", 0, len(requests))
        parts: list[list[RequestDelta]] = [[] for _ in requests]
        finished = 0
        with self._submit(requests, sink) as stream:
            for delta in stream:
                parts[delta.index].append(delta)
                if delta.finish_reason is not None:
                    finished += 1
                    report("generate", finished, len(requests))
        return [
            live.output(text, deltas)
            for live, text, deltas in zip(requests, texts, parts, strict=True)
        ]

    def score(
        self,
        prompts: Prompt | Sequence[Prompt],
        top: int = 0,
        progress: Progress | None = None,
    ) -> list[Score]:
        """How likely the model finds one prompt or several; nothing is generated.

        Args:
            top: how many likeliest tokens to report in each place, 0 to 20.
            progress: called with ("generate", finished prompts, prompts).

        Returns:
            One ``Score`` a prompt, in input order, also for a single prompt.

        Raises:
            The same as ``generate``.
        """
        params = SamplingParams(max_tokens=0, prompt_logprobs=top)
        return [Score.of(output) for output in self.generate(prompts, params, progress)]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Stream:
        """Like ``generate``, but yields ``RequestDelta`` as tokens come, of all prompts mixed.

        Work begins at once and does not wait for the reader. Closing the iterator aborts the rest.
        """
        if self._follower is not None:
            self._follower.join()
            return Stream.empty()
        requests, _, sink = self._make_requests(prompts, params, streamed=True)
        return self._submit(requests, sink)

    # ------------------------------------------------------------ for hosts of this engine

    def attach(self, request: Request, sink: Sink) -> None:
        """Begin a request that is checked and whole; its deltas have its ``seq_id`` as index.

        What keeps it from running goes to the sink too. ``seq_id`` is the caller's to choose, so an
        engine has either hosts or callers of its other methods, not both.

        Raises:
            PPInferError: what ended the engine.
        """
        self._driver.check()
        decoder = self._decoder(request.params)
        self._latecomers.submit(LiveRequest(request, request.seq_id, sink, decoder))

    def detach(self, seq_ids: Sequence[int]) -> None:
        """Abort what is unfinished of these requests; nothing more comes of them."""
        self._latecomers.abort(seq_ids)

    def wait_until_closed(self) -> PPInferError:
        """Wait for the engine's end, in another thread; ``EngineClosedError`` if it was closed."""
        return self._driver.wait()

    def live(self, patience: float = STATE_SECONDS) -> LiveState:
        """The state, and every span since the last call, for who watches; call it often.

        The first call makes the stages record, ``look_away`` ends that. A trace may be made beside.
        """
        self._driver.check()
        return self._driver.live(patience)

    def look_away(self) -> None:
        self._driver.look_away()

    def report(self) -> EngineReport:
        """Figures of the run under way, or else of the last one."""
        if self._follower is not None:
            self._follower.join()
            return EngineReport()
        self._driver.check()
        return self._driver.report()

    def state(self, patience: float = STATE_SECONDS) -> EngineState:
        """What is at work now, and counters and latencies since the engine stands.

        It disturbs nothing: stages tell their clocks between two steps. One that does not
        answer within ``patience`` seconds is told as it was known last, with a growing
        ``heartbeat_age``.

        Raises:
            PPInferError: what ended the engine.
        """
        if self._follower is not None:
            self._follower.join()
            return EngineState()
        self._driver.check()
        return self._driver.state(patience)

    def trace(
        self, path: str | Path | None = None, warn: Callable[[str], None] | None = None
    ) -> Tracing:
        """A context in which every stage and the driver record what they do.

        At its end the trace is written to ``path``, if there is one, for ``ppinfer timeline``,
        Perfetto and chrome://tracing, and is its ``trace`` attribute. Trouble then is told by
        ``warn``, by default as a Python warning, so that no result is lost with it.

        Raises:
            TraceError: the path cannot be written to, or a trace is being made already.
        """
        where = None if path is None else Path(path)
        if self._follower is not None:
            return Tracing(None, None, {})
        self._driver.check()
        info = {
            "model": self._model_name,
            "dtype": self.dtype,
            "stages": counted(self.config.pp_size, "stage"),
        }
        return Tracing(self._driver, where, info, warn)

    # ------------------------------------------------------------ end

    def close(self) -> None:
        """End every stage process. Requests under way end with ``EngineClosedError``."""
        self._finalizer()
        if self._follower is None:
            self._driver.close()  # waits where another thread is closing

    def __enter__(self) -> PPInferEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------ inside

    def _make_requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        streamed: bool = False,
    ) -> tuple[list[LiveRequest], list[str | None], queue.SimpleQueue[list[Item]]]:
        """All requests of a call; every prompt is checked before the first one is submitted."""
        listed = as_list(prompts)
        sink: queue.SimpleQueue[list[Item]] = queue.SimpleQueue()
        requests, texts = [], []
        for index, (prompt, chosen) in enumerate(
            zip(listed, pair_params(params, len(listed)), strict=True)
        ):
            text, ids = self._requests.encode(prompt)
            if chosen.stop and self.tokenizer is None:
                raise RequestError("Stop strings need a tokenizer, and this engine has none.")
            request = self._requests.make(ids, chosen, streamed=streamed)
            request = self._grammars.constrain(request)
            requests.append(LiveRequest(request, index, sink, self._decoder(chosen)))
            texts.append(text)
        return requests, texts, sink

    def _decoder(self, params: SamplingParams) -> Detokenizer | None:
        return None if self.tokenizer is None else Detokenizer(self.tokenizer, params.stop)

    def _submit(self, requests: list[LiveRequest], sink: queue.SimpleQueue[list[Item]]) -> Stream:
        return Stream(self._driver, sink, requests, owner=self) if requests else Stream.empty()
