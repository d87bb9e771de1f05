#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cstdint>
#include <exception>

namespace lrp_fast {

// body(0) ... body(n - 1) on so many threads, 0: all, in no order; one of the exceptions thrown is thrown again. For the same
// answer with any number of threads, cut the work by its own size, never by the number of threads.
template <class Body>
void parallel_for(std::int64_t n, const Body& body, int threads = 0) {
    if (n == 1) return body(std::int64_t{0});
    std::exception_ptr error;
#ifdef _OPENMP
    if (threads < 1) threads = omp_get_max_threads();
#pragma omp parallel for schedule(dynamic) num_threads(threads)
#endif
    for (std::int64_t i = 0; i < n; ++i) {
        try {
            body(i);
        } catch (...) {
#ifdef _OPENMP
#pragma omp critical
#endif
            error = std::current_exception();
        }
    }
    (void)threads;
    if (error) std::rethrow_exception(error);
}

}  // namespace lrp_fast
