#include "threads.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace headrace {
namespace {

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns the value of `word` once it satisfies `is_there`: spins for a while,
// then sleeps until it changes.
template <class Word, class Condition>
Word wait_until(const std::atomic<Word>& word, Condition is_there) {
  Word value = word.load(std::memory_order_acquire);
  if (is_there(value)) return value;
  const int64_t deadline = now() + kSpinNanoseconds;
  do {
    for (int i = 0; i < 64; ++i) {
      pause();
      value = word.load(std::memory_order_acquire);
      if (is_there(value)) return value;
    }
  } while (now() < deadline);
  while (!is_there(value)) {
    word.wait(value, std::memory_order_acquire);
    value = word.load(std::memory_order_acquire);
  }
  return value;
}

}  // namespace

#if defined(__x86_64__) || defined(_M_X64)
FloatingPointControl::FloatingPointControl() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
FloatingPointControl::~FloatingPointControl() { _mm_setcsr(saved_); }
#else
FloatingPointControl::FloatingPointControl() : saved_(0) {}
FloatingPointControl::~FloatingPointControl() = default;
#endif

Team::Team(int num_threads)
    : num_threads_(std::max(1, num_threads)), taken_(new Counter[num_threads_]) {
  try {
    for (int i = 1; i < num_threads_; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stopping_.store(true, std::memory_order_release);
  round_.fetch_add(1, std::memory_order_acq_rel);
  round_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Team::run(const std::function<void(Walk&)>& body) {
  for (int i = 0; i < num_threads_; ++i) taken_[i].word.store(0, std::memory_order_relaxed);
  done_.word.store(0, std::memory_order_relaxed);
  body_ = &body;
  ++run_;
  if (num_threads_ > 1) {
    inside_.store(0, std::memory_order_release);
    round_.fetch_add(1, std::memory_order_acq_rel);
    round_.notify_all();
  }
  {
    const FloatingPointControl control;
    Walk walk(0);
    body(walk);
  }
  if (num_threads_ > 1) {
    inside_.fetch_or(kClosed, std::memory_order_acq_rel);
    wait_until(inside_, [](uint32_t inside) { return inside == kClosed; });
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void Team::keep(std::exception_ptr error) {
  const std::lock_guard<std::mutex> lock(error_mutex_);
  if (!error_) error_ = std::move(error);
}

void Team::work(int index) {
  uint32_t seen = 0;
  uint64_t last_run = 0;
  for (;;) {
    seen = wait_until(round_, [seen](uint32_t round) { return round != seen; });
    if (stopping_.load(std::memory_order_acquire)) return;
    if (!enter()) continue;
    // One who woke late for a run may have entered the next already, before it was announced.
    if (run_ != last_run) {
      last_run = run_;
      const FloatingPointControl control;
      Walk walk(index);
      (*body_)(walk);
    }
    leave();
  }
}

// False when the run is over already.
bool Team::enter() {
  uint32_t inside = inside_.load(std::memory_order_acquire);
  while ((inside & kClosed) == 0) {
    if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void Team::leave() {
  if (inside_.fetch_sub(1, std::memory_order_acq_rel) == (kClosed | 1)) inside_.notify_all();
}

// The next item of `owner`'s share, or -1: none is left, or the phase is over for all.
int Team::take(int owner, uint32_t phase, int num_items) {
  const int64_t begin = static_cast<int64_t>(num_items) * owner / num_threads_;
  const int64_t end = static_cast<int64_t>(num_items) * (owner + 1) / num_threads_;
  std::atomic<uint64_t>& taken = taken_[owner].word;
  uint64_t word = taken.load(std::memory_order_relaxed);
  for (;;) {
    const Count last = unpacked(word);
    if (last.phase > phase) return -1;
    const uint32_t number = last.phase == phase ? last.number : 0;
    if (begin + number >= end) return -1;
    if (taken.compare_exchange_weak(word, packed(phase, number + 1), std::memory_order_relaxed)) {
      return static_cast<int>(begin + number);
    }
  }
}

// Adds this thread's items to those done, and waits for the others'.
void Team::finish(uint32_t phase, int num_done, int num_items) {
  const auto all = static_cast<uint32_t>(num_items);
  std::atomic<uint64_t>& done = done_.word;
  if (num_done > 0) {
    // Nobody can count a later phase while items of this one are not counted.
    uint64_t word = done.load(std::memory_order_relaxed);
    uint32_t number;
    do {
      const Count last = unpacked(word);
      number = (last.phase == phase ? last.number : 0) + static_cast<uint32_t>(num_done);
    } while (!done.compare_exchange_weak(word, packed(phase, number), std::memory_order_acq_rel,
                                         std::memory_order_relaxed));
    if (number == all) {
      done.notify_all();
      return;
    }
  } else if (num_items <= 0) {
    return;
  }
  wait_until(done, [phase, all](uint64_t word) {
    const Count last = unpacked(word);
    return last.phase > phase || (last.phase == phase && last.number == all);
  });
}

}  // namespace headrace
