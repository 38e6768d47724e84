// The table itself, filled the same way for every instruction set. Included by isa_*.cpp.

#define HEADRACE_WIDTHS(gemm, format)                                                            \
  {gemm<format, 1>, gemm<format, 2>, gemm<format, 4>, gemm<format, (kWidestPanel >= 8 ? 8 : 4)>, \
   gemm<format, (kWidestPanel >= 16 ? 16 : 4)>}

#define HEADRACE_KERNELS(isa_name)                                                           \
  {                                                                                          \
      .name = isa_name,                                                                      \
      .widest_panel = kWidestPanel,                                                          \
      .gemm = {HEADRACE_WIDTHS(float_gemm, Float32), HEADRACE_WIDTHS(float_gemm, Float16),   \
               HEADRACE_WIDTHS(quantized_gemm, Q4_0), HEADRACE_WIDTHS(quantized_gemm, Q4_1), \
               HEADRACE_WIDTHS(quantized_gemm, Q5_0), HEADRACE_WIDTHS(quantized_gemm, Q5_1), \
               HEADRACE_WIDTHS(quantized_gemm, Q8_0), HEADRACE_WIDTHS(quantized_gemm, Q4_K), \
               HEADRACE_WIDTHS(quantized_gemm, Q5_K),                                        \
               HEADRACE_WIDTHS(quantized_gemm, SixBitFormat),                                \
               HEADRACE_WIDTHS(float_gemm, BFloat16)},                                       \
      .wide_gemm = {wide_gemm<1>, wide_gemm<2>, wide_gemm<4>,                                \
                    wide_gemm<(kWidestPanel >= 8 ? 8 : 4)>,                                  \
                    wide_gemm<(kWidestPanel >= 16 ? 16 : 4)>},                               \
      .widen = widen,                                                                        \
      .wide_finish = wide_finish,                                                            \
      .rms_norm = rms_norm,                                                                  \
      .layer_norm = layer_norm,                                                              \
      .quantize = quantize,                                                                  \
      .spread = spread,                                                                      \
      .rotate = rotate,                                                                      \
      .to_half = to_half,                                                                    \
      .from_half = from_half,                                                                \
      .add = add_rows,                                                                       \
      .silu_multiply = silu_multiply,                                                        \
      .gelu = gelu,                                                                          \
      .attend = attend,                                                                      \
      .merge = merge,                                                                        \
      .finish = finish,                                                                      \
      .softmax_weights = softmax_weights,                                                    \
      .argmax = argmax,                                                                      \
      .scan = scan,                                                                          \
  }
