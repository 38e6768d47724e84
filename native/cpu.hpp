// What this processor can run.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace headrace {

std::string cpu_name();

// The instruction sets that this processor and its operating system support, best first.
std::vector<const Kernels*> supported_kernels();

// The kernels named `name`, or the best when it is empty. Throws std::invalid_argument when they
// are unknown or not supported here.
const Kernels& choose_kernels(const std::string& name);

}  // namespace headrace
