// Size arithmetic on numbers from outside: false on overflow, the result otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace eg {

inline bool add(uint64_t a, uint64_t b, uint64_t *sum) { return !__builtin_add_overflow(a, b, sum); }
inline bool multiply(uint64_t a, uint64_t b, uint64_t *product) { return !__builtin_mul_overflow(a, b, product); }

// The product of sizes, or 0xFFFFFFFFFFFFFFFF where it does not fit.
inline uint64_t product(const int64_t *sizes, size_t count) {
  uint64_t total = 1;
  for (size_t i = 0; i < count; ++i) {
    if (!multiply(total, static_cast<uint64_t>(sizes[i]), &total)) return UINT64_MAX;
  }
  return total;
}

}  // namespace eg
