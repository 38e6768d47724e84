// One vector against many, as bytes: the first look at a memory of texts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

// out[i] = the dot product of row i with x. n is at most 2^17 and each |x| at most 127, so that no
// sum overflows. Exact on every processor.
void scan(const int8_t* rows, size_t num_rows, const int16_t* x, int n, int32_t* out);

}  // namespace headrace
