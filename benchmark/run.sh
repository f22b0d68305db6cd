#!/bin/sh
# Makes the README's tables on this machine: JSON, Markdown and pictures in docs/results.
#
#   cd benchmark; sh run.sh            about 25 minutes on 2 cores; nothing else should run
#   cd benchmark; sh run.sh --quick    a few minutes: fewer shapes, one counted run of each
#
# OUT names another folder, PYTHON another interpreter.
set -eu
quick=no
case "${1:-}" in
    "") ;;
    --quick) quick=yes ;;
    *) echo "usage: sh run.sh [--quick]" >&2; exit 2 ;;
esac
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
OUT=${OUT:-docs/results}
mkdir -p "$OUT"

bench() {
    echo "== ppinfer bench $*" >&2
    "$PYTHON" -m ppinfer.cli bench "$@"
}

if [ "$quick" = yes ]; then
    bench throughput demo --shapes 8x128x32,1x128x32 --dtypes bf16 --repeats 1 \
        --output "$OUT/throughput" --plot "$OUT/throughput.png"
    bench scaling demo --shape 16x64x32 --pp-sizes 1,2 --micro-batches auto,1,2,4 --repeats 1 \
        --output "$OUT/scaling" --plot "$OUT/scaling.png"
    bench latency demo --prompts 128 --new 32 --contexts 128,512,1024 --pp-sizes 2 --repeats 1 \
        --output "$OUT/latency" --plot "$OUT/latency.png"
    bench invariance demo --rows 1,32,512 --repeats 1 --output "$OUT/invariance"
    bench comm --stages 2,3 --sizes 18432,589824 --repeats 1 --output "$OUT/comm"
    bench loading --layers 2,8 --repeats 1 --output "$OUT/load_size" --plot "$OUT/load_size.png"
    bench driver --repeats 1 --output "$OUT/driver"
    exit
fi

bench throughput demo \
    --output "$OUT/throughput" --plot "$OUT/throughput.png"
bench throughput llama-7b --output "$OUT/throughput_llama_7b"
bench driver --output "$OUT/driver"
bench scaling demo --repeats 2 --output "$OUT/scaling" --plot "$OUT/scaling.png"
bench latency demo --output "$OUT/latency" --plot "$OUT/latency.png"
bench invariance demo --output "$OUT/invariance"
bench comm --repeats 2 --output "$OUT/comm"
bench loading --output "$OUT/load_size" --plot "$OUT/load_size.png"
bench driver --output "$OUT/driver"
