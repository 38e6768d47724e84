// The numerics of headrace: one scalar definition per operation, and what every kernel must equal.
//
// A result is a fixed sequence of IEEE-754 single-precision operations, rounded to nearest, chosen
// per output element and independent of tile sizes, batch, threads and instruction set:
//
//   lanes      reductions run over 16 virtual lanes, element i in lane i % 16, ascending; the lanes
//              are then added as a tree (i and i+8, then +4, +2, +1).
//   quantize   per 32 values: amax, d = amax / 127, q = rint(x * (127 / amax)); d = 0 where amax is
//              below 2^-100; d = NaN and q = 0 where a value is infinite or NaN.
//   matmul     acc = 0; per 32 inputs, ascending:
//                acc = fma(d_w * d_a, float(sum q_w q_a), acc), the integer sum being exact;
//                with minima acc = fma(m_w, d_a * float(sum q_a), acc).
//              Q6_K has two groups of 16 per 32, each with its own step. Float weights: one fma per
//              input, ascending.
//   attention  score = fma chain over the head's dimensions; keys fall into partitions of 256 at
//              absolute positions; each gives (max, sum, out), merged ascending by one function.
//   exp2       Cody-Waite split at the nearest integer, a degree-6 polynomial by Horner with fma.
//   wide       16-bit integers, for models whose outliers 8 bits would drown. A row of weights has
//              one step d = amax / 2047, a token's inputs one step d = amax / 8191, q = rint(x *
//              (8191 / amax)); both as in quantize. acc = 0; per 128 inputs, ascending:
//                acc = acc + float(sum q_w q_a), the integer sum being exact;
//              then fma(acc, d_w * d_a, bias).
//   pool       a text's rows added up, ascending; each sum divided by the root of the sum of their
//              squares, in double, ascending, and rounded once.
//   rows       RMS norm is (x * (1 / sqrt(mean + eps))) * weight; rotation fma(a, c, -(b s)) and
//              fma(b, c, a s), queries then times scale * log2(e); silu g / (1 + exp2(-g log2(e))),
//              then times up; the residual is one addition. Layer norm: mean = sum / n; squares of
//              c = x - mean by fma; fma(c * (1 / sqrt(sum / n + eps)), weight, bias). Gelu is
//              fma(-|x|, q, max(0, x)), q being half the complement of the error function after
//              Abramowitz and Stegun 7.1.26: a polynomial of t = 1 / fma(|x|, p / sqrt 2, 1) by
//              Horner with fma, times t, times exp2(x * x * (-log2(e) / 2)).
//
// tests/definition.hpp writes all of it out as scalar code; every kernel equals that bit for bit.
// Fused multiply-adds are only those written as fma(): the build passes -ffp-contract=off.
// A change that can alter a result changes kNumericsVersion.
#pragma once

#include <cstdint>

namespace headrace {

inline constexpr const char* kNumericsVersion = "1";

inline constexpr int kLanes = 16;         // rows of a tile, keys of a group, lanes of a reduction
inline constexpr int kBlock = 32;         // inputs that share one activation scale
inline constexpr int kPartition = 256;    // keys whose softmax is taken together
inline constexpr int kBankSize = 32;      // positions of a KV bank
inline constexpr int kMaxQueryRows = 12;  // query rows (heads x tokens) of one attention tile

inline constexpr float kLog2E = 1.44269504088896340736f;
// Below this exponent a softmax weight is exactly zero, so that no product with a 16-bit value can
// underflow to -0 and masked keys stay exact identities.
inline constexpr float kMinWeightLog2 = -60.0f;
inline constexpr float kTinyAmax = 0x1p-100f;
inline constexpr float kMaxHalf = 65504.0f;

inline constexpr int kWideBlock = 128;         // inputs whose products are summed as integers
inline constexpr float kWideWeight = 2047.0f;  // 128 x 2047 x 8191 is below 2^31
inline constexpr float kWideInput = 8191.0f;

// Minimax polynomial of 2^f on [-0.5, 0.5]; relative error below 2^-24.
inline constexpr float kExp2[7] = {1.0f,           0x1.62e430p-1f,  0x1.ebfbdcp-3f, 0x1.c6aed6p-5f,
                                   0x1.3b2cc4p-7f, 0x1.5f44dcp-10f, 0x1.4258d8p-13f};

// Half the complementary error function: p / sqrt(2), then half the coefficients of 7.1.26.
inline constexpr float kHalfErfcStep = 0.3275911f * 0.70710678f;
inline constexpr float kHalfErfc[5] = {0.5f * 0.254829592f, 0.5f * -0.284496736f,
                                       0.5f * 1.421413741f, 0.5f * -1.453152027f,
                                       0.5f * 1.061405429f};

}  // namespace headrace
