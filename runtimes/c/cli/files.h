/* Files that edgegen-run reads and writes: arrays as .npy (numpy's format 1.0), pictures as .pgm and .ppm. */
#ifndef EDGEGEN_CLI_FILES_H
#define EDGEGEN_CLI_FILES_H

#include "edgegen.h"

/* Read a .npy file (little-endian, C order) into `tensor`: dtype, rank, shape, bytes, and data, which the caller frees. Returns NULL, or what is wrong. */
const char *read_npy(const char *path, eg_tensor *tensor);

/* Write float32[rank sizes]. Returns NULL, or what is wrong. */
const char *write_npy(const char *path, const float *data, const int64_t *shape, uint32_t rank);

/* Write a batch of images [batch, 1 or 3, height, width], values from low to high, as one picture with the images side by side. Returns NULL, or what is
 * wrong. */
const char *write_picture(const char *path, const float *data, uint32_t batch, const int64_t *shape, double low, double high);

#endif
