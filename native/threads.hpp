// A fixed team of threads that works through the items of one phase after another.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace headrace {

// Waiting spins for about this long, then sleeps: spinning beside a busy foreign thread takes the
// very core that the others wait for.
inline constexpr int64_t kSpinNanoseconds = 50'000;

// Round to nearest, denormals kept, on this thread while it lives: what the numerics assume,
// whatever the host program has set.
class FloatingPointControl {
 public:
  FloatingPointControl();
  ~FloatingPointControl();
  FloatingPointControl(const FloatingPointControl&) = delete;
  FloatingPointControl& operator=(const FloatingPointControl&) = delete;

 private:
  unsigned saved_;
};

class Team {
 public:
  // `num_threads` counts the caller of run(). Throws std::system_error when the system gives no
  // more threads.
  explicit Team(int num_threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return num_threads_; }

  // Runs body(thread index) on the caller, as index 0, and on every thread that comes in time;
  // returns when all that came have left. The body is a row of at most `num_phases` each() calls,
  // the same on every thread, and throws nothing itself. Floating-point control is set to
  // round-to-nearest without flushing meanwhile. The first exception of an item is thrown here,
  // after all phases.
  void run(int num_phases, const std::function<void(int)>& body);

  // Hands out items [0, num_items) of phase `phase` to the threads that ask, and returns when all
  // are done, by whomever. A phase waits for its items, not for threads: one that sleeps, or that
  // lost its processor between items, holds up no phase (only the end of run(), once it is inside).
  // Only inside run(), phases ascending from 0.
  template <class Item>
  void each(int phase, int num_items, const Item& item) {
    Phase& shared = phases_[phase];
    int num_done = 0;
    for (;;) {
      const int i = shared.next.fetch_add(1, std::memory_order_relaxed);
      if (i >= num_items) break;
      try {
        item(i);
      } catch (...) {
        keep(std::current_exception());
      }
      ++num_done;
    }
    finish(shared, num_done, num_items);
  }

 private:
  struct alignas(64) Phase {
    std::atomic<int> next{0};
    alignas(64) std::atomic<uint32_t> done{0};
  };

  void work(int index);
  void stop();
  bool enter();
  void leave();
  void finish(Phase& phase, int num_done, int num_items);
  void keep(std::exception_ptr error);

  static constexpr uint32_t kClosed = 1u << 31;

  const int num_threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  uint64_t run_ = 0;  // numbers the runs; changes while nobody is inside
  std::unique_ptr<Phase[]> phases_;
  int num_phases_ = 0;
  alignas(64) std::atomic<uint32_t> round_{0};         // bumped to start a run
  alignas(64) std::atomic<uint32_t> inside_{kClosed};  // workers inside, and whether more may enter
  std::atomic<bool> stopping_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

// Processors this process may use: affinity, the cgroup's quota, one per physical core.
int usable_cores();

}  // namespace headrace
