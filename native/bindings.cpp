#include <nanobind/nanobind.h>
namespace headrace { const char* version(); }
NB_MODULE(_native, m) { m.def("version", &headrace::version); }
