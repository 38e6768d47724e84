// How many cores a process may use, in folders that look like a system's.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "check.hpp"
#include "cores.hpp"

namespace headrace::tests {
namespace {

namespace fs = std::filesystem;

// A made-up root folder, gone at the end.
class Root {
 public:
  Root() {
    std::string name = (fs::temp_directory_path() / "headrace_cores_XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Root() { fs::remove_all(path_); }
  Root& with(const std::string& file, const std::string& text) {
    fs::create_directories((path_ / file).parent_path());
    std::ofstream(path_ / file) << text;
    return *this;
  }
  int cores() const { return quota_cores(path_.string()); }

 private:
  fs::path path_;
};

}  // namespace

HEADRACE_TEST(cores_without_groups_are_not_limited) {
  CHECK(Root().cores() == 0);
  CHECK(Root().with("proc/self/cgroup", "0::/\n").cores() == 0);
  CHECK(Root().with("proc/self/cgroup", "nonsense\n\n:\n::\n").cores() == 0);
}

HEADRACE_TEST(cores_follow_the_least_quota_above_the_process) {
  Root root;
  root.with("proc/self/cgroup", "0::/a/b/c\n");
  CHECK(root.with("sys/fs/cgroup/a/cpu.max", "300000 100000\n").cores() == 3);
  CHECK(root.with("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n").cores() == 3);
  CHECK(root.with("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n").cores() == 2);
  CHECK(root.with("sys/fs/cgroup/cpu.max", "10000 100000\n").cores() == 1);
  // A neighbour's quota is none of ours.
  CHECK(root.with("sys/fs/cgroup/a/x/cpu.max", "1 100000\n").cores() == 1);
}

HEADRACE_TEST(cores_of_a_container_that_sees_its_own_group_as_the_top) {
  Root root;
  root.with("proc/self/cgroup", "0::/system.slice/docker-1234.scope\n");
  CHECK(root.with("sys/fs/cgroup/cpu.max", "400000 100000\n").cores() == 4);
}

HEADRACE_TEST(cores_of_the_first_version_of_groups) {
  Root root;
  root.with("proc/self/cgroup", "3:cpuset:/x\n2:cpu,cpuacct:/a\n1:memory:/a\n");
  root.with("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(root.with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n").cores() == 0);
  root.with("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  CHECK(root.with("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "250000\n").cores() == 3);
}

HEADRACE_TEST(cores_survive_files_of_nonsense) {
  for (const char* text :
       {"", "max", "99", "x y", "1e400 100000", "100000 0", "-5 100000", "\n\n"}) {
    Root root;
    root.with("proc/self/cgroup", "0::/\n").with("sys/fs/cgroup/cpu.max", text);
    CHECK_FOR(root.cores() >= 0, text);
  }
}

HEADRACE_TEST(usable_cores_is_sensible) {
  const int cores = usable_cores();
  CHECK_FOR(cores >= 1 && cores <= 4096, cores);
}

}  // namespace headrace::tests
