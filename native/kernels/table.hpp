// The table itself, filled the same way for every instruction set. Included by isa_*.cpp.

template <class Format, int... I>
constexpr ByWidth<Gemm> quantized_gemms(std::integer_sequence<int, I...>) {
  return {{quantized_gemm<Format, I + 1>...}};
}
template <class Format, int... I>
constexpr ByWidth<Gemm> float_gemms(std::integer_sequence<int, I...>) {
  return {{float_gemm<Format, I + 1>...}};
}
template <int... I>
constexpr ByWidth<WideGemm> wide_gemms(std::integer_sequence<int, I...>) {
  return {{wide_gemm<I + 1>...}};
}

#define HEADRACE_KERNELS(isa_name)                                                     \
  {                                                                                    \
      .name = isa_name,                                                                \
      .widest_panel = kWidestPanel,                                                    \
      .gemm = {float_gemms<Float32>(kWidths), float_gemms<Float16>(kWidths),           \
               quantized_gemms<Q4_0>(kWidths), quantized_gemms<Q4_1>(kWidths),         \
               quantized_gemms<Q5_0>(kWidths), quantized_gemms<Q5_1>(kWidths),         \
               quantized_gemms<Q8_0>(kWidths), quantized_gemms<Q4_K>(kWidths),         \
               quantized_gemms<Q5_K>(kWidths), quantized_gemms<SixBitFormat>(kWidths), \
               float_gemms<BFloat16>(kWidths)},                                        \
      .wide_gemm = wide_gemms(kWidths),                                                \
      .widen = widen,                                                                  \
      .wide_finish = wide_finish,                                                      \
      .rms_norm = rms_norm,                                                            \
      .layer_norm = layer_norm,                                                        \
      .quantize = quantize,                                                            \
      .spread = spread,                                                                \
      .rotate = rotate,                                                                \
      .to_half = to_half,                                                              \
      .from_half = from_half,                                                          \
      .add = add_rows,                                                                 \
      .silu_multiply = silu_multiply,                                                  \
      .gelu = gelu,                                                                    \
      .attend = attend,                                                                \
      .merge = merge,                                                                  \
      .finish = finish,                                                                \
      .softmax_weights = softmax_weights,                                              \
      .argmax = argmax,                                                                \
      .scan = scan,                                                                    \
  }
