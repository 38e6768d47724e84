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

  // One thread's way through a run: who it is, and how many phases lie behind it.
  class Walk {
   public:
    int thread() const { return thread_; }

   private:
    friend class Team;
    explicit Walk(int thread) : thread_(thread) {}
    const int thread_;
    uint32_t phase_ = 0;
  };

  // Runs the body on the caller, as thread 0, and on every thread that comes in time; returns when
  // all that came have left. The body is a row of each() calls, the same on every thread, and
  // throws nothing itself. Floating-point control is set to round-to-nearest without flushing
  // meanwhile. The first exception of an item is thrown here, after all phases.
  void run(const std::function<void(Walk&)>& body);

  // The next phase: hands out items [0, num_items) to the threads that ask, and returns when all
  // are done, by whomever. Each thread takes its own share of neighbours in ascending order, so
  // that what it fetches ahead is what it needs next; then it helps the others. A phase waits for
  // its items, not for threads: one that sleeps, or that lost its processor between items, holds
  // up no phase (only the end of run(), once it is inside).
  template <class Item>
  void each(Walk& walk, int num_items, const Item& item) {
    const uint32_t phase = ++walk.phase_;
    int num_done = 0;
    for (int i = 0; i < num_threads_; ++i) {
      const int owner = (walk.thread_ + i) % num_threads_;
      for (int at; (at = take(owner, phase, num_items)) >= 0; ++num_done) {
        try {
          item(at);
        } catch (...) {
          keep(std::current_exception());
        }
      }
    }
    finish(phase, num_done, num_items);
  }

 private:
  // A count that belongs to one phase of a run: zero in the later ones, until somebody counts.
  // Two words per thread serve all phases, so they stay in the caches.
  struct alignas(64) Counter {
    std::atomic<uint64_t> word{0};
  };
  struct Count {
    uint32_t phase;
    uint32_t number;
  };
  static Count unpacked(uint64_t word) {
    return {static_cast<uint32_t>(word >> 32), static_cast<uint32_t>(word)};
  }
  static uint64_t packed(uint32_t phase, uint32_t number) {
    return static_cast<uint64_t>(phase) << 32 | number;
  }

  void work(int index);
  void stop();
  bool enter();
  void leave();
  int take(int owner, uint32_t phase, int num_items);
  void finish(uint32_t phase, int num_done, int num_items);
  void keep(std::exception_ptr error);

  static constexpr uint32_t kClosed = 1u << 31;

  const int num_threads_;
  std::vector<std::thread> workers_;
  const std::function<void(Walk&)>* body_ = nullptr;
  uint64_t run_ = 0;                  // numbers the runs; changes while nobody is inside
  std::unique_ptr<Counter[]> taken_;  // of each thread's share, by whomever
  Counter done_;
  alignas(64) std::atomic<uint32_t> round_{0};         // bumped to start a run
  alignas(64) std::atomic<uint32_t> inside_{kClosed};  // workers inside, and whether more may enter
  std::atomic<bool> stopping_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

}  // namespace headrace
