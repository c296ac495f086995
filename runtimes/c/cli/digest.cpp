#include "sha256.h"
#include "surrogate.h"

void hex_digest(const void *data, size_t size, char out[65]) {
  const eg::Digest digest = eg::sha256(data, size);
  for (size_t i = 0; i < digest.size(); ++i) {
    out[2 * i] = "0123456789abcdef"[digest[i] >> 4];
    out[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
  }
  out[64] = '\0';
}
