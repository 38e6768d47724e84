// Every kernel, compiled for avx2. Only the table leaves this file: inline code with external
// linkage could be merged with another file's copy and carry instructions to processors without
// them.

#include <immintrin.h>

#include <utility>

#include "half.hpp"
#include "kernels.hpp"

namespace headrace {
namespace {

#include "lanes/avx2.hpp"
//
#include "kernels/rows.hpp"
//
#include "kernels/attention.hpp"
#include "kernels/gemm.hpp"
#include "kernels/scan.hpp"
#include "kernels/wide.hpp"
//
#include "kernels/table.hpp"

}  // namespace

extern constinit const Kernels kAvx2Kernels = HEADRACE_KERNELS("avx2");

}  // namespace headrace
