// From GGUF blocks to tiles, and single rows back to floats (token embeddings).
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace headrace {

// Bytes of one row of `num_inputs` weights in the file.
size_t file_row_bytes(const FormatTraits& traits, int num_inputs);
// Bytes of one tile of 16 rows.
size_t tile_bytes(const FormatTraits& traits, int num_inputs);

// Packs one tile: rows[r] is a row in the file's layout, or null for padding (zero weights).
void pack_tile(const FormatTraits& traits, const uint8_t* const rows[16], int num_inputs,
               uint8_t* tile);

// out[i] = weight i of row `lane` of a tile, float.
void unpack_row(const FormatTraits& traits, const uint8_t* tile, int lane, int num_inputs,
                float* out);

// out[i] = weight i of a row in the file's layout, float. For formats of floats only.
void float_row(const FormatTraits& traits, const uint8_t* row, int num_inputs, float* out);

}  // namespace headrace
