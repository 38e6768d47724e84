#include "cpu.hpp"

#include <cstring>
#include <fstream>
#include <stdexcept>

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif
#ifdef HEADRACE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headrace {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

struct Features {
  bool avx2 = false, avx512 = false, amx = false;
};

// CPUID says what the processor has, XGETBV whether the system saves those registers.
Features detect() {
  unsigned a, b, c, d;
  Features f;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!osxsave || !(c & (1u << 28))) return f;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool ymm = (low & 0x06) == 0x06, zmm = (low & 0xE6) == 0xE6;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
  f.avx2 = ymm && fma && f16c && (b & (1u << 5));
  const unsigned needed = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
  f.avx512 = f.avx2 && zmm && (b & needed) == needed && (c & (1u << 11));     // VNNI
  const bool tiles = (low & (3u << 17)) == (3u << 17);
  f.amx = f.avx512 && tiles && (d & (1u << 24)) && (d & (1u << 25));  // AMX-TILE, AMX-INT8
  return f;
}

#endif

#ifdef HEADRACE_AMX

// Linux gives the tile registers to processes that ask for them.
bool may_use_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

// The AVX-512 kernels, and in their place those that AMX does better.
const Kernels& amx_kernels() {
  static const Kernels all = [] {
    Kernels k = kAvx512Kernels;
    k.name = "amx";
    for (int format = 0; format < kNumFormats; ++format) {
      for (int i = 0; i < kMaxPanel; ++i) {
        const Gemm better = kAmxGemms.of[format].of[i];
        if (better != nullptr) k.gemm[format].of[i] = better;
      }
    }
    return k;
  }();
  return all;
}

#endif

}  // namespace

std::string cpu_name() {
#if defined(__x86_64__) || defined(_M_X64)
  unsigned words[12];
  unsigned highest = __get_cpuid_max(0x80000000u, nullptr);
  if (highest >= 0x80000004u) {
    for (unsigned i = 0; i < 3; ++i) {
      __get_cpuid(0x80000002u + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2],
                  &words[4 * i + 3]);
    }
    char text[49] = {};
    std::memcpy(text, words, 48);
    std::string name(text);
    const size_t from = name.find_first_not_of(' '), to = name.find_last_not_of(' ');
    if (from != std::string::npos) return name.substr(from, to - from + 1);
  }
#endif
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0 && line.find(':') != std::string::npos) {
      return line.substr(line.find(':') + 2);
    }
  }
  return "unknown";
}

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> all;
#if defined(__x86_64__) || defined(_M_X64)
  const Features f = detect();
#ifdef HEADRACE_AMX
  if (f.amx && may_use_tiles()) all.push_back(&amx_kernels());
#endif
  if (f.avx512) all.push_back(&kAvx512Kernels);
  if (f.avx2) all.push_back(&kAvx2Kernels);
#endif
  all.push_back(&kPortableKernels);
  return all;
}

const Kernels& choose_kernels(const std::string& name) {
  const auto all = supported_kernels();
  if (name.empty()) return *all.front();
  std::string names;
  for (const Kernels* kernels : all) {
    if (name == kernels->name) return *kernels;
    names += names.empty() ? kernels->name : std::string(", ") + kernels->name;
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' is not one of those this processor runs: " + names);
}

}  // namespace headrace
