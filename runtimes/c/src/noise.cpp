// Written as loops over lanes that compilers turn into vector instructions of any width: every operation rounds by itself, so the width does not
// matter. Compiled without fused multiply-add.
#include "noise.h"

#include <cstring>

namespace eg {

namespace {

constexpr size_t kLanes = 16;  // Philox blocks at a time: four words, two pairs, four normals each

struct Words {
  uint32_t w[4][kLanes];
};

void rounds(Words &v, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    for (size_t i = 0; i < kLanes; ++i) {
      const uint64_t p0 = uint64_t{0xD2511F53} * v.w[0][i], p1 = uint64_t{0xCD9E8D57} * v.w[2][i];
      const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ v.w[1][i] ^ key0, c2 = static_cast<uint32_t>(p0 >> 32) ^ v.w[3][i] ^ key1;
      v.w[1][i] = static_cast<uint32_t>(p1);
      v.w[3][i] = static_cast<uint32_t>(p0);
      v.w[0][i] = c0;
      v.w[2][i] = c2;
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
}

// Box and Muller on a pair of words, without libm: the order of the operations is FORMAT.md's.
void pairs(const uint32_t *radius_words, const uint32_t *angle_words, float *first, float *second) {
  for (size_t i = 0; i < kLanes; ++i) {
    const uint32_t r = radius_words[i], a = angle_words[i];
    const double u = (static_cast<double>(r) + 0.5) * 0x1p-32;
    uint64_t bits;
    std::memcpy(&bits, &u, sizeof bits);
    // Added to the bits, this carries into the exponent where the mantissa is above the square root of 2's.
    const int64_t exponent = static_cast<int64_t>((bits + (0xFFFFFFFFFFFFF - 0x6A09E667F3BCD)) >> 52) - 1023;
    const uint64_t mantissa_bits = bits - (static_cast<uint64_t>(exponent) << 52);
    double m;
    std::memcpy(&m, &mantissa_bits, sizeof m);
    const double s = (m - 1.0) / (m + 1.0);
    const double z = s * s;
    double log = (1.0 / 11.0) * z;
    log = (log + 1.0 / 9.0) * z;
    log = (log + 1.0 / 7.0) * z;
    log = (log + 1.0 / 5.0) * z;
    log = log + 1.0 / 3.0;
    log = log * z;
    log = log * s;
    log = log + s;
    log = log + log;
    log = log + static_cast<double>(static_cast<int32_t>(exponent)) * 0x1.62e42fefa39efp-1;
    const double radius = __builtin_sqrt(-2.0 * log);

    const double f = static_cast<double>(static_cast<int32_t>(a & 0x3FFFFFFF)) - (0x1p29 - 0.5);
    const double theta = f * (0x1.921fb54442d18p+0 * 0x1p-30);
    const double y = theta * theta;
    double sine = (-1.0 / 39916800.0) * y;
    sine = (sine + 1.0 / 362880.0) * y;
    sine = (sine + -1.0 / 5040.0) * y;
    sine = (sine + 1.0 / 120.0) * y;
    sine = sine + -1.0 / 6.0;
    sine = sine * y;
    sine = sine * theta;
    sine = sine + theta;
    double cosine = (-1.0 / 3628800.0) * y;
    cosine = (cosine + 1.0 / 40320.0) * y;
    cosine = (cosine + -1.0 / 720.0) * y;
    cosine = (cosine + 1.0 / 24.0) * y;
    cosine = cosine + -1.0 / 2.0;
    cosine = cosine * y;
    cosine = cosine + 1.0;
    const float out_sine = static_cast<float>(sine * radius);
    float out_cosine = static_cast<float>(cosine * radius);
    out_cosine = (a & 0x80000000) != 0 ? -out_cosine : out_cosine;
    const bool swapped = (a & 0x40000000) != 0;
    first[i] = swapped ? out_sine : out_cosine;
    second[i] = swapped ? out_cosine : out_sine;
  }
}

}  // namespace

void normals(uint64_t seed, uint32_t draw, uint32_t call, float *out, size_t count) {
  const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  Words words;
  float normal[4][kLanes];
  for (size_t begin = 0; begin < count; begin += 4 * kLanes) {
    for (size_t i = 0; i < kLanes; ++i) {
      const uint64_t block = begin / 4 + i;
      words.w[0][i] = static_cast<uint32_t>(block);
      words.w[1][i] = static_cast<uint32_t>(block >> 32);
      words.w[2][i] = draw;
      words.w[3][i] = call;
    }
    rounds(words, key0, key1);
    pairs(words.w[0], words.w[1], normal[0], normal[1]);
    pairs(words.w[2], words.w[3], normal[2], normal[3]);
    const size_t left = count - begin < 4 * kLanes ? count - begin : 4 * kLanes;
    for (size_t i = 0; i < left; ++i) out[begin + i] = normal[i % 4][i / 4];
  }
}

void philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
  Words words{};
  for (int k = 0; k < 4; ++k) words.w[k][0] = counter[k];
  rounds(words, key[0], key[1]);
  for (int k = 0; k < 4; ++k) out[k] = words.w[k][0];
}

}  // namespace eg
