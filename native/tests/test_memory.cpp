// Buffers: aligned, zeroed, movable, and honest when there is no memory.
#include <cstdint>
#include <new>
#include <utility>

#include "check.hpp"
#include "memory.hpp"

namespace headrace::tests {

HEADRACE_TEST(buffers_are_aligned_and_zeroed) {
  for (const size_t size : {size_t{1}, size_t{4096}, size_t{4097}, (size_t{2} << 20) - 1,
                            size_t{2} << 20, (size_t{2} << 20) + 1, size_t{5} << 20}) {
    const Buffer buffer(size);
    CHECK_FOR(buffer.size() >= size, size);
    const size_t alignment = size >= size_t{2} << 20 ? size_t{2} << 20 : 64;
    CHECK_FOR(reinterpret_cast<uintptr_t>(buffer.data()) % alignment == 0, size);
    for (size_t i = 0; i < buffer.size(); i += 61) CHECK(buffer.data()[i] == 0);
    buffer.data()[buffer.size() - 1] = 1;  // the last byte is ours too
  }
}

HEADRACE_TEST(empty_buffers) {
  Buffer none, zero(0);
  CHECK(none.data() == nullptr && none.size() == 0);
  CHECK(zero.data() == nullptr && zero.size() == 0);
  none.reserve(0);
  CHECK(none.data() == nullptr);
}

HEADRACE_TEST(buffers_grow_and_move) {
  Buffer a(100);
  a.data()[0] = 7;
  const uint8_t* before = a.data();
  a.reserve(50);
  CHECK(a.data() == before && a.data()[0] == 7);
  a.reserve(size_t{3} << 20);
  CHECK(a.size() >= size_t{3} << 20);
  uint8_t* const data = a.data();
  Buffer b(std::move(a));
  CHECK(b.data() == data && a.data() == nullptr && a.size() == 0);
  Buffer c;
  c = std::move(b);
  CHECK(c.data() == data);
}

HEADRACE_TEST(too_large_buffers_throw) {
  for (const size_t size :
       {SIZE_MAX, SIZE_MAX - 4096, SIZE_MAX - (size_t{4} << 20), size_t{1} << 62}) {
    CHECK_THROWS(Buffer(size), std::bad_alloc);
    Buffer small(10);
    small.data()[0] = 3;
    CHECK_THROWS(small.reserve(size), std::bad_alloc);
    CHECK(small.data()[0] == 3);
  }
}

HEADRACE_TEST(bandwidth_is_measured) {
  CHECK(measure_bandwidth(size_t{1} << 20, 2, 2) > 0);
  CHECK(measure_bandwidth(0, 1, 1) == 0);
}

}  // namespace headrace::tests
