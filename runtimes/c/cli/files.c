#include "files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
  const char *letters;
  eg_dtype dtype;
  size_t bytes;
} kinds[] = {{"<f4", EG_FLOAT32, 4}, {"<f8", EG_FLOAT64, 8}, {"<f2", EG_FLOAT16, 2}, {"<i8", EG_INT64, 8}, {"<i4", EG_INT32, 4}, {"|i1", EG_INT8, 1}, {"|u1", EG_UINT8, 1}, {"|b1", EG_BOOL, 1}};

/* The sizes in "(2, 3)"; returns how many, or -1. */
static int parse_shape(const char *text, int64_t *shape) {
  int rank = 0;
  for (const char *at = text + 1; *at != ')';) {
    char *end;
    const long long size = strtoll(at, &end, 10);
    if (end == at || size < 0 || rank == EG_MAX_RANK) return -1;
    shape[rank++] = size;
    at = end + strspn(end, ", ");
  }
  return rank;
}

static const char *parse_header(const char *header, eg_tensor *tensor, size_t *element) {
  const char *descr = strstr(header, "'descr': '"), *order = strstr(header, "'fortran_order': False"), *shape = strstr(header, "'shape': (");
  if (descr == NULL || order == NULL || shape == NULL || strchr(shape, ')') == NULL) return "is not an array in C order that this program reads";
  tensor->dtype = 0;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
    if (strncmp(descr + 10, kinds[i].letters, 3) != 0 || descr[13] != '\'') continue;
    tensor->dtype = kinds[i].dtype;
    *element = kinds[i].bytes;
  }
  if (tensor->dtype == 0) return "holds a dtype that this program does not read";
  const int rank = parse_shape(shape + 9, tensor->shape);
  if (rank < 0) return "has a shape that this program does not read";
  tensor->rank = (uint32_t)rank;
  return NULL;
}

const char *read_npy(const char *path, eg_tensor *tensor) {
  char header[4096];
  unsigned char head[10];
  const char *fault = NULL;
  size_t element = 1, count = 1;
  FILE *file = fopen(path, "rb");
  if (file == NULL) return "cannot be opened";
  if (fread(head, 1, sizeof head, file) != sizeof head || memcmp(head, "\x93NUMPY\x01\x00", 8) != 0) {
    fault = "is not a .npy file of format 1.0";
  } else {
    const size_t size = (size_t)head[8] | (size_t)head[9] << 8;
    if (size >= sizeof header || fread(header, 1, size, file) != size) {
      fault = "has a header that this program does not read";
    } else {
      header[size] = '\0';
      fault = parse_header(header, tensor, &element);
    }
  }
  for (uint32_t i = 0; fault == NULL && i < tensor->rank; ++i) {
    if (tensor->shape[i] != 0 && count > SIZE_MAX / 16 / (size_t)tensor->shape[i]) fault = "is too large";
    count *= (size_t)tensor->shape[i];
  }
  if (fault == NULL) {
    tensor->bytes = count * element;
    tensor->data = malloc(tensor->bytes > 0 ? tensor->bytes : 1);
    if (tensor->data == NULL) fault = "does not fit into memory";
    if (fault == NULL && fread(tensor->data, 1, tensor->bytes, file) != tensor->bytes) {
      free(tensor->data);
      tensor->data = NULL;
      fault = "is shorter than its shape says";
    }
  }
  fclose(file);
  return fault;
}

/* Write everything, or leave what is there: to a file beside it first. */
static const char *write_whole(const char *path, const void *head, size_t head_size, const void *data, size_t size) {
  char beside[1024];
  struct stat about;
  if (snprintf(beside, sizeof beside, "%s.%ld.part", path, (long)getpid()) >= (int)sizeof beside) return "has too long a name";
  if (stat(path, &about) == 0 && !S_ISREG(about.st_mode)) return "is there and is not a regular file";
  FILE *file = fopen(beside, "wb");
  if (file == NULL) return "cannot be written";
  int good = fwrite(head, 1, head_size, file) == head_size && fwrite(data, 1, size, file) == size;
  good = fclose(file) == 0 && good;
  good = good && rename(beside, path) == 0;
  if (!good) remove(beside);
  return good ? NULL : "cannot be written";
}

const char *write_npy(const char *path, const float *data, const int64_t *shape, uint32_t rank) {
  char head[256] = "\x93NUMPY\x01";
  size_t at = 10, count = 1;
  at += (size_t)snprintf(head + at, sizeof head - at, "{'descr': '<f4', 'fortran_order': False, 'shape': (");
  for (uint32_t i = 0; i < rank; ++i) {
    at += (size_t)snprintf(head + at, sizeof head - at, "%lld,%s", (long long)shape[i], i + 1 < rank ? " " : "");
    count *= (size_t)shape[i];
  }
  at += (size_t)snprintf(head + at, sizeof head - at, "), }");
  while ((at + 1) % 64 != 0) head[at++] = ' ';
  head[at++] = '\n';
  head[7] = 0;
  head[8] = (char)((at - 10) & 0xFF);
  head[9] = (char)((at - 10) >> 8);
  return write_whole(path, head, at, data, count * sizeof(float));
}

const char *write_picture(const char *path, const float *data, uint32_t batch, const int64_t *shape, double low, double high) {
  const size_t channels = (size_t)shape[0], height = (size_t)shape[1], width = (size_t)shape[2], across = width * batch;
  unsigned char *bytes = malloc(channels * height * across);
  if (bytes == NULL) return "does not fit into memory";
  for (size_t k = 0; k < batch; ++k) {
    for (size_t c = 0; c < channels; ++c) {
      for (size_t y = 0; y < height; ++y) {
        for (size_t x = 0; x < width; ++x) {
          const double v = ((double)data[((k * channels + c) * height + y) * width + x] - low) / (high - low) * 255.0;
          bytes[(y * across + k * width + x) * channels + c] = (unsigned char)(v <= 0.0 ? 0.0 : v >= 255.0 ? 255.0 : v + 0.5);
        }
      }
    }
  }
  char head[64];
  const int size = snprintf(head, sizeof head, "P%c\n%zu %zu\n255\n", channels == 3 ? '6' : '5', across, height);
  const char *fault = write_whole(path, head, (size_t)size, bytes, channels * height * across);
  free(bytes);
  return fault;
}
