// The matrix products that AMX does better, compiled for it and AVX-512. Only the table leaves this
// file, see isa_avx512.cpp.

#include <immintrin.h>

#include <utility>

#include "half.hpp"
#include "kernels.hpp"

namespace headrace {
namespace {

#include "lanes/avx512.hpp"
//
#include "kernels/gemm.hpp"
//
#include "kernels/amx.hpp"

}  // namespace

extern constinit const AmxGemms kAmxGemms = {{
    {},  // F32
    {},  // F16
    amx_gemms<Q4_0>(kWidths),
    amx_gemms<Q4_1>(kWidths),
    amx_gemms<Q5_0>(kWidths),
    amx_gemms<Q5_1>(kWidths),
    amx_gemms<Q8_0>(kWidths),
    amx_gemms<Q4_K>(kWidths),
    amx_gemms<Q5_K>(kWidths),
    amx_gemms<SixBitFormat>(kWidths),
    {},  // BF16
}};

}  // namespace headrace
