#if defined(__GNUC__) && defined(__x86_64__)

#define LRP_FAST_TARGET "avx512f,fma"
#define LRP_FAST_LANES 16
#define LRP_FAST_ROWS 8
#define LRP_FAST_REGISTERS 2
#define LRP_FAST_VISIT visit_avx512
#define LRP_FAST_EDGES edges_avx512
#define LRP_FAST_MASSES masses_avx512
#define LRP_FAST_GATED gated_avx512

#include "attention_visit.hpp"
#include "pointwise_visit.hpp"

#endif
