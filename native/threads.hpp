// A fixed team of threads that runs one function together, with barriers and shared counters.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
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

  // Runs body(thread index) on every thread, with `num_phases` shared counters; returns when all
  // are done. Floating-point control is
  // set to round-to-nearest without flushing on each thread meanwhile. `body` must not throw.
  void run(int num_phases, const std::function<void(int)>& body);

  // Waits until every thread of the team has arrived. Only inside run().
  void barrier();

  // The next index of phase `phase` in [0, num_items), or -1 when none is left. A phase's counter
  // is shared; phases are numbered from 0 in each run().
  int next(int phase, int num_items) {
    const int i = counters_[phase].value.fetch_add(1, std::memory_order_relaxed);
    return i < num_items ? i : -1;
  }

 private:
  void work(int index);
  void stop();

  struct alignas(64) Counter {
    std::atomic<int> value{0};
  };

  const int num_threads_;
  std::vector<std::thread> workers_;
  const std::function<void(int)>* body_ = nullptr;
  std::unique_ptr<Counter[]> counters_;
  int num_counters_ = 0;
  alignas(64) std::atomic<uint32_t> round_{0};       // bumped to start a run
  alignas(64) std::atomic<uint32_t> generation_{0};  // bumped when a barrier opens
  alignas(64) std::atomic<int> arrived_{0};
  std::atomic<bool> stopping_{false};
};

// Processors this process may use: affinity, the cgroup's quota, one per physical core.
int usable_cores();

}  // namespace headrace
