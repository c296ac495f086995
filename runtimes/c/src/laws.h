// What each instruction does to numbers (FORMAT.md, section 4.1). Every operation rounds once, in the written order, in any vector width.
#pragma once

#include <cstddef>
#include <cstdint>

#include "program.h"

namespace eg {

// A term of LINCOMB or SLINCOMB: x times c, times the scalar of each sample if there is one.
struct Addend {
  const float *x;
  const float *scalar;
  float c;
};

void lincomb(float *out, const Addend *terms, size_t count, float bias, bool has_bias, size_t n);
void slincomb(float *out, const Addend *terms, size_t count, size_t rows, size_t per_row);
void scaled(float *out, const float *x, float scale, size_t n);
void clamp(float *out, const float *x, float low, float high, size_t n);
// scratch: per_row numbers.
void threshold(float *out, const float *x, double quantile, float floor, float ceiling, size_t rows, size_t per_row, float *scratch);
// count: of constants; 1, or one per channel.
void muladd(float *out, const float *x, const float *scale, const float *shift, size_t count, size_t rows, size_t channels, size_t inner);
// mask_channels: `channels`, or 1 for a mask that serves all of them.
void select(float *out, const float *mask, const float *a, const float *b, size_t rows, size_t channels, size_t inner, size_t mask_channels);
// mask: NULL for none. scratch: channels * inner numbers.
void reduce(float *out, Reduction kind, const float *x, const float *mask, double quantile, size_t rows, size_t channels, size_t inner, size_t mask_channels, float *scratch);
// a, b: NULL for the immediate.
void scalar(float *out, Arithmetic kind, const float *a, float imm_a, const float *b, float imm_b, size_t rows);

// The index of the first NaN or infinity, or n.
size_t first_nonfinite(const float *x, size_t n);

// out = x in another dtype, each number rounded once (to integers: exactly, where x was checked to be one).
void convert(void *out, eg_dtype out_dtype, const void *x, eg_dtype x_dtype, size_t n);

// Every element of out = value.
void fill(void *out, eg_dtype dtype, float value, size_t n);

}  // namespace eg
