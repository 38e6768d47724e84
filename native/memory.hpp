// Large, 64-byte aligned, zeroed buffers; in huge pages where the system grants them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

class Buffer {
 public:
  Buffer() = default;
  // Throws std::bad_alloc. Memory is reserved, and touched only when written.
  explicit Buffer(size_t num_bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  // Grows to at least `num_bytes`; the contents are lost when it grows.
  void reserve(size_t num_bytes);
  // Has the pages of [offset, offset + num_bytes) in place, contents unchanged, so that nobody
  // waits for them later. Does nothing where the system cannot.
  void populate(size_t offset, size_t num_bytes) const;

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Bytes a second that `num_threads` threads read together from a buffer of `num_bytes` each step:
// the best of `repeats` passes.
double measure_bandwidth(size_t num_bytes, int num_threads, int repeats);

}  // namespace headrace
