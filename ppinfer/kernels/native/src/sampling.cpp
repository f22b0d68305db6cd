// The entry points for choosing tokens. A file of its own, compiled beside kernels.cpp, so that a
// second core makes the first use shorter.
#include "exports.h"
#include "sample.h"

// The index of each row's greatest element, -1 where there is a NaN.
EXPORT void ppinfer_argmax(int is_bf16, const void *x, int32_t *out, long rows, long size, int threads) {
  threads = useful(threads, (double)rows * size);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (long row = 0; row < rows; row++)
    out[row] = is_bf16 ? argmax((const uint16_t *)x + row * size, size) : argmax((const float *)x + row * size, size);
}

// Draws by `count` settings, each from its row of x (rows, size).
EXPORT void ppinfer_sample(int is_bf16, const void *x, const Settings *settings, Drawn *out, long count, long size,
                           int threads) {
  threads = useful(threads, (double)count * size);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (long i = 0; i < count; i++) {
    const long begin = settings[i].row * size;
    if (is_bf16) sample((const bf16 *)x + begin, size, settings[i], out[i]);
    else sample((const float *)x + begin, size, settings[i], out[i]);
  }
}
