/* The exact surrogate of FORMAT.md, section 8, as a component function: shows that the interpreter gives the same bits here as elsewhere. */
#ifndef EDGEGEN_CLI_SURROGATE_H
#define EDGEGEN_CLI_SURROGATE_H

#include "edgegen.h"

#ifdef __cplusplus
extern "C" {
#endif
int32_t surrogate(void *user, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs, uint32_t output_count);

/* SHA-256 of some bytes as 64 hexadecimal digits and a NUL. */
void hex_digest(const void *data, size_t size, char out[65]);
#ifdef __cplusplus
}
#endif

#endif
