#include "laws.h"

#include <algorithm>
#include <cstring>

namespace eg {

namespace {

constexpr size_t kBlock = 1024;  // numbers that stay in the first cache while terms are added to them

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

bool is_nan(float value) { return value != value; }

// The quantile of the absolute values in `scratch`, which it reorders: linear between neighbours, NaN above everything.
float quantile_of(float *scratch, size_t n, double quantile) {
  uint32_t *keys = reinterpret_cast<uint32_t *>(scratch);  // of numbers without a sign, bits order as the numbers do
  for (size_t i = 0; i < n; ++i) {
    uint32_t key;
    std::memcpy(&key, scratch + i, sizeof key);
    key &= 0x7FFFFFFF;
    std::memcpy(keys + i, &key, sizeof key);
  }
  const double position = quantile * static_cast<double>(n - 1);
  const size_t low = static_cast<size_t>(position);
  std::nth_element(keys, keys + low, keys + n);
  const float below = float_of(keys[low]);
  float above = below;
  if (low + 1 < n) above = float_of(*std::min_element(keys + low + 1, keys + n));
  return below + (above - below) * static_cast<float>(position - static_cast<double>(low));
}

// Where in the mask element i of a sample is looked up.
size_t mask_index(size_t i, size_t inner, size_t mask_channels) { return mask_channels == 1 ? i % inner : i; }

float reduced(Reduction kind, const float *x, size_t n, double quantile, float *scratch) {
  if (n == 0) return 0.0f;
  if (kind == Reduction::quantile) {
    if (scratch != x) std::memcpy(scratch, x, n * sizeof(float));
    return quantile_of(scratch, n, quantile);
  }
  double sum = 0.0;
  if (kind == Reduction::norm) {
    for (size_t i = 0; i < n; ++i) sum = i == 0 ? static_cast<double>(x[i]) * x[i] : sum + static_cast<double>(x[i]) * x[i];
    return static_cast<float>(__builtin_sqrt(sum));
  }
  for (size_t i = 0; i < n; ++i) sum = i == 0 ? static_cast<double>(x[i]) : sum + static_cast<double>(x[i]);
  const double mean = sum / static_cast<double>(n);
  if (kind == Reduction::mean) return static_cast<float>(mean);
  if (n < 2) return 0.0f;
  double squares = 0.0;
  for (size_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(x[i]) - mean;
    squares = i == 0 ? d * d : squares + d * d;
  }
  return static_cast<float>(__builtin_sqrt(squares / static_cast<double>(n - 1)));
}

uint16_t half_of(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));  // NaN stays NaN
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);                              // 65520 and above
  if (magnitude >= 0x38800000) {                                                                        // normal numbers, from 2^-14
    const uint32_t odd = magnitude >> 13 & 1;
    return static_cast<uint16_t>(sign | (magnitude + 0xFFF + odd - (112u << 23)) >> 13);
  }
  if (magnitude < 0x33000000) return static_cast<uint16_t>(sign);  // below half of the smallest
  const uint32_t shift = 126 - (magnitude >> 23), mantissa = (magnitude & 0x7FFFFF) | 0x800000;
  const uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
  return static_cast<uint16_t>(sign | (kept + (rest > half || (rest == half && (kept & 1) != 0) ? 1 : 0)));
}

float of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = half >> 10 & 31, mantissa = half & 0x3FF;
  if (exponent == 31) return float_of(sign | 0x7F800000 | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

template <class To, class From>
void cast_all(void *out, const void *x, size_t n) {
  To *to = static_cast<To *>(out);
  const From *from = static_cast<const From *>(x);
  for (size_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}

template <class From>
void to_float(void *out, const void *x, size_t n) {
  cast_all<float, From>(out, x, n);
}

}  // namespace

void lincomb(float *out, const Addend *terms, size_t count, float bias, bool has_bias, size_t n) {
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t size = std::min(kBlock, n - begin);
    float *__restrict o = out + begin;
    const float *x = terms[0].x + begin;
    const float c = terms[0].c;
    for (size_t i = 0; i < size; ++i) o[i] = x[i] * c;
    for (size_t k = 1; k < count; ++k) {
      const float *y = terms[k].x + begin;
      const float d = terms[k].c;
      for (size_t i = 0; i < size; ++i) o[i] = o[i] + y[i] * d;
    }
    if (has_bias) {
      for (size_t i = 0; i < size; ++i) o[i] = o[i] + bias;
    }
  }
}

void slincomb(float *out, const Addend *terms, size_t count, size_t rows, size_t per_row) {
  for (size_t row = 0; row < rows; ++row) {
    float *__restrict o = out + row * per_row;
    for (size_t k = 0; k < count; ++k) {
      const float *x = terms[k].x + row * per_row;
      const float c = terms[k].scalar == nullptr ? terms[k].c : terms[k].scalar[row] * terms[k].c;
      if (k == 0) {
        for (size_t i = 0; i < per_row; ++i) o[i] = x[i] * c;
      } else {
        for (size_t i = 0; i < per_row; ++i) o[i] = o[i] + x[i] * c;
      }
    }
  }
}

void scaled(float *__restrict out, const float *__restrict x, float scale, size_t n) {
  for (size_t i = 0; i < n; ++i) out[i] = x[i] * scale;
}

void clamp(float *__restrict out, const float *__restrict x, float low, float high, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    const float raised = x[i] < low ? low : x[i];
    out[i] = raised > high ? high : raised;
  }
}

void threshold(float *out, const float *x, double quantile, float floor, float ceiling, size_t rows, size_t per_row, float *scratch) {
  for (size_t row = 0; row < rows; ++row) {
    const float *__restrict from = x + row * per_row;
    float *__restrict to = out + row * per_row;
    std::memcpy(scratch, from, per_row * sizeof(float));
    float s = quantile_of(scratch, per_row, quantile);
    if (s < floor) s = floor;
    if (s > ceiling) s = ceiling;
    for (size_t i = 0; i < per_row; ++i) {
      const float raised = from[i] < -s ? -s : from[i];
      to[i] = (raised > s ? s : raised) / s;
    }
  }
}

void muladd(float *out, const float *x, const float *scale, const float *shift, size_t count, size_t rows, size_t channels, size_t inner) {
  for (size_t row = 0; row < rows; ++row) {
    for (size_t c = 0; c < channels; ++c) {
      const float *__restrict from = x + (row * channels + c) * inner;
      float *__restrict to = out + (row * channels + c) * inner;
      const float a = scale[count == 1 ? 0 : c], b = shift[count == 1 ? 0 : c];
      for (size_t i = 0; i < inner; ++i) to[i] = from[i] * a + b;
    }
  }
}

void select(float *out, const float *mask, const float *a, const float *b, size_t rows, size_t channels, size_t inner, size_t mask_channels) {
  for (size_t row = 0; row < rows; ++row) {
    for (size_t c = 0; c < channels; ++c) {
      const float *__restrict m = mask + (row * mask_channels + (mask_channels == 1 ? 0 : c)) * inner;
      const size_t at = (row * channels + c) * inner;
      for (size_t i = 0; i < inner; ++i) out[at + i] = m[i] != 0.0f ? a[at + i] : b[at + i];
    }
  }
}

void reduce(float *out, Reduction kind, const float *x, const float *mask, double quantile, size_t rows, size_t channels, size_t inner, size_t mask_channels, float *scratch) {
  const size_t per_row = channels * inner;
  for (size_t row = 0; row < rows; ++row) {
    const float *from = x + row * per_row;
    size_t kept = per_row;
    if (mask != nullptr) {
      kept = 0;
      for (size_t i = 0; i < per_row; ++i) {
        if (mask[row * mask_channels * inner + mask_index(i, inner, mask_channels)] != 0.0f) scratch[kept++] = from[i];
      }
      from = scratch;
    }
    out[row] = reduced(kind, from, kept, quantile, scratch);
  }
}

void scalar(float *out, Arithmetic kind, const float *a, float imm_a, const float *b, float imm_b, size_t rows) {
  for (size_t row = 0; row < rows; ++row) {
    const float x = a != nullptr ? a[row] : imm_a, y = b != nullptr ? b[row] : imm_b;
    switch (kind) {
      case Arithmetic::add: out[row] = x + y; break;
      case Arithmetic::sub: out[row] = x - y; break;
      case Arithmetic::mul: out[row] = x * y; break;
      case Arithmetic::div: out[row] = x / y; break;
      case Arithmetic::min: out[row] = x < y || is_nan(x) ? x : y; break;
      case Arithmetic::max: out[row] = x > y || is_nan(x) ? x : y; break;
      case Arithmetic::sqrt: out[row] = __builtin_sqrtf(x); break;
    }
  }
}

size_t first_nonfinite(const float *x, size_t n) {
  for (size_t begin = 0; begin < n; begin += kBlock) {
    const size_t end = std::min(begin + kBlock, n);
    uint32_t found = 0;
    for (size_t i = begin; i < end; ++i) {
      uint32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      found |= (bits & 0x7F800000) == 0x7F800000 ? 1u : 0u;
    }
    if (found == 0) continue;
    for (size_t i = begin; i < end; ++i) {
      if ((bits_of(x[i]) & 0x7F800000) == 0x7F800000) return i;
    }
  }
  return n;
}

void convert(void *out, eg_dtype out_dtype, const void *x, eg_dtype x_dtype, size_t n) {
  if (out_dtype == x_dtype) {
    std::memcpy(out, x, n * bytes_of(x_dtype));
    return;
  }
  if (x_dtype == EG_FLOAT32) {  // a register, into a network
    switch (out_dtype) {
      case EG_FLOAT64: return cast_all<double, float>(out, x, n);
      case EG_FLOAT16:
        for (size_t i = 0; i < n; ++i) static_cast<uint16_t *>(out)[i] = half_of(static_cast<const float *>(x)[i]);
        return;
      case EG_INT64: return cast_all<int64_t, float>(out, x, n);
      case EG_INT32: return cast_all<int32_t, float>(out, x, n);
      case EG_INT8: return cast_all<int8_t, float>(out, x, n);
      case EG_UINT8:
      default: return cast_all<uint8_t, float>(out, x, n);
    }
  }
  switch (x_dtype) {  // out of a network, into a register
    case EG_FLOAT64: return to_float<double>(out, x, n);
    case EG_FLOAT16:
      for (size_t i = 0; i < n; ++i) static_cast<float *>(out)[i] = of_half(static_cast<const uint16_t *>(x)[i]);
      return;
    case EG_INT64: return to_float<int64_t>(out, x, n);
    case EG_INT32: return to_float<int32_t>(out, x, n);
    case EG_INT8: return to_float<int8_t>(out, x, n);
    default: return to_float<uint8_t>(out, x, n);
  }
}

void fill(void *out, eg_dtype dtype, float value, size_t n) {
  unsigned char one[8];
  convert(one, dtype, &value, EG_FLOAT32, 1);
  const size_t size = bytes_of(dtype);
  for (size_t i = 0; i < n; ++i) std::memcpy(static_cast<unsigned char *>(out) + i * size, one, size);
}

}  // namespace eg
