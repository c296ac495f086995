// T3 and T4: every truncation of a sound bundle, and every one of its bits flipped, is rejected.
//
//   test-flips BUNDLE [FIRST_BYTE STEP]     flips of every STEP-th byte's bits from FIRST_BYTE on (0 1: all)
#include <cstring>

#include "kit.h"

namespace {

eg_status status_of(const char *data, size_t size) {
  eg_open_options options = EG_OPEN_OPTIONS_INIT;
  options.flags = EG_OPEN_BORROWED;
  eg_model *model = nullptr;
  const eg_status status = eg_open_memory(data, size, &options, &model, nullptr);
  eg_close(model);
  return status;
}

}  // namespace

int main(int count, char **words) {
  REQUIRE(count == 2 || count == 4, "usage: test-flips BUNDLE [FIRST_BYTE STEP]");
  std::string bundle = read_file(words[1]);
  const size_t first = count == 4 ? number(words[2]) : 0, step = count == 4 ? number(words[3]) : 1;
  REQUIRE(status_of(bundle.data(), bundle.size()) == EG_OK, "the bundle itself is not sound");
  size_t cuts = 0, flips = 0;
  for (size_t size = 0; size < bundle.size() && size <= 65536; ++size, ++cuts) {
    REQUIRE(status_of(bundle.data(), size) == EG_TRUNCATED, "cut to %zu bytes: %d", size, status_of(bundle.data(), size));
  }
  for (size_t i = first; i < bundle.size(); i += step) {
    for (int bit = 0; bit < 8; ++bit, ++flips) {
      bundle[i] = static_cast<char>(bundle[i] ^ 1 << bit);
      REQUIRE(status_of(bundle.data(), bundle.size()) != EG_OK, "bit %d of byte %zu may be flipped", bit, i);
      bundle[i] = static_cast<char>(bundle[i] ^ 1 << bit);
    }
  }
  std::printf("%zu truncations, %zu flips\n", cuts, flips);
}
