#if defined(__GNUC__) && defined(__x86_64__)

#define LRP_FAST_TARGET "avx2,fma"
#define LRP_FAST_LANES 8
#define LRP_FAST_ROWS 6
#define LRP_FAST_REGISTERS 2
#define LRP_FAST_VISIT visit_avx2
#define LRP_FAST_EDGES edges_avx2
#define LRP_FAST_MASSES masses_avx2
#define LRP_FAST_GATED gated_avx2

#include "attention_visit.hpp"
#include "pointwise_visit.hpp"

#endif
