// Every kernel, compiled for portable. Only the table leaves this file: inline code with external
// linkage could be merged with another file's copy and carry instructions to processors without
// them.

#include <utility>

#include "half.hpp"
#include "kernels.hpp"

namespace headrace {
namespace {

#include "lanes/portable.hpp"
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

extern constinit const Kernels kPortableKernels = HEADRACE_KERNELS("portable");

}  // namespace headrace
