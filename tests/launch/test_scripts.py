"""Programs that use the engine, however they end: nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoints import make_model, save_model
from support.processes import Marked, run_python

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model("llama", num_hidden_layers=4, max_position_embeddings=4096)
    return save_model(model, tmp_path_factory.mktemp("model"))


# No main guard: a stage must not run the script again.
ENDLESS = """
import sys
from ppinfer import PPInferEngine, SamplingParams
print("begin", flush=True)
engine = PPInferEngine(sys.argv[1], pp_size=2)
params = SamplingParams(max_tokens=4000, ignore_eos=True)
while True:
    for count, delta in enumerate(engine.stream([[1, 2]], params)):
        if count == 3:
            print("running", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_script_that_is_ended_takes_its_stages_along(
    folder: Path, number: signal.Signals
) -> None:
    marked = Marked.new()
    script = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=marked.environment,
    )
    with script:
        assert script.stdout is not None
        assert script.stderr is not None
        assert script.stdout.readline() == "begin\n"
        assert script.stdout.readline() == "running\n"
        assert len(marked.processes()) == 3
        script.send_signal(number)
        script.wait(timeout=60)
        error = script.stderr.read()
    assert script.returncode == -number
    if number == signal.SIGINT:
        assert error.count("KeyboardInterrupt") == 1, "a stage was interrupted too"
    marked.assert_all_gone()


def test_ctrl_c_at_a_terminal_reaches_the_script_alone(folder: Path) -> None:
    """As a terminal does it: the signal goes to the whole foreground process group."""
    marked = Marked.new()
    script = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=marked.environment,
        process_group=0,
    )
    with script:
        assert script.stdout is not None
        assert script.stderr is not None
        script.stdout.readline()
        script.stdout.readline()
        os.killpg(script.pid, signal.SIGINT)
        script.wait(timeout=60)
        error = script.stderr.read()
    assert error.count("Traceback") == 1, error
    marked.assert_all_gone()


def test_an_exception_in_the_script_ends_the_stages(folder: Path) -> None:
    code = ENDLESS.replace('print("running", flush=True)', 'raise RuntimeError("mine")')
    done = run_python(code, str(folder))
    assert done.status == 1
    assert done.out == "begin\n"
    assert done.err.count("Traceback") == 1
    assert "RuntimeError: mine" in done.err


def test_a_script_may_forget_to_close(folder: Path) -> None:
    done = run_python(
        "import sys\n"
        "from ppinfer import PPInferEngine, SamplingParams\n"
        "engine = PPInferEngine(sys.argv[1], pp_size=2)\n"
        "print(len(engine.generate([[1, 2]], SamplingParams(max_tokens=3))[0].token_ids))\n",
        str(folder),
    )
    assert (done.status, done.out, done.err) == (0, "3\n", "")


def test_it_works_inside_a_running_event_loop_as_in_a_notebook(folder: Path) -> None:
    done = run_python(
        "import asyncio, sys\n"
        "from ppinfer import PPInferEngine, SamplingParams\n"
        "async def cell():\n"
        "    with PPInferEngine(sys.argv[1], pp_size=2) as engine:\n"
        "        for delta in engine.stream([[1, 2]], SamplingParams(max_tokens=3)):\n"
        "            print(len(delta.token_ids))\n"
        "asyncio.run(cell())\n",
        str(folder),
    )
    assert (done.status, done.out, done.err) == (0, "1\n1\n1\n", "")


def test_engines_in_a_row_leave_no_descriptor(folder: Path) -> None:
    done = run_python(
        "import os, sys\n"
        "from ppinfer import PPInferEngine, SamplingParams\n"
        "for _ in range(3):\n"
        "    with PPInferEngine(sys.argv[1], pp_size=2) as engine:\n"
        "        engine.generate([[1, 2]], SamplingParams(max_tokens=3))\n"
        "    print(len(os.listdir('/proc/self/fd')))\n",
        str(folder),
    )
    assert done.status == 0, done.err
    assert len(set(done.out.split())) == 1, done.out


def test_a_forked_child_leaves_the_engine_alone(folder: Path) -> None:
    done = run_python(
        "import os, sys\n"
        "from ppinfer import PPInferEngine, PPInferError, SamplingParams\n"
        "engine = PPInferEngine(sys.argv[1], pp_size=2)\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        engine.generate([[1]])\n"
        "    except PPInferError as error:\n"
        "        print(error, flush=True)\n"
        "    sys.exit()\n"
        "os.wait()\n"
        "print(len(engine.generate([[1, 2]], SamplingParams(max_tokens=3))[0].token_ids))\n",
        str(folder),
    )
    assert done.status == 0, done.err
    child, parent = done.out.splitlines()
    assert "belongs to the process that made it" in child
    assert parent == "3"


def test_nothing_in_the_current_folder_is_imported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('foreign code')")
    done = run_python(
        "import os, sys\n"
        "from ppinfer import PPInferEngine, SamplingParams\n"
        "os.chdir(sys.argv[2])\n"
        "with PPInferEngine(sys.argv[1]) as engine:\n"
        "    print(len(engine.generate([[1]], SamplingParams(max_tokens=2))[0].token_ids))\n",
        str(folder),
        str(tmp_path),
    )
    assert (done.status, done.out) == (0, "2\n"), done.err


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            "engine._driver._timeout = 60; "  # so that the other stage complains first
            "engine.generate([[1, 2]], SamplingParams(max_tokens=3))",
            "from stage 0",
        ),
        ("engine.report()", "Stage 0 did not say where its time went"),
    ],
    ids=["generate", "report"],
)
def test_a_stage_that_hangs_is_named_and_killed(folder: Path, call: str, words: str) -> None:
    done = run_python(
        "import os, signal, sys\n"
        "from ppinfer import PPInferEngine, PPInferError, SamplingParams\n"
        "from ppinfer.engine.supervisor import Supervisor\n"
        "gather = Supervisor.gather\n"
        "Supervisor.gather = lambda self, kind, _, *rest: gather(self, kind, 120, *rest)\n"
        "engine = PPInferEngine(sys.argv[1], pp_size=2, timeout=1)\n"
        "os.kill(engine.stage_pids[0], signal.SIGSTOP)\n"
        "try:\n"
        f"    {call}\n"
        "except PPInferError as error:\n"
        "    sys.exit(str(error))\n",
        str(folder),
    )
    assert done.status == 1
    assert words in done.err


# ---------------------------------------------------------------- torchrun

PROGRAM = """
import os, sys
from ppinfer import PPInferEngine, SamplingParams
from ppinfer.errors import PPInferError
size = {size}
try:
    with PPInferEngine(sys.argv[1], **size) as engine:
        for _ in range(2):
            for result in engine.generate([[1, 2, 3]], SamplingParams(max_tokens=4)):
                print("tokens", *result.token_ids)
        print("done", os.environ["RANK"])
except PPInferError as error:
    sys.exit(f"refused: {{error}}")
"""


def torchrun(
    tmp_path: Path, code: str, *arguments: str, ranks: int = 2, options: tuple[str, ...] = ()
) -> tuple[int, str, str]:
    script = tmp_path / "script.py"
    script.write_text(code)
    marked = Marked.new()
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
         "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
         *options, str(script), *arguments],
        capture_output=True, text=True, timeout=240, env=marked.environment, check=False,
    )  # fmt: skip
    marked.assert_all_gone()
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("ranks", [2, 3])
def test_under_torchrun_rank_0_drives_and_the_others_serve(
    folder: Path, tmp_path: Path, ranks: int
) -> None:
    status, out, err = torchrun(tmp_path, PROGRAM.format(size={}), str(folder), ranks=ranks)
    assert status == 0, err
    lines = out.splitlines()
    tokens = [line for line in lines if line.startswith("tokens")]
    assert len(tokens) == 2
    assert len(set(tokens)) == 1
    assert sorted(line for line in lines if line.startswith("done")) == [
        f"done {rank}" for rank in range(ranks)
    ]


def test_ranks_that_disagree_are_refused(folder: Path, tmp_path: Path) -> None:
    code = PROGRAM.format(size='{"micro_batch_size": 1 + int(os.environ["RANK"])}')
    status, _, err = torchrun(tmp_path, code, str(folder))
    assert status != 0
    assert "Rank 1 was given other settings than rank 0" in err


def test_two_engines_may_live_at_once_under_torchrun(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ppinfer import PPInferEngine, SamplingParams\n"
        "params = SamplingParams(max_tokens=4)\n"
        "engines = [PPInferEngine(sys.argv[1]) for _ in range(2)]\n"
        "for engine in engines:\n"
        "    for result in engine.generate([[1, 2, 3]], params):\n"
        "        print('tokens', *result.token_ids)\n"
        "    engine.close()\n"
    )
    status, out, err = torchrun(tmp_path, code, str(folder))
    assert status == 0, err
    assert len(out.splitlines()) == 2


def test_a_group_that_is_restarted_meets_anew(folder: Path, tmp_path: Path) -> None:
    code = PROGRAM.format(size={}) + (
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n    sys.exit(3)\n"
    )
    status, out, err = torchrun(tmp_path, code, str(folder), options=("--max-restarts", "1"))
    assert status == 0, err
    assert len([line for line in out.splitlines() if line.startswith("tokens")]) == 4


def test_a_pipeline_size_other_than_the_ranks_is_refused(folder: Path, tmp_path: Path) -> None:
    status, _, err = torchrun(tmp_path, PROGRAM.format(size={"pp_size": 3}), str(folder))
    assert status != 0
    assert "pp_size is 3, but torchrun started 2 ranks" in err


# ---------------------------------------------------------------- examples


def test_the_example_for_torchrun_answers(tmp_path: Path) -> None:
    code = (EXAMPLES / "torchrun_generate.py").read_text()
    status, out, err = torchrun(tmp_path, code)
    assert status == 0, err
    assert "Paris" in out


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_the_original_example_runs(model: str, folder: Path) -> None:
    code = (EXAMPLES / "inference.py").read_text()
    arguments = []
    if model == "tiny":
        write_tokenizer(folder)
        arguments.append(str(folder))
    done = run_python(code, *arguments)
    assert done.status == 0, done.err
    assert done.out.startswith("[")


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({chr(33 + i): i for i in range(94)}, unk_token="!"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
