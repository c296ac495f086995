// Standard normals with the same bits in every runtime (FORMAT.md, section 5).
#pragma once

#include <cstddef>
#include <cstdint>

namespace eg {

// out[i] = normal i of (seed, draw, call), for i < count.
void normals(uint64_t seed, uint32_t draw, uint32_t call, float *out, size_t count);

// Philox4x32-10 on one counter; for tests.
void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

}  // namespace eg
