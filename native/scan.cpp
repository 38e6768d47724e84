#include "scan.hpp"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>

namespace headrace {
namespace {

// Rows that a thread takes at a time: some hundred microseconds of reading.
constexpr size_t kPart = 2048;
// Rows whose sums are looked at while they are in the first-level cache.
constexpr size_t kBatch = 256;

struct Near {
  float score;
  size_t row;
};

bool is_nearer(const Near& a, const Near& b) {
  return a.score != b.score ? a.score > b.score : a.row < b.row;
}

// One thread's best, the farthest of them in front.
class Best {
 public:
  // Takes all its memory here, where who fails can say so.
  explicit Best(size_t limit) : limit_(limit) { found_.reserve(limit); }

  void offer(const Near& near) {
    if (found_.size() == limit_) {
      if (!is_nearer(near, found_.front())) return;
      std::pop_heap(found_.begin(), found_.end(), is_nearer);
      found_.pop_back();
    }
    found_.push_back(near);
    std::push_heap(found_.begin(), found_.end(), is_nearer);
  }
  const std::vector<Near>& found() const { return found_; }

 private:
  const size_t limit_;
  std::vector<Near> found_;
};

void search(const Kernels& kernels, const ByteRows& all, const int16_t* x,
            std::atomic<size_t>& next, Best& best) {
  int32_t sums[kBatch];
  for (size_t from; (from = next.fetch_add(kPart)) < all.count;) {
    const size_t end = std::min(from + kPart, all.count);
    for (size_t first = from; first < end; first += kBatch) {
      const size_t count = std::min(kBatch, end - first);
      kernels.scan(all.rows + first * all.n, count, x, all.n, sums);
      for (size_t i = 0; i < count; ++i) {
        best.offer({static_cast<float>(sums[i]) * all.scales[first + i], first + i});
      }
    }
  }
}

}  // namespace

std::vector<size_t> nearest(const Kernels& kernels, const ByteRows& all, const int16_t* x,
                            size_t limit, int num_threads) {
  limit = std::min(limit, all.count);
  if (limit == 0) return {};
  const size_t num_parts = (all.count + kPart - 1) / kPart;
  const size_t wanted = std::min<size_t>(std::max(num_threads, 1), num_parts);
  std::vector<Best> bests;
  for (size_t t = 0; t < wanted; ++t) bests.emplace_back(limit);
  std::atomic<size_t> next{0};
  std::vector<std::thread> helpers;
  helpers.reserve(wanted);
  try {
    for (size_t t = 1; t < wanted; ++t) {
      helpers.emplace_back([&, t] { search(kernels, all, x, next, bests[t]); });
    }
  } catch (const std::system_error&) {
    // No more threads are to be had; those that are do it all.
  }
  search(kernels, all, x, next, bests[0]);
  for (std::thread& helper : helpers) helper.join();

  std::vector<Near> found;
  for (const Best& best : bests) {
    found.insert(found.end(), best.found().begin(), best.found().end());
  }
  std::sort(found.begin(), found.end(), is_nearer);
  std::vector<size_t> rows;
  for (size_t i = 0; i < limit; ++i) rows.push_back(found[i].row);
  return rows;
}

}  // namespace headrace
