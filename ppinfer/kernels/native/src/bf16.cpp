// The part of kernels.cpp that computes in bf16.
#include "typed.h"

ATTENTION_OF(Bf16, bf16);
#if defined(PPINFER_AVX512BF16)
LINEAR_OF(bf16);
LAYERS_OF(Bf16, bf16);
#endif
