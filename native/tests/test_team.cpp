// The team of threads: phases, items, floating-point control, coming and going.
#include <atomic>
#include <cfenv>
#include <chrono>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "check.hpp"
#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__unix__)
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HEADRACE_SANITIZED 1
#else
#define HEADRACE_SANITIZED 0
#endif

namespace headrace::tests {
namespace {

int rounds(int usual) { return quick() ? usual / 20 + 1 : usual; }

}  // namespace

// The caller always runs; workers that come in time do, each at most once, and none after run().
HEADRACE_TEST(team_runs_each_thread_at_most_once) {
  for (int n = 1; n <= 8; ++n) {
    Team team(n);
    CHECK(team.size() == n);
    for (int round = 0; round < rounds(300); ++round) {
      std::vector<int> ran(n, 0);  // plain: the end of run() must publish it
      team.run([&](Team::Walk& walk) { ++ran[walk.thread()]; });
      CHECK_FOR(ran[0] == 1, "threads", n);
      for (int i = 1; i < n; ++i) CHECK_FOR(ran[i] <= 1, "threads", n, "thread", i);
    }
  }
}

HEADRACE_TEST(team_of_less_than_one_is_the_caller) {
  for (const int n : {0, -1, -1000}) {
    Team team(n);
    CHECK(team.size() == 1);
    const auto caller = std::this_thread::get_id();
    team.run([&](Team::Walk&) { CHECK(std::this_thread::get_id() == caller); });
  }
}

// Each item of each phase goes to exactly one thread; phases of later runs start anew.
HEADRACE_TEST(team_hands_out_each_item_once) {
  for (int n = 1; n <= 8; ++n) {
    Team team(n);
    for (int round = 0; round < rounds(60); ++round) {
      const int phases = 1 + round % 7, items = round % 40;
      std::vector<int> taken(phases * items, 0);
      team.run([&](Team::Walk& walk) {
        for (int phase = 0; phase < phases; ++phase) {
          team.each(walk, items, [&](int i) { ++taken[phase * items + i]; });
        }
      });
      for (const int count : taken) CHECK_FOR(count == 1, "threads", n, "round", round);
    }
  }
}

// What the items of one phase write, those of the next read, on whichever thread, many times in a
// row. Plain memory, so that a thread sanitizer sees a phase that orders nothing.
HEADRACE_TEST(team_phases_order_memory) {
  for (int n = 1; n <= 8; ++n) {
    Team team(n);
    const int steps = rounds(400), width = 2 * n + 1;
    std::vector<int> value(width, 0);
    std::atomic<int> wrong{0};
    team.run([&](Team::Walk& walk) {
      for (int step = 0; step < steps; ++step) {
        team.each(walk, width, [&](int i) { value[i] = step; });
        team.each(walk, width, [&](int i) { wrong += value[width - 1 - i] != step; });
      }
    });
    CHECK_FOR(wrong == 0, "threads", n);
  }
}

// Items slow enough that those who wait fall asleep: they must be woken, in phases and between
// runs.
HEADRACE_TEST(team_wakes_sleepers) {
  const auto nap = std::chrono::nanoseconds(4 * kSpinNanoseconds);
  for (int n = 2; n <= 4; ++n) {
    Team team(n);
    for (int round = 0; round < rounds(60); ++round) {
      std::vector<int> seen(n, 0);
      std::atomic<int> wrong{0};
      team.run([&](Team::Walk& walk) {
        team.each(walk, n, [&](int i) {
          if (i == round % n) std::this_thread::sleep_for(nap);
          seen[i] = 1;
        });
        team.each(walk, n, [&](int i) { wrong += seen[n - 1 - i] != 1; });
      });
      CHECK(wrong == 0);
      if (round % 3 == 0) std::this_thread::sleep_for(nap);
    }
  }
}

// A worker that is held up outside of items holds up nobody: the others finish the run's work.
HEADRACE_TEST(team_does_not_wait_for_latecomers) {
  Team team(3);
  for (int round = 0; round < rounds(40); ++round) {
    std::atomic<int> done{0};
    std::atomic<bool> is_over{false};
    team.run([&](Team::Walk& walk) {
      if (walk.thread() != 0) {
        while (!is_over) std::this_thread::yield();
      }
      for (int phase = 0; phase < 50; ++phase) team.each(walk, 4, [&](int) { ++done; });
      is_over = true;
    });
    CHECK(done == 200);
  }
}

// An item that throws ends the run with its exception, after all other items, and harms no later
// run.
HEADRACE_TEST(team_throws_what_an_item_throws) {
  for (int n = 1; n <= 4; ++n) {
    Team team(n);
    for (int round = 0; round < rounds(50); ++round) {
      std::atomic<int> done{0};
      bool thrown = false;
      try {
        team.run([&](Team::Walk& walk) {
          team.each(walk, 9, [&](int i) {
            ++done;
            if (i % 3 == 1) throw std::runtime_error("item");
          });
          team.each(walk, 5, [&](int) { ++done; });
        });
      } catch (const std::runtime_error&) {
        thrown = true;
      }
      CHECK(thrown);
      CHECK(done == 14);
      team.run([&](Team::Walk& walk) { team.each(walk, 3, [&](int) { ++done; }); });
      CHECK(done == 17);
    }
  }
}

// A thread takes neighbours of its own share, ascending, before it helps the others.
HEADRACE_TEST(team_gives_each_thread_neighbours) {
  constexpr int kThreads = 4, kItems = 4 * 16;
  Team team(kThreads);
  for (int round = 0; round < rounds(40); ++round) {
    std::vector<std::vector<int>> taken(kThreads);
    team.run([&](Team::Walk& walk) {
      team.each(walk, kItems, [&](int i) { taken[walk.thread()].push_back(i); });
    });
    for (int thread = 0; thread < kThreads; ++thread) {
      const auto& items = taken[thread];
      const auto owner = [](int item) { return item / (kItems / kThreads); };
      for (size_t i = 1; i < items.size(); ++i) {
        if (owner(items[i]) == owner(items[i - 1])) CHECK(items[i] > items[i - 1]);
        CHECK_FOR(owner(items[i]) != thread || owner(items[i - 1]) == thread, "thread", thread);
      }
    }
  }
}

HEADRACE_TEST(teams_come_and_go) {
  for (int round = 0; round < rounds(100); ++round) {
    Team idle(3);
    Team used(1 + round % 4);
    std::atomic<int> count{0};
    used.run([&](Team::Walk& walk) { used.each(walk, 7, [&](int) { ++count; }); });
    CHECK(count == 7);
  }
}

HEADRACE_TEST(two_teams_at_once) {
  std::vector<std::thread> callers;
  std::atomic<int> count{0};
  for (int c = 0; c < 2; ++c) {
    callers.emplace_back([&] {
      Team team(2);
      for (int round = 0; round < rounds(200); ++round) {
        team.run([&](Team::Walk& walk) { team.each(walk, 2, [&](int) { ++count; }); });
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK(count == 2 * 2 * rounds(200));
}

#if defined(__x86_64__)
// Whatever the host program has set, every thread computes with the same control word.
HEADRACE_TEST(team_sets_floating_point_control) {
  constexpr unsigned kFlush = 0x8040, kUpward = 0x4000, kFlags = 0x3F;
  const unsigned before = _mm_getcsr();
  for (const unsigned host :
       {before, before | kFlush, before | kUpward, before | kUpward | kFlush}) {
    _mm_setcsr(host);
    Team team(3);
    std::vector<unsigned> inside(3);
    // Every thread gets in: the caller's item lasts until the others have had theirs.
    std::atomic<int> arrived{0};
    team.run([&](Team::Walk& walk) {
      inside[walk.thread()] = _mm_getcsr() & ~kFlags;
      ++arrived;
      team.each(walk, 1, [&](int) {
        while (arrived < 3) std::this_thread::yield();
      });
    });
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    for (const unsigned csr : inside) CHECK_FOR(csr == 0x1F80, csr);
    CHECK_FOR((after & ~kFlags) == (host & ~kFlags), after, host);
  }
}
#endif

#if defined(__unix__) && !HEADRACE_SANITIZED
// A machine that gives no more threads gets an exception, not an end of the process.
HEADRACE_TEST(team_that_cannot_start_throws) {
  if (quick()) return;  // an emulator's memory is not the program's
  const pid_t child = fork();
  if (child == 0) {
    const rlimit little{size_t{256} << 20, size_t{256} << 20};  // 8 MB of stack a thread
    setrlimit(RLIMIT_AS, &little);
    try {
      Team team(2000);
    } catch (const std::system_error&) {
      _exit(42);
    }
    _exit(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK_FOR(WIFEXITED(status) && WEXITSTATUS(status) == 42, "status", status);
}
#endif

}  // namespace headrace::tests
