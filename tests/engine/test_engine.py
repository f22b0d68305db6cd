"""The public engine over real stage processes and a tiny model."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import make_model, random_ids, reference_logits, save_model
from support.fake_async_engine import wait_until

from ppinfer import (
    EngineClosedError,
    LlamaForCausalLMPipelinePolicy,
    PPInferEngine,
    PPInferError,
    RequestError,
    SamplingParams,
)
from ppinfer.engine.detokenizer import Detokenizer

pytestmark = pytest.mark.slow

VOCAB = 97


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model("llama", num_hidden_layers=5, max_position_embeddings=512)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = save_model(model, tmp_path_factory.mktemp("model"))
    vocabulary = {chr(33 + i): i for i in range(94)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[PPInferEngine]:
    with PPInferEngine(folder, pp_size=2, new_length=9, micro_batch_size=3) as engine:
        yield engine


def reference(model: Any, ids: list[int], count: int) -> list[int]:
    """Greedy tokens of ``transformers``."""
    inputs = torch.tensor([ids])
    output = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=count, do_sample=False,
        eos_token_id=[], pad_token_id=0,
    )  # fmt: skip
    return output[0, len(ids) :].tolist()  # type: ignore[no-any-return]


FREE = SamplingParams(max_tokens=12, ignore_eos=True)
LONG, MANY = SamplingParams(max_tokens=400, ignore_eos=True), [[1]] * 2000  # two minutes' work


def test_generate_equals_transformers_in_input_order(engine: PPInferEngine, model: Any) -> None:
    prompts = [random_ids(length, seed=length) for length in (1, 40, 3, 129, 7, 64, 2, 11)]
    results = engine.generate(prompts, FREE)
    assert [result.index for result in results] == list(range(8))
    for prompt, result in zip(prompts, results, strict=True):
        assert result.prompt_token_ids == prompt
        assert result.token_ids == reference(model, prompt, 12)
        assert result.finish_reason == "length"


def test_a_lone_prompt_has_the_turns_of_all_micro_batches(folder: Path, model: Any) -> None:
    prompt = random_ids(200, seed=3)
    settings = {"pp_size": 3, "max_prefill_tokens": 16}
    with PPInferEngine(folder, **settings) as engine, engine.trace() as tracing:
        (result,) = engine.generate([prompt], FREE)
    assert result.token_ids == reference(model, prompt, 12)
    steps = tracing.trace.steps.values()
    assert {step.slot for step in steps if step.words.startswith("prefill 16")} == {0, 1, 2}
    assert {step.slot for step in steps if step.is_decode} == {0}


@pytest.mark.parametrize("side", ["left", "right"])
def test_inference_takes_batches_padded_on_either_side(
    engine: PPInferEngine, model: Any, side: str
) -> None:
    rows = [random_ids(length, seed=length) for length in (5, 9, 2)]
    width = max(map(len, rows))
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for i, row in enumerate(rows):
        part = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, part], mask[i, part] = torch.tensor(row), 1
    batches = [{"input_ids": ids, "attention_mask": mask}, {"input_ids": [[4, 5, 6]]}]
    output = engine.inference(batches)
    assert output == [reference(model, row, 9) for row in [*rows, [4, 5, 6]]]
    assert engine.inference([]) == []


def test_stream_gives_the_pieces_of_generate(engine: PPInferEngine) -> None:
    prompts = ["abc", "hello", [3, 4, 5]]
    whole = engine.generate(prompts, FREE)
    text, ids, reasons = [""] * 3, [[], [], []], [None] * 3  # type: ignore[var-annotated]
    for delta in engine.stream(prompts, FREE):
        text[delta.index] += delta.text
        ids[delta.index] += delta.token_ids
        reasons[delta.index] = delta.finish_reason
    assert text == [result.text for result in whole]
    assert ids == [result.token_ids for result in whole]
    assert reasons == ["length"] * 3
    assert [result.prompt for result in whole] == ["abc", "hello", None]


def test_one_set_of_parameters_for_each_prompt(engine: PPInferEngine) -> None:
    params = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (1, 7, 3)]
    results = engine.generate(["a", "b", "c"], params)
    assert [len(result.token_ids) for result in results] == [1, 7, 3]


def test_stop_token_ids_end_a_sequence_and_min_tokens_holds_them_off(
    engine: PPInferEngine,
) -> None:
    free = engine.generate("abc", FREE)[0].token_ids
    stop = free[4]
    first = free.index(stop)
    params = SamplingParams(max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
    (result,) = engine.generate("abc", params)
    assert result.token_ids == free[: first + 1]
    assert result.finish_reason == "stop"
    params = SamplingParams(
        max_tokens=12, ignore_eos=True, stop_token_ids=(stop,), min_tokens=first + 1
    )
    (result,) = engine.generate("abc", params)
    assert stop not in result.token_ids[: first + 1]
    assert len(result.token_ids) > first


def test_stop_strings_cut_the_text(engine: PPInferEngine) -> None:
    free = engine.generate("abc", FREE)[0]
    stop = free.text[5:7]
    cut = free.text.index(stop)
    (result,) = engine.generate("abc", SamplingParams(max_tokens=12, ignore_eos=True, stop=stop))
    assert result.text == free.text[:cut]
    assert result.finish_reason == "stop"
    assert result.token_ids == free.token_ids[: cut + 2]


def test_the_models_own_end_of_sequence_counts_unless_ignored(
    folder: Path, tmp_path: Path, engine: PPInferEngine
) -> None:
    import json
    import shutil

    free = engine.generate("abc", FREE)[0].token_ids
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text()) | {"eos_token_id": free[3]}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "generation_config.json").unlink(missing_ok=True)
    with PPInferEngine(copy) as other:
        (result,) = other.generate("abc", SamplingParams(max_tokens=12))
        assert result.token_ids == free[: free.index(free[3]) + 1]
        assert result.finish_reason == "stop"
        assert other.generate("abc", FREE)[0].token_ids == free


def test_logprobs_come_with_every_token(engine: PPInferEngine) -> None:
    params = SamplingParams(max_tokens=5, ignore_eos=True, logprobs=3)
    (result,) = engine.generate("abc", params)
    assert result.logprobs is not None
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    for entry in result.logprobs:
        assert next(iter(entry.top)) == entry.token_id
        assert entry.top[entry.token_id] == entry.logprob
        assert len(entry.top) == 3


def test_scores_are_those_of_transformers(engine: PPInferEngine, model: Any) -> None:
    prompts = [random_ids(length, seed=length) for length in (1, 2, 40, 129, 512)]
    for prompt, score in zip(prompts, engine.score(prompts, top=2), strict=True):
        expected = torch.log_softmax(reference_logits(model, prompt).double(), dim=-1)[:-1]
        chosen = [expected[i, token].item() for i, token in enumerate(prompt[1:])]
        best = [row.tolist() for row in torch.topk(expected, 2).indices]
        assert (score.token_ids, score.prompt) == (prompt, None)
        assert (score.logprobs[0], score.is_greedy[0], score.top[0]) == (None, None, None)
        assert score.logprobs[1:] == pytest.approx(chosen, abs=1e-4)
        assert score.total == pytest.approx(sum(chosen), abs=1e-3)
        assert [list(top or ()) for top in score.top[1:]] == best
        likeliest = [pair[0] == token for pair, token in zip(best, prompt[1:], strict=True)]
        assert score.is_greedy[1:] == likeliest
    assert engine.report().prompt_tokens == sum(map(len, prompts))
    assert engine.report().new_tokens == 0


def test_prompt_logprobs_come_once_and_change_nothing_else(engine: PPInferEngine) -> None:
    prompt = random_ids(60, seed=8)
    plain = engine.generate([prompt], FREE)[0]  # and its blocks are in the cache now
    scored = SamplingParams(max_tokens=12, ignore_eos=True, prompt_logprobs=0)
    deltas = list(engine.stream([prompt], scored))
    assert [delta.prompt_logprobs is None for delta in deltas] == [False] + [True] * 11
    (result,) = engine.generate([prompt], scored)
    assert result.token_ids == plain.token_ids
    assert result.prompt_logprobs == deltas[0].prompt_logprobs
    assert plain.prompt_logprobs is None
    assert result.prompt_logprobs is not None
    assert [entry and entry.token_id for entry in result.prompt_logprobs] == [None, *prompt[1:]]
    whole = engine.score([prompt + result.token_ids])[0]
    assert all(whole.is_greedy[60:])
    assert whole.logprobs[:60] == [entry and entry.logprob for entry in result.prompt_logprobs]
    (text,) = engine.score("hello")
    assert (text.prompt, len(text.logprobs)) == ("hello", 5)


def test_seeded_draws_repeat_and_free_ones_differ(engine: PPInferEngine) -> None:
    def tokens(seed: int | None) -> list[int]:
        params = SamplingParams(max_tokens=12, temperature=1.5, seed=seed, ignore_eos=True)
        return engine.generate("abc", params)[0].token_ids

    assert tokens(5) == tokens(5) != tokens(6)
    assert len({tuple(tokens(None)) for _ in range(4)}) == 4


def test_the_context_bounds_the_output(engine: PPInferEngine) -> None:
    (result,) = engine.generate([random_ids(505)], SamplingParams(max_tokens=50, ignore_eos=True))
    assert len(result.token_ids) == 7
    assert result.finish_reason == "length"


def test_a_slow_reader_does_not_slow_the_pipeline(engine: PPInferEngine) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    with engine.stream([[1], [2]], params) as stream:
        next(stream)
        wait_until(lambda: engine.report().new_tokens == 80)
        assert sum(1 for _ in stream) == 79


def test_closing_a_stream_aborts_what_is_unfinished(engine: PPInferEngine) -> None:
    before = engine.state().finished
    stream = engine.stream(MANY, LONG)
    next(stream)
    stream.close()
    assert list(stream) == []
    after = engine.state()
    assert (after.running, after.waiting) == (0, 0)
    assert after.finished["abort"] > before["abort"]
    assert sum(after.finished.values()) == sum(before.values()) + len(MANY)
    assert len(engine.generate([[1]], FREE)[0].token_ids) == 12


def test_a_stream_may_be_closed_by_another_thread(engine: PPInferEngine) -> None:
    stream = engine.stream(MANY, LONG)
    threading.Timer(0.1, stream.close).start()
    assert sum(1 for _ in stream) < 400 * len(MANY)


def test_a_stream_keeps_its_engine(folder: Path) -> None:
    def start() -> Iterator[Any]:
        return PPInferEngine(folder).stream([[1]], SamplingParams(max_tokens=5, ignore_eos=True))

    assert len(list(start())) == 5


def test_what_goes_wrong_with_one_requests_text_is_its_own(
    engine: PPInferEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Detokenizer):
        def push(self, token_ids: Any) -> str:
            raise LookupError("no such letter")

    other = engine.stream("abc", FREE)
    monkeypatch.setattr("ppinfer.engine.engine.Detokenizer", Broken)
    with pytest.raises(PPInferError, match="LookupError: no such letter"):
        engine.generate(["abc", "def"], FREE)
    assert sum(len(delta.token_ids) for delta in other) == 12


def test_a_run_that_was_aborted_keeps_its_figures(engine: PPInferEngine) -> None:
    stream = engine.stream([random_ids(300)] * 2, SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    stream.close()
    engine.state(patience=30)  # told behind the results of the steps that were in flight
    report = engine.report()
    assert report.prompt_tokens == 600
    assert report.new_tokens >= 1


def test_calls_from_several_threads_do_not_mix(engine: PPInferEngine, model: Any) -> None:
    outputs: dict[int, list[int]] = {}

    def call(seed: int) -> None:
        outputs[seed] = engine.generate([random_ids(seed + 2, seed)], FREE)[0].token_ids

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(5):
        assert outputs[seed] == reference(model, random_ids(seed + 2, seed), 12)


def test_a_prompt_seen_before_starts_from_the_cache(engine: PPInferEngine) -> None:
    prompt = random_ids(200, seed=77)
    first = engine.generate([prompt], FREE)[0]
    assert engine.report().cached_tokens == 0
    assert engine.generate([prompt], FREE)[0].token_ids == first.token_ids
    assert engine.report().cached_tokens == 192


def test_the_report_accounts_for_the_run(engine: PPInferEngine) -> None:
    engine.generate([random_ids(10, seed=1), random_ids(20, seed=2)], FREE)
    report = engine.report()
    assert (report.prompt_tokens, report.new_tokens) == (30, 24)
    assert report.time_to_first_token is not None
    assert 0 < report.time_to_first_token < report.seconds
    assert [stage.num_layers for stage in report.stages] == [3, 2]
    for stage in report.stages:
        shares = stage.busy_share + stage.wait_plan_share
        shares += stage.wait_input_share + stage.send_share
        assert shares == pytest.approx(1.0)
    assert "tokens/s" in report.summary()


def test_no_prompts_are_no_work(engine: PPInferEngine) -> None:
    assert engine.generate([]) == []
    assert list(engine.stream([])) == []


def test_a_model_object_needs_no_files(model: Any) -> None:
    engine = PPInferEngine(
        pp_size=2, dtype="fp16", micro_batch_size=1, new_length=10,
        model=model, model_policy=LlamaForCausalLMPipelinePolicy(),
    )  # fmt: skip
    try:
        assert engine.dtype == "fp32"
        assert "fp16" in engine.notes[0]
        (row,) = engine.inference([{"input_ids": [[5, 6, 7]], "attention_mask": [[1, 1, 1]]}])
        assert row == reference(model, [5, 6, 7], 10)
        with pytest.raises(RequestError, match="no tokenizer"):
            engine.generate("abc")
    finally:
        engine.close()


def test_an_engine_ends_with_its_last_reference(folder: Path) -> None:
    from support.processes import is_running

    engine = PPInferEngine(folder)
    pids = engine.stage_pids
    assert all(is_running(pid) for pid in pids)
    del engine
    gc.collect()
    assert not any(is_running(pid) for pid in pids)


def test_a_closed_engine_says_so_and_waiting_readers_are_told(folder: Path) -> None:
    engine = PPInferEngine(folder, pp_size=2)
    stream = engine.stream(MANY, LONG)
    next(stream)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosedError):
        for _ in stream:
            pass
    with pytest.raises(EngineClosedError):
        engine.generate([[1]])
    with pytest.raises(EngineClosedError):
        engine.report()


def test_dummy_weights_need_a_config_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tokens = set()
    for size in (1, 3):
        with PPInferEngine(tmp_path, pp_size=size, load_format="dummy") as engine:
            (result,) = engine.generate([[1, 2, 3]], FREE)
            tokens.add(tuple(result.token_ids))
    assert len(tokens) == 1


def test_that_there_are_no_native_kernels_is_said_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv("PPINFER_KERNELS", raising=False)
    with PPInferEngine(folder, pp_size=2, micro_batch_size=3) as engine:
        (note,) = [note for note in engine.notes if "native kernels" in note]
        assert "cannot be used" in note
        assert len(engine.generate([[5, 6, 7]], FREE)[0].token_ids) == 12
