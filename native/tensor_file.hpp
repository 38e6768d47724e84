// Tensors of a model file, read where the parser found them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "formats.hpp"

namespace headrace {

// A tensor of the file, as the parser has validated it.
struct TensorRef {
  std::string role;  // "token_embedding", "q", "k_bias", ...
  int layer = -1;
  uint32_t type = 0;
  int rows = 0;  // 1 for vectors
  int inputs = 0;
  uint64_t offset = 0;
  uint64_t num_bytes = 0;
};

// The tensor's format. Throws std::runtime_error when there are no kernels for it.
const FormatTraits& traits_of(const TensorRef& ref);

// Throws std::runtime_error that names the tensor.
[[noreturn]] void mismatch(const TensorRef& ref, const std::string& what);

class TensorFile {
 public:
  // All of these throw std::runtime_error that names the file or the tensor. `tensors` must outlive
  // the file.
  TensorFile(const std::string& path, const std::vector<TensorRef>& tensors);
  ~TensorFile();
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  // Null when there is none; need() throws then.
  const TensorRef* find(const std::string& role, int layer) const;
  const TensorRef& need(const std::string& role, int layer) const;

  // All bytes of the tensor.
  void read(const TensorRef& ref, uint8_t* out) const;
  // A vector of `size` floats, of any float format.
  std::vector<float> read_vector(const TensorRef& ref, int size) const;

 private:
  std::map<std::pair<std::string, int>, const TensorRef*> refs_;
  int fd_ = -1;
};

}  // namespace headrace
