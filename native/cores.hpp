// How many processors this process may use.
#pragma once

#include <string>

namespace headrace {

// Affinity and the control groups' quotas, one per physical core; at least 1.
int usable_cores();

// Processors that the control groups of a process allow, rounded up: the least quota from its own
// group to the top, cgroup v1 and v2. `root` stands for `/`. 0 where nothing limits it.
int quota_cores(const std::string& root);

}  // namespace headrace
