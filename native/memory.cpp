#include "memory.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <utility>

#include "threads.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

namespace headrace {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t rounded(size_t num_bytes) {
  const size_t unit = num_bytes >= kHugePage ? kHugePage : 4096;
  return (num_bytes + unit - 1) / unit * unit;
}

}  // namespace

Buffer::Buffer(size_t num_bytes) {
  if (num_bytes == 0) return;
  const size_t size = rounded(num_bytes);
  if (size < num_bytes) throw std::bad_alloc();
  // Over-reserved by one huge page, then trimmed, so that the buffer starts on
  // a huge-page boundary.
  const size_t extra = size >= kHugePage ? kHugePage : 0;
  void* raw =
      mmap(nullptr, size + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  auto* start = static_cast<uint8_t*>(raw);
  if (extra != 0) {
    const size_t skip = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    if (skip != 0) munmap(start, skip);
    if (skip != extra) munmap(start + skip + size, extra - skip);
    start += skip;
#ifdef MADV_HUGEPAGE
    madvise(start, size, MADV_HUGEPAGE);
#endif
  }
  data_ = start;
  size_ = size;
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, size_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void Buffer::reserve(size_t num_bytes) {
  if (num_bytes > size_) *this = Buffer(num_bytes);
}

void Buffer::populate([[maybe_unused]] size_t offset, [[maybe_unused]] size_t num_bytes) const {
#ifdef MADV_POPULATE_WRITE
  constexpr size_t kPage = 4096;
  const size_t begin = std::min(offset, size_) / kPage * kPage;
  const size_t end =
      std::min(size_, (std::min(offset, size_) + num_bytes + kPage - 1) / kPage * kPage);
  if (begin < end) madvise(data_ + begin, end - begin, MADV_POPULATE_WRITE);
#endif
}

double measure_bandwidth(size_t num_bytes, int num_threads, int repeats) {
  Buffer buffer(num_bytes);
  if (num_bytes > 0) std::memset(buffer.data(), 1, num_bytes);
  Team team(num_threads);
  constexpr size_t kPiece = size_t{1} << 18;
  const int num_pieces = static_cast<int>(num_bytes / kPiece);
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    team.run([&](Team::Walk& walk) {
      team.each(walk, num_pieces, [&](int piece) {
        const auto* p = reinterpret_cast<const uint64_t*>(buffer.data() + kPiece * piece);
        uint64_t sums[16] = {};
        for (size_t k = 0; k < kPiece / sizeof(uint64_t); k += 16) {
          for (int j = 0; j < 16; ++j) sums[j] += p[k + j];
        }
        uint64_t total = 0;
        for (const uint64_t s : sums) total += s;
        [[maybe_unused]] volatile uint64_t keep = total;
      });
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(kPiece * num_pieces) / elapsed.count());
  }
  return best;
}

}  // namespace headrace
