/* The layout of the public structs, frozen: compiling this file is the check. A field that moves here breaks every program that was compiled with an
 * older header; new fields go to the end, and EG_ABI_MINOR goes up. */
#include <stddef.h>

#include "edgegen.h"

#define FROZEN(type, field, offset) _Static_assert(offsetof(type, field) == (offset), #type "." #field " moved")
#define SIZE(type, size) _Static_assert(sizeof(type) == (size), "the size of " #type " changed")

#if UINTPTR_MAX == UINT64_MAX
enum { P = 8 };
#else
enum { P = 4 };
#endif
/* Where 64-bit fields are aligned to 8, as on every ABI that is supported (x86-64, aarch64, armhf). */
#define UP(offset) (((offset) + 7) / 8 * 8)

SIZE(eg_message, 512);

FROZEN(eg_allocator, struct_size, 0);
FROZEN(eg_allocator, reserved, 4);
FROZEN(eg_allocator, context, 8);
FROZEN(eg_allocator, allocate, 8 + P);
FROZEN(eg_allocator, release, 8 + 2 * P);

FROZEN(eg_open_options, struct_size, 0);
FROZEN(eg_open_options, flags, 4);
FROZEN(eg_open_options, allocator, 8);

FROZEN(eg_model_info, struct_size, 0);
FROZEN(eg_model_info, trusted_pickle, 4);
FROZEN(eg_model_info, name, 8);
FROZEN(eg_model_info, summary, 8 + P);
FROZEN(eg_model_info, licence, 8 + 2 * P);
FROZEN(eg_model_info, producer, 8 + 3 * P);
FROZEN(eg_model_info, bytes, 8 + 4 * P);
FROZEN(eg_model_info, conditions, 16 + 4 * P);
FROZEN(eg_model_info, components, 20 + 4 * P);
FROZEN(eg_model_info, programs, 24 + 4 * P);
FROZEN(eg_model_info, variants, 28 + 4 * P);
FROZEN(eg_model_info, low, 32 + 4 * P);
FROZEN(eg_model_info, high, 40 + 4 * P);
FROZEN(eg_model_info, image, 48 + 4 * P);
FROZEN(eg_model_info, rank, 52 + 4 * P);
FROZEN(eg_model_info, shape, 56 + 4 * P);
FROZEN(eg_model_info, elements, 56 + 4 * P + 8 * EG_MAX_RANK);
SIZE(eg_model_info, 64 + 4 * P + 8 * EG_MAX_RANK);

FROZEN(eg_condition_info, has, 4);
FROZEN(eg_condition_info, name, 8);
FROZEN(eg_condition_info, summary, 8 + P);
FROZEN(eg_condition_info, dtype, 8 + 2 * P);
FROZEN(eg_condition_info, rank, 12 + 2 * P);
FROZEN(eg_condition_info, shape, 16 + 2 * P);
FROZEN(eg_condition_info, minimum, 16 + 2 * P + 8 * EG_MAX_RANK);
FROZEN(eg_condition_info, maximum, 24 + 2 * P + 8 * EG_MAX_RANK);
FROZEN(eg_condition_info, default_value, 32 + 2 * P + 8 * EG_MAX_RANK);
FROZEN(eg_condition_info, null_value, 40 + 2 * P + 8 * EG_MAX_RANK);

FROZEN(eg_component_info, inputs, 4);
FROZEN(eg_component_info, outputs, 8);
FROZEN(eg_component_info, reserved, 12);
FROZEN(eg_component_info, name, 16);

FROZEN(eg_tensor_info, dtype, 4);
FROZEN(eg_tensor_info, name, 8);
FROZEN(eg_tensor_info, rank, 8 + P);
FROZEN(eg_tensor_info, reserved, 12 + P);
FROZEN(eg_tensor_info, shape, UP(16 + P));

FROZEN(eg_program_info, steps, 4);
FROZEN(eg_program_info, name, 8);
FROZEN(eg_program_info, instructions, 8 + P);
FROZEN(eg_program_info, evaluations, 12 + P);
FROZEN(eg_program_info, states, 16 + P);
FROZEN(eg_program_info, reserved, 20 + P);
FROZEN(eg_program_info, conditions, UP(24 + P));

FROZEN(eg_variant_info, golden, 4);
FROZEN(eg_variant_info, name, 8);
FROZEN(eg_variant_info, engine, 8 + P);
FROZEN(eg_variant_info, providers, 8 + 2 * P);
FROZEN(eg_variant_info, milliseconds, 8 + 3 * P);
FROZEN(eg_variant_info, bytes, 8 + 4 * P);
FROZEN(eg_variant_info, fused, 16 + 4 * P);
FROZEN(eg_variant_info, threads, 20 + 4 * P);

FROZEN(eg_tensor, dtype, 4);
FROZEN(eg_tensor, name, 8);
FROZEN(eg_tensor, data, 8 + P);
FROZEN(eg_tensor, bytes, 8 + 2 * P);
FROZEN(eg_tensor, rank, 8 + 3 * P);
FROZEN(eg_tensor, reserved, 12 + 3 * P);
FROZEN(eg_tensor, shape, UP(16 + 3 * P));

FROZEN(eg_session_options, threads, 4);
FROZEN(eg_session_options, batch, 8);
FROZEN(eg_session_options, reserved, 12);
FROZEN(eg_session_options, variant, 16);
FROZEN(eg_session_options, onnxruntime, 16 + P);
FROZEN(eg_session_options, component, 16 + 2 * P);
FROZEN(eg_session_options, component_user, 16 + 3 * P);
FROZEN(eg_session_options, log, 16 + 4 * P);
FROZEN(eg_session_options, log_user, 16 + 5 * P);

FROZEN(eg_session_info, batch, 4);
FROZEN(eg_session_info, variant, 8);
FROZEN(eg_session_info, engine, 8 + P);

FROZEN(eg_run_options, flags, 4);
FROZEN(eg_run_options, seed, 8);
FROZEN(eg_run_options, program, 16);
FROZEN(eg_run_options, steps, 16 + P);
FROZEN(eg_run_options, batch, 20 + P);
FROZEN(eg_run_options, noise, 24 + P);
FROZEN(eg_run_options, noise_elements, 24 + 2 * P);
FROZEN(eg_run_options, on_step, 24 + 3 * P);
FROZEN(eg_run_options, user, 24 + 4 * P);

FROZEN(eg_report, evaluations, 4);
FROZEN(eg_report, seconds, 8);
FROZEN(eg_report, network_seconds, 16);
FROZEN(eg_report, program, 24);
FROZEN(eg_report, variant, 24 + P);
FROZEN(eg_report, batch, 24 + 2 * P);
FROZEN(eg_report, reserved, 28 + 2 * P);

FROZEN(eg_golden, passed, 4);
FROZEN(eg_golden, program, 8);
FROZEN(eg_golden, rmse, UP(8 + P));
FROZEN(eg_golden, tolerance, UP(8 + P) + 8);
