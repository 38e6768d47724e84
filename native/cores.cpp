#include "cores.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#ifdef __linux__
#include <sched.h>
#endif

namespace headrace {
namespace {

// A number at the beginning of a word; 0 for anything else, as "max" or an empty file.
double positive(const std::string& word) {
  std::istringstream in(word);
  double number = 0;
  return in >> number && number > 0 ? number : 0;
}

// Processors that one group's folder allows; 0 where it limits nothing.
double quota(const std::string& folder, bool is_v2) {
  std::string most, period;
  if (is_v2) {
    std::ifstream(folder + "/cpu.max") >> most >> period;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> most;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return positive(period) > 0 ? positive(most) / positive(period) : 0;
}

// The least quota from `path`, inside `mount`, up to the mount's top. Inside a container the path
// may be the host's, and only the top be there.
double least_quota(const std::string& mount, std::string path, bool is_v2) {
  double least = 0;
  for (;;) {
    const double here = quota(mount + path, is_v2);
    if (here > 0 && (least == 0 || here < least)) least = here;
    if (path.empty()) return least;
    path.erase(std::min(path.rfind('/'), path.size()));
  }
}

bool lists(const std::string& controllers, const std::string& wanted) {
  std::istringstream in(controllers);
  for (std::string name; std::getline(in, name, ',');) {
    if (name == wanted) return true;
  }
  return false;
}

}  // namespace

int quota_cores(const std::string& root) {
  double least = 0;
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    std::string path = line.substr(second + 1);
    while (!path.empty() && path.back() == '/') path.pop_back();
    const bool is_v2 = line.substr(0, first) == "0";
    if (!is_v2 && !lists(line.substr(first + 1, second - first - 1), "cpu")) continue;
    const std::string mount = root + (is_v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
    const double here = least_quota(mount, path, is_v2);
    if (here > 0 && (least == 0 || here < least)) least = here;
  }
  return static_cast<int>(std::min(std::ceil(least), 1e6));
}

int usable_cores() {
  int count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#ifdef __linux__
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::pair<int, int>> cores;
    int num_allowed = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      ++num_allowed;
      const std::string base = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      int core = cpu, package = 0;
      std::ifstream(base + "core_id") >> core;
      std::ifstream(base + "physical_package_id") >> package;
      cores.emplace(package, core);
    }
    count = std::max(1, std::min<int>(num_allowed, static_cast<int>(cores.size())));
  }
  if (const int most = quota_cores(""); most > 0) count = std::min(count, most);
#endif
  return count;
}

}  // namespace headrace
