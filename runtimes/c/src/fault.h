// Faults: how everything inside the library fails. A Fault is thrown where something is wrong and becomes a status and a message at the C
// boundary (api.cpp). Memory that runs out is std::bad_alloc, thrown by Memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "edgegen.h"

namespace eg {

using View = std::string_view;

struct Fault {
  eg_status status;
  char text[EG_MESSAGE_SIZE];
};

// Throw a Fault whose text is made as by printf. Strings from files go in as %.*s of SHOW(view), which cuts them.
[[noreturn]] void fail(eg_status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

inline int shown(View text) { return text.size() < 80 ? static_cast<int>(text.size()) : 80; }
#define EG_SHOW(view) ::eg::shown(view), (view).data()

// A check of what comes from outside. Each can be switched off by itself in the build that shows that every one of them is needed
// (tests/deleted_checks.cpp): a check whose deletion no test notices is not a check.
#ifdef EG_DELETABLE_CHECKS
struct Check {
  const char *file;
  int line;
  const char *text;
  bool deleted;
};
#define EG_CHECK(condition, status, ...)                                                                             \
  do {                                                                                                               \
    static ::eg::Check eg_check __attribute__((section("eg_checks"), used)) = {__FILE__, __LINE__, #condition, false}; \
    if (!(condition) && !eg_check.deleted) ::eg::fail(status, __VA_ARGS__);                                            \
  } while (0)
#else
#define EG_CHECK(condition, status, ...)                     \
  do {                                                       \
    if (!(condition)) ::eg::fail(status, __VA_ARGS__);       \
  } while (0)
#endif

}  // namespace eg
