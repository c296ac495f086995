// T9: a component's output of every rank up to 4, every size among the corners of the integers, every dtype, has exactly the status that it must have.
//
//   test-sizes BUNDLE      a bundle whose component `f` has outputs; one more is added
#include "kit.h"

namespace {

const char *const kSizes[] = {"0", "1", "32768", "65536", "2147483647", "2147483648", "4294967295", "9223372036854775807", "18446744073709551615"};
constexpr size_t kCount = sizeof kSizes / sizeof *kSizes;
const char *const kDtypes[] = {"float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"};

// By arithmetic of its own: sizes are 1 .. 2^31 - 1, and the product is at most 2^28.
eg_status expected_of(const std::vector<size_t> &sizes) {
  const double values[kCount] = {0, 1, 32768, 65536, 2147483647, 2147483648.0, 4294967295.0, 9223372036854775807.0, 18446744073709551615.0};
  double product = 1;
  for (const size_t s : sizes) {
    if (s == 0 || s > 4) return EG_BAD_MANIFEST;
    product *= values[s];
  }
  return product > 268435456.0 ? EG_INCONSISTENT : EG_OK;
}

}  // namespace

int main(int count, char **words) {
  REQUIRE(count == 2, "usage: test-sizes BUNDLE");
  const Parts parts = take_apart(read_file(words[1]));
  const size_t at = parts.manifest.find("\"outputs\":[") + 11;
  size_t cases = 0;
  for (const char *dtype : kDtypes) {
    for (size_t rank = 1; rank <= 4; ++rank) {
      std::vector<size_t> sizes(rank, 0);
      for (bool more = true; more;) {
        std::string shape;
        for (const size_t s : sizes) shape += (shape.empty() ? "" : ",") + std::string(kSizes[s]);
        Parts changed = parts;
        changed.manifest.insert(at, std::string("{\"dtype\":\"") + dtype + "\",\"name\":\"added\",\"shape\":[" + shape + "]},");
        const std::string bundle = put_together(changed);
        eg_model *model = nullptr;
        eg_message why;
        const eg_status status = eg_open_memory(bundle.data(), bundle.size(), nullptr, &model, &why);
        REQUIRE(status == expected_of(sizes), "%s[%s]: status %d (%s), expected %d", dtype, shape.c_str(), status, why.text, expected_of(sizes));
        eg_close(model);
        ++cases;
        size_t axis = 0;
        while (axis < rank && ++sizes[axis] == kCount) sizes[axis++] = 0;
        more = axis < rank;
      }
    }
  }
  std::printf("%zu shapes\n", cases);
}
