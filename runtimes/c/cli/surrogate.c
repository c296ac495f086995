#include "surrogate.h"

#include <string.h>

static float of_half(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  float value = (float)(exponent == 0 ? mantissa : mantissa + 1024);
  for (int e = exponent == 0 ? 1 : exponent; e < 25; ++e) value *= 0.5f;
  for (int e = exponent; e > 25; --e) value *= 2.0f;
  return half & 0x8000 ? -value : value;
}

/* Rounded to the nearest, ties to even; |value| is below 4. */
static uint16_t to_half(float value) {
  const uint16_t sign = value < 0.0f ? 0x8000 : 0;
  float size = value < 0.0f ? -value : value;
  int exponent = 15;
  for (; size >= 2.0f; size *= 0.5f) ++exponent;
  for (; size < 1.0f && exponent > 1; size *= 2.0f) --exponent;
  const float scaled = size * 1024.0f;
  int mantissa = (int)scaled;
  const float rest = scaled - (float)mantissa;
  if (rest > 0.5f || (rest == 0.5f && mantissa % 2 == 1)) ++mantissa;
  return (uint16_t)(sign | (mantissa >= 1024 ? (exponent << 10) + mantissa - 1024 : mantissa));
}

/* Element `at` of a tensor as float32. */
static float element(const eg_tensor *tensor, size_t at) {
  switch (tensor->dtype) {
    case EG_FLOAT32: return ((const float *)tensor->data)[at];
    case EG_FLOAT64: return (float)((const double *)tensor->data)[at];
    case EG_FLOAT16: return of_half(((const uint16_t *)tensor->data)[at]);
    case EG_INT64: return (float)((const int64_t *)tensor->data)[at];
    case EG_INT32: return (float)((const int32_t *)tensor->data)[at];
    case EG_INT8: return (float)((const int8_t *)tensor->data)[at];
    default: return (float)((const uint8_t *)tensor->data)[at];
  }
}

static void store(const eg_tensor *tensor, size_t at, float value) {
  switch (tensor->dtype) {
    case EG_FLOAT32: ((float *)tensor->data)[at] = value; break;
    case EG_FLOAT64: ((double *)tensor->data)[at] = (double)value; break;
    case EG_FLOAT16: ((uint16_t *)tensor->data)[at] = to_half(value); break;
    case EG_INT64: ((int64_t *)tensor->data)[at] = (int64_t)value; break;
    case EG_INT32: ((int32_t *)tensor->data)[at] = (int32_t)value; break;
    case EG_INT8: ((int8_t *)tensor->data)[at] = (int8_t)value; break;
    default: ((uint8_t *)tensor->data)[at] = value != 0.0f; break;
  }
}

static size_t per_row(const eg_tensor *tensor, size_t rows, size_t *row_stride) {
  size_t count = 1;
  for (uint32_t i = 0; i < tensor->rank; ++i) count *= (size_t)tensor->shape[i];
  const int batched = tensor->rank > 0 && (size_t)tensor->shape[0] == rows;
  *row_stride = batched ? count / rows : 0;
  return batched ? count / rows : count;
}

int32_t surrogate(void *user, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs, uint32_t output_count) {
  (void)user;
  (void)component;
  for (uint32_t o = 0; o < output_count; ++o) {
    const size_t rows = (size_t)outputs[o].shape[0];
    size_t stride;
    const size_t n = per_row(&outputs[o], rows, &stride);
    for (size_t row = 0; row < rows; ++row) {
      for (size_t j = 0; j < n; ++j) {
        float total = 0.0f, weight = 1.0f;
        for (uint32_t k = 0; k < input_count; ++k, weight *= 0.5f) {
          size_t row_stride;
          const size_t period = per_row(&inputs[k], rows, &row_stride);
          const float v = element(&inputs[k], row * row_stride + j % period), size = v < 0.0f ? -v : v;
          const float term = v / (1.0f + size) * weight;
          total = k == 0 ? term : total + term;
        }
        store(&outputs[o], row * n + j, total);
      }
    }
  }
  return 0;
}
