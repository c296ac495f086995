/* edgegen.h: the C interface of libedgegen, the runtime of .edgegen bundles.
 *
 * A bundle holds a generative model: networks, the small programs that turn noise into samples with them, and what was measured. Open it
 * once, make a session per thread, generate:
 *
 *     eg_model *model = NULL;
 *     eg_session *session = NULL;
 *     eg_message why;
 *     float image[28 * 28];
 *     if (eg_open("digits.edgegen", NULL, &model, &why) || eg_session_create(model, NULL, &session, &why)) puts(why.text);
 *     eg_set_number(session, "label", 3);
 *     if (eg_generate(session, NULL, image, 28 * 28)) puts(eg_last_error(session));
 *     eg_session_destroy(session);
 *     eg_close(model);
 *
 * Threads: an eg_model is immutable and may be shared by any number of threads; an eg_session is for one thread at a time; eg_cancel may be
 * called from any thread.
 *
 * Statuses: every function that can fail returns an eg_status. EG_OK is 0 and means that all outputs hold valid data. After any other status
 * outputs are as they were, except where an entry says otherwise. A message says what was expected, what was found and what to do.
 *
 * Strings are UTF-8 and end in NUL. Those that the library returns belong to the handle that they came from and live as long as it does.
 *
 * Structs begin with struct_size, set by their EG_..._INIT. Later versions append fields only: the library reads and writes as many bytes as
 * struct_size says, and bytes behind the fields that it knows must be zero.
 *
 * Memory: all memory of the library comes from the allocator given to eg_open. The second and later runs of a program on a session allocate
 * nothing. ONNX Runtime has an allocator of its own.
 */
#ifndef EDGEGEN_H
#define EDGEGEN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define EG_API __attribute__((visibility("default")))
#else
#define EG_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface. A library of the same major version and an equal or higher minor version serves a program compiled with it. */
#define EG_ABI_MAJOR 1
#define EG_ABI_MINOR 0

/* Axes of a tensor: the batch and up to six sizes, and one in reserve. */
#define EG_MAX_RANK 8

/* Most samples of one run. */
#define EG_MAX_BATCH 65536

/* What a function returns: 1xx an argument, 2xx a file, 3xx a resource, 4xx an engine, 5xx a state, 6xx cancelled. Numbers are never reused; the
 * same numbers are .code of the Python package's errors. */
typedef int32_t eg_status;
enum {
  EG_OK = 0,
  EG_BAD_ARGUMENT = 100,     /* NULL where it is not allowed, a struct_size that is none, an unknown flag, a misaligned pointer */
  EG_BAD_SHAPE = 101,        /* a tensor of other sizes, or a buffer that is not exactly as large as what goes in or out */
  EG_BAD_DTYPE = 102,        /* a tensor of another dtype */
  EG_OUT_OF_RANGE = 103,     /* a number outside what is allowed: batch, steps, a condition's value, a program's number in float32 */
  EG_UNKNOWN_NAME = 104,     /* no program, condition or output of that name; or a condition without a default that was not set */
  EG_NONFINITE = 105,        /* NaN or infinity in an input, in what a network returned, or in the sample */
  EG_BAD_RECIPE = 106,       /* (the compiler's) */
  EG_CANNOT_OPEN = 200,      /* the file is absent, not readable, or not a regular file */
  EG_TRUNCATED = 201,        /* the file is shorter than it says */
  EG_NOT_A_BUNDLE = 202,     /* another kind of file */
  EG_BAD_VERSION = 203,      /* a bundle of another format version */
  EG_BAD_HEADER = 204,
  EG_LIMIT = 205,            /* more of something than the format allows */
  EG_CORRUPT = 206,          /* a hash differs: the file is damaged */
  EG_BAD_MANIFEST = 207,
  EG_NOT_CANONICAL = 208,
  EG_BAD_TABLE = 209,
  EG_INCONSISTENT = 210,     /* parts that do not fit each other; a network that is not what the manifest says */
  EG_BAD_PROGRAM = 211,
  EG_CANNOT_WRITE = 212,     /* (the compiler's) */
  EG_NO_MEMORY = 300,
  EG_NO_SPACE = 301,         /* (the compiler's) */
  EG_BACKEND_MISSING = 400,  /* libonnxruntime was not found */
  EG_BACKEND_FAILED = 401,   /* the engine, or the caller's component function, reported a failure */
  EG_NO_VARIANT = 402,       /* no variant of that name, or none that this device can run */
  EG_EXPORT_FAILED = 403,    /* (the compiler's) */
  EG_BACKEND_TOO_OLD = 404,  /* libonnxruntime is older than 1.20 */
  EG_PROVIDER_MISSING = 405, /* this libonnxruntime lacks an execution provider that the variant asks for */
  EG_BAD_STATE = 500,        /* nothing to get yet; a program with states outside a stream, or without in one */
  EG_GATE_FAILED = 501,      /* (the compiler's) */
  EG_BUSY = 502,             /* the session is in a call, of another thread or of the one whose callback this is; nothing was done */
  EG_CANCELLED = 600         /* eg_cancel, or the step function, stopped the run */
};

/* Element types of tensors. */
typedef int32_t eg_dtype;
enum {
  EG_FLOAT32 = 1,
  EG_FLOAT64 = 2,
  EG_FLOAT16 = 3,
  EG_INT64 = 4,
  EG_INT32 = 5,
  EG_INT8 = 6,
  EG_UINT8 = 7,
  EG_BOOL = 8
};

typedef struct eg_model eg_model;
typedef struct eg_session eg_session;

/* A reason in words, for functions that return no handle to ask. Owned by the caller; always ends in NUL. */
#define EG_MESSAGE_SIZE 512
typedef struct eg_message {
  char text[EG_MESSAGE_SIZE];
} eg_message;

/* The interface version of the loaded library: major * 65536 + minor. Never fails. */
EG_API uint32_t eg_abi_version(void);

/* The library's own version, such as "0.1.0". Static; never fails. */
EG_API const char *eg_version(void);

/* A status in words, such as "corrupt: a hash differs". Static; "unknown status" for numbers that are none. Never fails. */
EG_API const char *eg_status_str(eg_status status);

/* Where memory comes from. allocate returns NULL if it has none, and a block aligned to `alignment` (a power of two, at most 64) otherwise;
 * release gets back what allocate gave with the same size and alignment, and is never called with NULL. Both may be called from any thread that
 * uses the library, several at once, and must not call it. */
typedef struct eg_allocator {
  uint32_t struct_size;
  uint32_t reserved; /* 0 */
  void *context;     /* passed on; may be NULL */
  void *(*allocate)(void *context, size_t size, size_t alignment);
  void (*release)(void *context, void *block, size_t size, size_t alignment);
} eg_allocator;
#define EG_ALLOCATOR_INIT {sizeof(eg_allocator), 0, NULL, NULL, NULL}

/* eg_open: map the file instead of reading it. For files that nobody changes while the model is open; if one is changed, what happens is undefined. */
#define EG_OPEN_MAPPED 1u
/* eg_open_memory: use the caller's bytes, which stay as they are until the model and its sessions are gone, instead of a copy. */
#define EG_OPEN_BORROWED 2u

typedef struct eg_open_options {
  uint32_t struct_size;
  uint32_t flags;                /* EG_OPEN_... or 0 */
  const eg_allocator *allocator; /* copied; NULL for malloc and free */
} eg_open_options;
#define EG_OPEN_OPTIONS_INIT {sizeof(eg_open_options), 0, NULL}

/* Open a bundle: read it, check every byte of it (runtimes/FORMAT.md, section 6), close the file.
 *
 * path: a regular file. options: NULL for the defaults. model: receives the handle, NULL on failure. message: receives the reason on failure;
 * may be NULL. Blocks while it reads and hashes. Any bytes end in EG_OK or an exact status, without code from the file being run.
 * Memory: the file's size (nothing with EG_OPEN_MAPPED) and at most 1 MiB, before any network is opened.
 * Returns EG_BAD_ARGUMENT, EG_NO_MEMORY, or a status from 200 to 211. */
EG_API eg_status eg_open(const char *path, const eg_open_options *options, eg_model **model, eg_message *message);

/* eg_open for a bundle in memory: `size` bytes, copied unless options say EG_OPEN_BORROWED. With EG_OPEN_BORROWED and bytes that do not begin at
 * a multiple of 64, each session copies the networks' weights. */
EG_API eg_status eg_open_memory(const void *bytes, size_t size, const eg_open_options *options, eg_model **model, eg_message *message);

/* Give a model up. Its memory goes when its last session goes. NULL is allowed. */
EG_API void eg_close(eg_model *model);

/* ---- What is inside. Each function fills `info`, whose struct_size the caller has set; strings belong to the model.
 *      Returns EG_OK, EG_BAD_ARGUMENT, or EG_OUT_OF_RANGE for an index that is too large. ---- */

typedef struct eg_model_info {
  uint32_t struct_size;
  uint32_t trusted_pickle; /* 1 if the weights came from a pickle that the builder chose to trust */
  const char *name;
  const char *summary;
  const char *licence;  /* notes on licences of weights and data */
  const char *producer; /* what wrote the bundle */
  uint64_t bytes;       /* of the file */
  uint32_t conditions;  /* counts, for the functions below */
  uint32_t components;
  uint32_t programs;
  uint32_t variants;
  double low; /* the range of a sample's values */
  double high;
  uint32_t image; /* 1: a sample is an image [channels, height, width] */
  uint32_t rank;  /* of one sample */
  int64_t shape[EG_MAX_RANK];
  uint64_t elements; /* of one sample */
} eg_model_info;
#define EG_MODEL_INFO_INIT {sizeof(eg_model_info), 0, NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, 0.0, 0.0, 0, 0, {0}, 0}
EG_API eg_status eg_model_describe(const eg_model *model, eg_model_info *info);

/* A tensor that the caller chooses, such as a class or a goal. */
#define EG_HAS_MINIMUM 1u
#define EG_HAS_MAXIMUM 2u
#define EG_HAS_DEFAULT 4u
#define EG_HAS_NULL 8u
typedef struct eg_condition_info {
  uint32_t struct_size;
  uint32_t has; /* EG_HAS_...: which of the numbers below there are */
  const char *name;
  const char *summary;
  eg_dtype dtype;
  uint32_t rank;              /* without the batch */
  int64_t shape[EG_MAX_RANK]; /* without the batch */
  double minimum;             /* inclusive */
  double maximum;             /* inclusive */
  double default_value;
  double null_value; /* what guidance feeds its unconditional branch; allowed although out of range */
} eg_condition_info;
#define EG_CONDITION_INFO_INIT {sizeof(eg_condition_info), 0, NULL, NULL, 0, 0, {0}, 0.0, 0.0, 0.0, 0.0}
EG_API eg_status eg_condition_describe(const eg_model *model, uint32_t index, eg_condition_info *info);

/* A network; its tensors by eg_component_tensor. */
typedef struct eg_component_info {
  uint32_t struct_size;
  uint32_t inputs;
  uint32_t outputs;
  uint32_t reserved;
  const char *name;
} eg_component_info;
#define EG_COMPONENT_INFO_INIT {sizeof(eg_component_info), 0, 0, 0, NULL}
EG_API eg_status eg_component_describe(const eg_model *model, uint32_t index, eg_component_info *info);

typedef struct eg_tensor_info {
  uint32_t struct_size;
  eg_dtype dtype;
  const char *name;
  uint32_t rank;
  uint32_t reserved;
  int64_t shape[EG_MAX_RANK]; /* -1: the batch */
} eg_tensor_info;
#define EG_TENSOR_INFO_INIT {sizeof(eg_tensor_info), 0, NULL, 0, 0, {0}}
/* index: below inputs + outputs of the component; its inputs come first. */
EG_API eg_status eg_component_tensor(const eg_model *model, uint32_t component, uint32_t index, eg_tensor_info *info);

/* A way from noise to a sample; number 0 is the default. */
typedef struct eg_program_info {
  uint32_t struct_size;
  uint32_t steps;
  const char *name;
  uint32_t instructions;
  uint32_t evaluations; /* of networks, in all */
  uint32_t states;      /* above 0: a program for eg_stream_step */
  uint32_t reserved;
  uint64_t conditions; /* bit i: it reads condition i */
} eg_program_info;
#define EG_PROGRAM_INFO_INIT {sizeof(eg_program_info), 0, NULL, 0, 0, 0, 0, 0}
EG_API eg_status eg_program_describe(const eg_model *model, uint32_t index, eg_program_info *info);

/* A compiled choice, the best first. */
typedef struct eg_variant_info {
  uint32_t struct_size;
  uint32_t golden; /* known answers, for eg_self_test */
  const char *name;
  const char *engine;    /* such as "onnxruntime" */
  const char *providers; /* execution providers before the CPU, separated by commas; "" for none */
  const char *milliseconds; /* what the builder measured for the default program, as written; NULL if it did not */
  uint64_t bytes;           /* of its networks and weights */
  uint32_t fused;           /* programs that it holds as one network each, which eg_generate takes where it can */
  uint32_t threads;         /* of the engine: what was fastest where it was measured; 0 for one per core */
} eg_variant_info;
#define EG_VARIANT_INFO_INIT {sizeof(eg_variant_info), 0, NULL, NULL, NULL, NULL, 0, 0, 0}
EG_API eg_status eg_variant_describe(const eg_model *model, uint32_t index, eg_variant_info *info);

/* A JSON document of the bundle: "recipe", "report" or "measured". json: receives its text, which does NOT end in NUL; size: its length. Floats in
 * it are hexadecimal strings. Returns EG_UNKNOWN_NAME if there is none, or the status of what is wrong with it. */
EG_API eg_status eg_document(const eg_model *model, const char *name, const char **json, size_t *size);

/* ---- Sessions ---- */

/* A tensor in the caller's memory, row-major without gaps. Components get arrays of it, so later versions append nothing to it. */
typedef struct eg_tensor {
  uint32_t struct_size;
  eg_dtype dtype;
  const char *name;
  void *data;   /* aligned to its elements */
  size_t bytes; /* exactly elements * bytes of one */
  uint32_t rank;
  uint32_t reserved; /* 0 */
  int64_t shape[EG_MAX_RANK];
} eg_tensor;
#define EG_TENSOR_INIT {sizeof(eg_tensor), 0, NULL, NULL, 0, 0, 0, {0}}

/* A network run by the caller: an accelerator's own library, or a test. Reads `inputs`, fills the data of `outputs`, both in the order of the manifest
 * with shapes set (outputs: those that programs use). Called on the session's thread. Returns 0, or another number for EG_BACKEND_FAILED. */
typedef int32_t (*eg_component_fn)(void *user, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs,
                                   uint32_t output_count);

/* Receives a line that a person should know, such as that a variant was passed over and why. */
typedef void (*eg_log_fn)(void *user, const char *line);

typedef struct eg_session_options {
  uint32_t struct_size;
  uint32_t threads;            /* of the engine; 0 for the variant's, or one per core */
  uint32_t batch;              /* most samples per run, 1 .. EG_MAX_BATCH; 0 for 1 */
  uint32_t reserved;           /* 0 */
  const char *variant;         /* NULL for the first that this device can run */
  const char *onnxruntime;     /* path of libonnxruntime; NULL to look in the usual places (docs/c_api.md) */
  eg_component_fn component;   /* runs every network, with no engine; NULL for the variant's engine */
  void *component_user;        /* passed on */
  eg_log_fn log;               /* NULL for silence */
  void *log_user;              /* passed on */
} eg_session_options;
#define EG_SESSION_OPTIONS_INIT {sizeof(eg_session_options), 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL}

/* Open a model's networks on this device. Sessions of one model with equal options share the engine and its weights, and differ in everything else.
 *
 * options: NULL for the defaults; copied. session: receives the handle, NULL on failure. message: as of eg_open. Blocks while the engine loads.
 * Returns EG_BAD_ARGUMENT, EG_OUT_OF_RANGE (batch), EG_NO_MEMORY, EG_NO_VARIANT, EG_BACKEND_MISSING, EG_BACKEND_TOO_OLD, EG_PROVIDER_MISSING,
 * EG_BACKEND_FAILED, or EG_INCONSISTENT for a network that is not what the manifest says. */
EG_API eg_status eg_session_create(eg_model *model, const eg_session_options *options, eg_session **session, eg_message *message);

/* Destroy a session. NULL is allowed. No other call on it may be running, eg_cancel included. */
EG_API void eg_session_destroy(eg_session *session);

/* The bytes that a session with these options allocates for a program (NULL: the default program) when it first runs at `batch` samples of the
 * options, fused or not, engine and networks apart. bytes: receives them. message: as of eg_open. Allocates and releases while it computes.
 * Returns EG_BAD_ARGUMENT, EG_OUT_OF_RANGE (batch), EG_UNKNOWN_NAME (program), EG_NO_MEMORY. */
EG_API eg_status eg_session_memory(eg_model *model, const eg_session_options *options, const char *program, uint64_t *bytes, eg_message *message);

typedef struct eg_session_info {
  uint32_t struct_size;
  uint32_t batch;
  const char *variant;
  const char *engine; /* such as "ONNX Runtime 1.32.0, /usr/lib/libonnxruntime.so.1"; "the caller's function" */
} eg_session_info;
#define EG_SESSION_INFO_INIT {sizeof(eg_session_info), 0, NULL, NULL}
EG_API eg_status eg_session_describe(const eg_session *session, eg_session_info *info);

/* The reason why the last call on this session failed; "" if it did not. Valid until the next call on the session. NULL gives "". Calls that return
 * EG_BUSY, and eg_session_describe, leave it alone. */
EG_API const char *eg_last_error(const eg_session *session);

/* Set a condition for the runs to come: of the condition's dtype, and of its shape (one value for all samples) or with the samples in front (then
 * runs have that batch). The data are copied. Returns EG_UNKNOWN_NAME, EG_BAD_DTYPE, EG_BAD_SHAPE, EG_OUT_OF_RANGE, EG_NONFINITE. */
EG_API eg_status eg_set(eg_session *session, const eg_tensor *value);

/* Set every element of a condition to a number, which must fit its dtype. */
EG_API eg_status eg_set_number(eg_session *session, const char *name, double value);

/* Back to the default of a condition, or of all of them where name is NULL. */
EG_API eg_status eg_unset(eg_session *session, const char *name);

/* Called when a step is done: `state` holds `elements` numbers, the sample so far, valid during the call. Returns EG_CONTINUE to go on; anything else
 * cancels the run. */
#define EG_CONTINUE 0
typedef int32_t (*eg_step_fn)(void *user, uint32_t done, uint32_t total, const float *state, size_t elements);

/* eg_run_options.flags: let NaN and infinity pass through networks and into the sample. The caller's inputs must still be finite. */
#define EG_RUN_NONFINITE 1u
/* eg_run_options.flags: run step by step also where the variant holds the program as one network. A run with a step function does so anyway. */
#define EG_RUN_STEPWISE 2u

typedef struct eg_run_options {
  uint32_t struct_size;
  uint32_t flags;
  uint64_t seed;       /* equal seeds give equal noise on every device; sample k does not depend on the batch */
  const char *program; /* NULL: the one of `steps`, else the default */
  uint32_t steps;      /* picks the program of so many steps where `program` is NULL; 0 for no choice */
  uint32_t batch;      /* samples, at most the session's; 0 for 1 */
  const float *noise;  /* standard normals [batch, sample shape] to start from, or NULL for the seed's */
  size_t noise_elements;
  eg_step_fn on_step; /* NULL for none */
  void *user;         /* passed on */
} eg_run_options;
#define EG_RUN_OPTIONS_INIT {sizeof(eg_run_options), 0, 0, NULL, 0, 0, NULL, 0, NULL, NULL}

/* Generate samples.
 *
 * options: NULL for seed 0, the default program and one sample. sample: receives float32[batch, sample shape]; may be NULL (then see eg_get), may
 * overlap with the noise. elements: of `sample`, exactly batch * sample elements. Blocks until done, cancelled or failed; on failure nothing of the
 * caller's is changed, and the session is as before.
 * Returns also EG_UNKNOWN_NAME, EG_OUT_OF_RANGE, EG_BAD_SHAPE, EG_NONFINITE, EG_BAD_STATE, EG_BACKEND_FAILED, EG_CANCELLED, EG_NO_MEMORY. */
EG_API eg_status eg_generate(eg_session *session, const eg_run_options *options, float *sample, size_t elements);

/* The next step of a stream: one call of a program with states (options->program NULL: the first that has states), whose states continue from the step
 * before. Program, seed, batch and flags are those of the stream's first step, whatever later steps say, except that naming another program is
 * EG_BAD_STATE; `noise` must be NULL. A step that fails leaves the stream as it was. */
EG_API eg_status eg_stream_step(eg_session *session, const eg_run_options *options, float *sample, size_t elements);

/* Begin again: the next eg_stream_step is the first of a new stream. */
EG_API eg_status eg_stream_reset(eg_session *session);

/* Stop the run that is going on in the session, if one is: it returns EG_CANCELLED after the instruction, or the part of a network, that it is in. A run
 * goes on from the moment that eg_generate, eg_stream_step or eg_self_test is called until it returns; at other times nothing happens. From any thread;
 * returns at once. NULL is allowed. */
EG_API void eg_cancel(eg_session *session);

/* An output of the last run, by name ("sample" is always one), as float32. Calls that were refused before they ran do not count as runs.
 * elements: of `data`, exactly as many as there are.
 * Returns EG_BAD_STATE if the last run failed or there was none, EG_UNKNOWN_NAME, EG_BAD_SHAPE. */
EG_API eg_status eg_get(eg_session *session, const char *name, float *data, size_t elements);

/* Output number `index` of the last run, for eg_get: its name, and its shape with the batch in front. Returns EG_BAD_STATE if the last run failed or there
 * was none, EG_OUT_OF_RANGE behind the last output. */
EG_API eg_status eg_output_describe(eg_session *session, uint32_t index, eg_tensor_info *info);

/* Figures of the last run. Returns EG_BAD_STATE if it failed or there was none. */
typedef struct eg_report {
  uint32_t struct_size;
  uint32_t evaluations;   /* of networks */
  double seconds;         /* in all */
  double network_seconds; /* spent in networks */
  const char *program;
  const char *variant;
  uint32_t batch; /* samples that it made */
  uint32_t reserved;
} eg_report;
#define EG_REPORT_INIT {sizeof(eg_report), 0, 0.0, 0.0, NULL, NULL, 0, 0}
EG_API eg_status eg_session_report(eg_session *session, eg_report *report);

/* Of one component (by its index in the model) in the last run: evaluations and seconds. The seconds of a program that ran fused are shared out by
 * evaluations. */
EG_API eg_status eg_session_component_report(eg_session *session, uint32_t component, uint32_t *evaluations, double *seconds);

/* A known answer of the bundle, run on this device: seed 0, one sample, default conditions. Conditions that were set stay set. */
typedef struct eg_golden {
  uint32_t struct_size;
  uint32_t passed; /* 1 if rmse <= tolerance */
  const char *program;
  double rmse; /* root mean square difference from the expected sample */
  double tolerance;
} eg_golden;
#define EG_GOLDEN_INIT {sizeof(eg_golden), 0, NULL, 0.0, 0.0}
/* index: below eg_variant_info.golden of the session's variant. A difference is no failure: see `passed`. */
EG_API eg_status eg_self_test(eg_session *session, uint32_t index, eg_golden *golden);

#ifdef __cplusplus
}
#endif
#endif
