#include "tensor_file.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "pack.hpp"

namespace headrace {
namespace {

void read_exactly(int fd, uint8_t* out, uint64_t size, uint64_t offset, const std::string& role) {
  while (size > 0) {
    const ssize_t n =
        ::pread(fd, out, std::min<uint64_t>(size, uint64_t{1} << 30), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      throw std::runtime_error("cannot read tensor '" + role + "': " + std::strerror(errno));
    }
    if (n == 0) throw std::runtime_error("tensor '" + role + "' ends past the end of the file");
    out += n;
    offset += static_cast<uint64_t>(n);
    size -= static_cast<uint64_t>(n);
  }
}

}  // namespace

const FormatTraits& traits_of(const TensorRef& ref) {
  const int index = format_index(static_cast<Format>(ref.type));
  if (index < 0) {
    throw std::runtime_error("tensor '" + ref.role + "' has unsupported type " +
                             std::to_string(ref.type));
  }
  return kFormats[index];
}

void mismatch(const TensorRef& ref, const std::string& what) {
  throw std::runtime_error("tensor '" + ref.role + "' of layer " + std::to_string(ref.layer) + " " +
                           what);
}

TensorFile::TensorFile(const std::string& path, const std::vector<TensorRef>& tensors) {
  for (const TensorRef& ref : tensors) refs_[{ref.role, ref.layer}] = &ref;
  fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw std::runtime_error("cannot open " + path + ": " + std::strerror(errno));
}

TensorFile::~TensorFile() { ::close(fd_); }

const TensorRef* TensorFile::find(const std::string& role, int layer) const {
  const auto it = refs_.find({role, layer});
  return it == refs_.end() ? nullptr : it->second;
}

const TensorRef& TensorFile::need(const std::string& role, int layer) const {
  const TensorRef* ref = find(role, layer);
  if (ref == nullptr) {
    throw std::runtime_error("tensor '" + role + "' of layer " + std::to_string(layer) +
                             " is missing");
  }
  return *ref;
}

void TensorFile::read(const TensorRef& ref, uint8_t* out) const {
  read_exactly(fd_, out, ref.num_bytes, ref.offset, ref.role);
}

std::vector<float> TensorFile::read_vector(const TensorRef& ref, int size) const {
  const FormatTraits& traits = traits_of(ref);
  if (ref.rows != 1 || ref.inputs != size) mismatch(ref, "has another shape than the model");
  if (!traits.is_float) mismatch(ref, "must not be quantized");
  std::vector<uint8_t> raw(static_cast<size_t>(size) * traits.file_bytes);
  if (ref.num_bytes != raw.size()) mismatch(ref, "has another size than its shape");
  read(ref, raw.data());
  std::vector<float> out(size);
  float_row(traits, raw.data(), size, out.data());
  return out;
}

}  // namespace headrace
