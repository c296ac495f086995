// SHA-256 (FIPS 180-4), by the processor's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace eg {

using Digest = std::array<unsigned char, 32>;

Digest sha256(const void *data, size_t size);

// The same in plain C++ whatever the processor has; for tests.
Digest sha256_portable(const void *data, size_t size);

}  // namespace eg
