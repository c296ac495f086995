/* edgegen-run: run, check, time and look into a bundle from a shell, with no Python.
 *
 * Exit codes: 0 ok, 1 error, 2 usage (names, values), 4 this device cannot run it, 130 interrupted. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "edgegen.h"
#include "files.h"
#include "surrogate.h"

static const char usage[] =
    "usage: edgegen-run FILE [options] [-o OUT]    generate samples\n"
    "       edgegen-run verify FILE [options]      check every hash, then the golden vectors on this device\n"
    "       edgegen-run bench FILE [options]       time it on this device\n"
    "       edgegen-run inspect FILE               say what is inside\n"
    "options:\n"
    "  --seed N          0 .. 2^64 - 1; equal seeds give equal noise on every device (0)\n"
    "  --steps N         pick the program with so many steps\n"
    "  --program NAME    pick a program by name\n"
    "  --batch N         number of samples (1)\n"
    "  --set NAME=VALUE  a condition: a number, numbers separated by commas, or @FILE.npy; may repeat\n"
    "  -o OUT            out.npy, or .pgm / .ppm for images (out.npy)\n"
    "  --variant NAME    a variant by name; default: the first that runs here\n"
    "  --threads N       threads of the engine; 0 for what was measured, or one per core (0)\n"
    "  --stepwise        run step by step also where the variant holds the program as one network\n"
    "  --onnxruntime PATH  of libonnxruntime, if it is not in a usual place\n"
    "  --warmup N, --iters N  of bench (5, 50)\n"
    "  --surrogate       run the exact surrogate of FORMAT.md, section 8, in place of the networks\n"
    "  --digest          print the SHA-256 of the sample's bytes instead of writing it\n";

enum { MAX_SETTINGS = 64 };

typedef struct {
  const char *command, *file, *output;
  const char *settings[MAX_SETTINGS];
  int setting_count, warmup, iters, exact, digest;
  eg_session_options session;
  eg_run_options run;
} arguments;

/* Ctrl-C ends the run that is going on, inside a network too; a second one ends the program. */
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static eg_session *running; /* under guard, as the next */
static int interrupted;

static void *watch(void *signals) {
  int number = 0;
  if (sigwait(signals, &number) != 0) return NULL;
  const struct timespec pause = {0, 20000000};
  do { /* again and again: the run may not have begun yet */
    pthread_mutex_lock(&guard);
    interrupted = 1;
    eg_cancel(running);
    pthread_mutex_unlock(&guard);
  } while (sigtimedwait(signals, NULL, &pause) < 0);
  _exit(130);
}

/* The session that Ctrl-C cancels; NULL for none. Returns whether there was a Ctrl-C before. */
static int set_running(eg_session *session) {
  pthread_mutex_lock(&guard);
  running = session;
  const int before = interrupted;
  pthread_mutex_unlock(&guard);
  return before;
}

static void close_session(eg_session *session) {
  set_running(NULL);
  eg_session_destroy(session);
}

static void on_log(void *user, const char *line) {
  (void)user;
  fprintf(stderr, "edgegen-run: %s\n", line);
}

static int exit_code(eg_status status) {
  if (status == EG_OK) return 0;
  if (status == EG_CANCELLED) return 130; /* nothing but Ctrl-C cancels */
  if (status == EG_BACKEND_MISSING || status == EG_BACKEND_TOO_OLD || status == EG_PROVIDER_MISSING || status == EG_NO_VARIANT) return 4;
  return status < 200 && status != EG_NONFINITE ? 2 : 1;
}

static int failed(eg_status status, const char *what, const char *why) {
  fprintf(stderr, "edgegen-run: %s: %s (%s, %d)\n", what, why, eg_status_str(status), (int)status);
  return exit_code(status);
}

static int wrong(const char *what, const char *why) {
  fprintf(stderr, "edgegen-run: %s: %s\n", what, why);
  return 2;
}

static int has_suffix(const char *path, const char *suffix) {
  const size_t size = strlen(path), end = strlen(suffix);
  return size >= end && strcmp(path + size - end, suffix) == 0;
}

static int is_picture(const char *path) { return has_suffix(path, ".pgm") || has_suffix(path, ".ppm"); }

/* A whole number from 0 to `most`; returns 0 if the text is none. */
static int whole(const char *text, unsigned long long most, unsigned long long *value) {
  char *end;
  if (text == NULL || *text < '0' || *text > '9') return 0;
  *value = strtoull(text, &end, 10);
  char again[32];
  snprintf(again, sizeof again, "%llu", *value); /* finds overflow and leading zeros */
  return *end == '\0' && *value <= most && strcmp(again, text) == 0;
}

static int parse(int count, char **words, arguments *a) {
  static const eg_session_options session = EG_SESSION_OPTIONS_INIT;
  static const eg_run_options run = EG_RUN_OPTIONS_INIT;
  memset(a, 0, sizeof *a);
  a->session = session;
  a->run = run;
  a->output = "out.npy";
  a->command = "run";
  a->warmup = 5;
  a->iters = 50;
  int at = 1;
  if (at < count && (strcmp(words[at], "verify") == 0 || strcmp(words[at], "bench") == 0 || strcmp(words[at], "inspect") == 0)) a->command = words[at++];
  for (; at < count; ++at) {
    const char *word = words[at], *value = at + 1 < count ? words[at + 1] : NULL;
    unsigned long long number = 0;
    if (strcmp(word, "--surrogate") == 0) {
      a->exact = 1;
    } else if (strcmp(word, "--digest") == 0) {
      a->digest = 1;
    } else if (strcmp(word, "--stepwise") == 0) {
      a->run.flags |= EG_RUN_STEPWISE;
    } else if (word[0] != '-') {
      if (a->file != NULL) return wrong(word, "only one file is expected");
      a->file = word;
    } else if (value == NULL) {
      return wrong(word, "expected a value behind it, or an option; see edgegen-run --help");
    } else {
      ++at;
      if (strcmp(word, "--seed") == 0) {
        if (!whole(value, ~0ull, &number)) return wrong("--seed", "expected a whole number in 0 .. 2^64 - 1");
        a->run.seed = number;
      } else if (strcmp(word, "--steps") == 0) {
        if (!whole(value, 65536, &number) || number == 0) return wrong("--steps", "expected a whole number in 1 .. 65536");
        a->run.steps = (uint32_t)number;
      } else if (strcmp(word, "--batch") == 0) {
        if (!whole(value, EG_MAX_BATCH, &number) || number == 0) return wrong("--batch", "expected a whole number in 1 .. 65536");
        a->run.batch = a->session.batch = (uint32_t)number;
      } else if (strcmp(word, "--threads") == 0) {
        if (!whole(value, 1024, &number)) return wrong("--threads", "expected a whole number in 0 .. 1024");
        a->session.threads = (uint32_t)number;
      } else if (strcmp(word, "--warmup") == 0) {
        if (!whole(value, 1000000, &number)) return wrong("--warmup", "expected a whole number");
        a->warmup = (int)number;
      } else if (strcmp(word, "--iters") == 0) {
        if (!whole(value, 1000000, &number) || number == 0) return wrong("--iters", "expected a whole number, at least 1");
        a->iters = (int)number;
      } else if (strcmp(word, "--program") == 0) {
        a->run.program = value;
      } else if (strcmp(word, "--variant") == 0) {
        a->session.variant = value;
      } else if (strcmp(word, "--onnxruntime") == 0) {
        a->session.onnxruntime = value;
      } else if (strcmp(word, "-o") == 0 || strcmp(word, "--output") == 0) {
        a->output = value;
      } else if (strcmp(word, "--set") == 0) {
        if (a->setting_count == MAX_SETTINGS) return wrong("--set", "at most 64 are read");
        a->settings[a->setting_count++] = value;
      } else {
        return wrong(word, "unknown option; see edgegen-run --help");
      }
    }
  }
  if (a->file == NULL) {
    fputs(usage, stderr);
    return 2;
  }
  if (!has_suffix(a->output, ".npy") && !is_picture(a->output)) return wrong(a->output, "expected a name that ends in .npy, .pgm or .ppm");
  a->session.log = on_log;
  if (a->exact) a->session.component = surrogate;
  return 0;
}

/* "1,2,3" as a tensor of the condition's dtype, one value per number; returns what is wrong. */
static const char *numbers(const char *text, eg_tensor *tensor) {
  size_t count = 1;
  for (const char *c = text; *c != '\0'; ++c) count += *c == ',';
  double *data = malloc(count * sizeof *data);
  if (data == NULL) return "out of memory";
  for (size_t i = 0; i < count; ++i) {
    char *end;
    data[i] = strtod(text, &end);
    if (end == text || (*end != (i + 1 < count ? ',' : '\0'))) {
      free(data);
      return "expected NAME=number, NAME=number,number,... or NAME=@FILE.npy";
    }
    text = end + 1;
  }
  tensor->data = data;
  tensor->bytes = count;
  return NULL;
}

/* Numbers in the dtype of a condition, in place; returns what is wrong. */
static const char *in_dtype(eg_tensor *tensor, eg_dtype dtype) {
  static const struct {
    double least, most; /* of whole numbers; 0 and 0 for floats */
    size_t bytes;
  } kinds[] = {{0, 0, 0}, {0, 0, 4}, {0, 0, 8}, {0, 0, 2}, {-9007199254740992.0, 9007199254740992.0, 8}, {-2147483648.0, 2147483647.0, 4}, {-128, 127, 1}, {0, 255, 1}, {0, 1, 1}};
  const double *from = tensor->data;
  const size_t count = tensor->bytes;
  if (dtype == EG_FLOAT16) return "give several float16 numbers as NAME=@FILE.npy";
  for (size_t i = 0; i < count; ++i) {
    const double v = from[i];
    if (kinds[dtype].most > 0 && !(v >= kinds[dtype].least && v <= kinds[dtype].most && v == (double)(long long)v)) return "a number does not fit the condition's dtype";
    if (dtype == EG_FLOAT32 && v - v == 0.0 && (v > 3.4028234663852886e38 || v < -3.4028234663852886e38)) return "a number does not fit the condition's dtype";
    switch (dtype) { /* each element is at most as large as a double, so what is still to be read is not yet overwritten */
      case EG_FLOAT64: break;
      case EG_FLOAT32: ((float *)tensor->data)[i] = (float)v; break;
      case EG_INT64: ((int64_t *)tensor->data)[i] = (int64_t)v; break;
      case EG_INT32: ((int32_t *)tensor->data)[i] = (int32_t)v; break;
      case EG_INT8: ((int8_t *)tensor->data)[i] = (int8_t)v; break;
      default: ((uint8_t *)tensor->data)[i] = (uint8_t)v;
    }
  }
  tensor->dtype = dtype;
  tensor->bytes = count * kinds[dtype].bytes;
  return NULL;
}

static int find_condition(const eg_model *model, const char *name, eg_condition_info *info) {
  for (uint32_t i = 0;; ++i) {
    const eg_condition_info fresh = EG_CONDITION_INFO_INIT;
    *info = fresh;
    if (eg_condition_describe(model, i, info) != EG_OK) return 0;
    if (strcmp(info->name, name) == 0) return 1;
  }
}

/* One --set. */
static int apply_setting(const eg_model *model, eg_session *session, const arguments *a, const char *setting) {
  char name[80];
  const char *value = strchr(setting, '=');
  if (value == NULL || (size_t)(value - setting) >= sizeof name) return wrong(setting, "expected NAME=number, NAME=number,number,... or NAME=@FILE.npy");
  memcpy(name, setting, (size_t)(value - setting));
  name[value++ - setting] = '\0';
  eg_condition_info condition;
  eg_tensor tensor = EG_TENSOR_INIT;
  tensor.name = name;
  eg_status status;
  if (!find_condition(model, name, &condition)) return failed(EG_UNKNOWN_NAME, name, "no condition of that name; see edgegen-run inspect");
  if (*value == '@') {
    const char *fault = read_npy(value + 1, &tensor);
    if (fault != NULL) return wrong(value + 1, fault);
  } else {
    const char *fault = numbers(value, &tensor);
    if (fault != NULL) return wrong(setting, fault);
    const size_t count = tensor.bytes;
    if (count == 1) {
      status = eg_set_number(session, name, *(double *)tensor.data);
      free(tensor.data);
      return status == EG_OK ? 0 : failed(status, setting, eg_last_error(session));
    }
    fault = in_dtype(&tensor, condition.dtype);
    if (fault != NULL) {
      free(tensor.data);
      return failed(EG_BAD_DTYPE, setting, fault);
    }
    size_t elements = 1;
    for (uint32_t i = 0; i < condition.rank; ++i) elements *= (size_t)condition.shape[i];
    const int samples = count != elements; /* one value for all, or one per sample */
    if (samples) tensor.shape[tensor.rank++] = a->run.batch > 0 ? a->run.batch : 1;
    for (uint32_t i = 0; i < condition.rank; ++i) tensor.shape[tensor.rank++] = condition.shape[i];
  }
  status = eg_set(session, &tensor);
  free(tensor.data);
  return status == EG_OK ? 0 : failed(status, setting, eg_last_error(session));
}

static int open_session(eg_model *model, const arguments *a, eg_session **session) {
  eg_message why;
  const eg_status status = eg_session_create(model, &a->session, session, &why);
  if (status != EG_OK) return failed(status, a->file, why.text);
  if (set_running(*session)) return failed(EG_CANCELLED, a->file, "interrupted");
  for (int i = 0; i < a->setting_count; ++i) {
    const int code = apply_setting(model, *session, a, a->settings[i]);
    if (code != 0) return code;
  }
  return 0;
}

static const char *write_samples(const char *path, const float *sample, uint32_t batch, const eg_model_info *info) {
  if (is_picture(path)) {
    if (!info->image) return "a picture of what is not an image; write .npy";
    return write_picture(path, sample, batch, info->shape, info->low, info->high);
  }
  int64_t shape[EG_MAX_RANK + 1] = {batch};
  memcpy(shape + 1, info->shape, info->rank * sizeof *shape);
  return write_npy(path, sample, shape, info->rank + 1);
}

static int run(eg_model *model, const arguments *a) {
  eg_session *session = NULL;
  int code = open_session(model, a, &session);
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  const uint32_t batch = a->run.batch > 0 ? a->run.batch : 1;
  const size_t elements = (size_t)info.elements * batch;
  float *sample = code == 0 ? malloc(elements * sizeof *sample) : NULL;
  if (code == 0 && sample == NULL) code = failed(EG_NO_MEMORY, a->file, "the samples do not fit into memory");
  if (code == 0) {
    const eg_status status = eg_generate(session, &a->run, sample, elements);
    if (status != EG_OK) code = failed(status, a->file, eg_last_error(session));
  }
  if (code == 0) {
    eg_report report = EG_REPORT_INIT;
    eg_session_report(session, &report);
    fprintf(stderr, "%s on %s: %u evaluations, %.3f ms\n", report.program, report.variant, report.evaluations, report.seconds * 1e3);
    if (a->digest) {
      char digest[65];
      hex_digest(sample, elements * sizeof *sample, digest);
      puts(digest);
    } else {
      const char *fault = write_samples(a->output, sample, batch, &info);
      if (fault != NULL) code = failed(EG_CANNOT_WRITE, a->output, fault);
      if (fault == NULL) puts(a->output);
    }
  }
  free(sample);
  close_session(session);
  return code;
}

/* Golden vectors of one variant, or of each. */
static int verify(eg_model *model, const arguments *a) {
  int code = 0, met = 0;
  for (uint32_t i = 0; code != 130; ++i) {
    eg_variant_info variant = EG_VARIANT_INFO_INIT;
    if (eg_variant_describe(model, i, &variant) != EG_OK) break;
    if (a->session.variant != NULL && strcmp(a->session.variant, variant.name) != 0) continue;
    met = 1;
    arguments one = *a;
    one.session.variant = variant.name;
    eg_session *session = NULL;
    int worst = open_session(model, &one, &session);
    const uint32_t count = worst == 0 ? variant.golden : 0;
    for (uint32_t g = 0; g < count && worst != 130; ++g) {
      eg_golden golden = EG_GOLDEN_INIT;
      const eg_status status = eg_self_test(session, g, &golden);
      if (status != EG_OK) {
        worst = failed(status, variant.name, eg_last_error(session));
        continue;
      }
      printf("%s %s RMSE %.3g tolerance %.3g %s\n", variant.name, golden.program, golden.rmse, golden.tolerance, golden.passed ? "ok" : "DIFFERS");
      if (!golden.passed) worst = 1;
    }
    close_session(session);
    if (worst != 0) code = worst;
  }
  if (!met) return failed(EG_NO_VARIANT, a->session.variant, "no variant of that name; see edgegen-run inspect");
  if (code == 0) puts(a->file);
  return code;
}

static int by_size(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static int bench(eg_model *model, const arguments *a) {
  eg_session *session = NULL;
  int code = open_session(model, a, &session);
  double *times = malloc(2 * (size_t)a->iters * sizeof *times);
  if (code == 0 && times == NULL) code = failed(EG_NO_MEMORY, a->file, "out of memory");
  eg_report report = EG_REPORT_INIT;
  for (int i = 0; code == 0 && i < a->warmup + a->iters; ++i) {
    eg_run_options options = a->run;
    options.seed = (uint64_t)i;
    const eg_status status = eg_generate(session, &options, NULL, 0);
    if (status != EG_OK) code = failed(status, a->file, eg_last_error(session));
    eg_session_report(session, &report);
    if (i < a->warmup) continue;
    times[i - a->warmup] = report.seconds * 1e3;
    times[a->iters + i - a->warmup] = 1.0 - report.network_seconds / report.seconds;
  }
  if (code == 0) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    qsort(times, (size_t)a->iters, sizeof *times, by_size);
    qsort(times + a->iters, (size_t)a->iters, sizeof *times, by_size);
    const int last = a->iters - 1;
    printf("%s %s batch %u: p50 %.3f ms, p90 %.3f ms, p99 %.3f ms, outside the networks %.2f%%, peak RSS %.0f MiB\n", report.variant, report.program, a->run.batch > 0 ? a->run.batch : 1u,
           times[last / 2], times[last * 9 / 10], times[last * 99 / 100], times[a->iters + last / 2] * 100.0, (double)use.ru_maxrss / 1024.0);
    puts(a->file);
  }
  free(times);
  close_session(session);
  return code;
}

static void print_shape(uint32_t rank, const int64_t *shape) {
  printf("[");
  for (uint32_t i = 0; i < rank; ++i) {
    if (shape[i] < 0) {
      printf("%sbatch", i > 0 ? ", " : "");
    } else {
      printf("%s%lld", i > 0 ? ", " : "", (long long)shape[i]);
    }
  }
  printf("]");
}

static const char *dtype_name(eg_dtype dtype) {
  static const char *const names[] = {"?", "float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"};
  return names[dtype];
}

static int inspect(const eg_model *model) {
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  printf("%s: %s\n%llu bytes, by %s\n", info.name, info.summary, (unsigned long long)info.bytes, info.producer);
  if (info.licence[0] != '\0') printf("licence: %s\n", info.licence);
  if (info.trusted_pickle) printf("made from a pickle checkpoint that its builder trusted\n");
  printf("sample: %s ", info.image ? "image" : "array");
  print_shape(info.rank, info.shape);
  printf(" from %g to %g\n", info.low, info.high);
  for (uint32_t i = 0; i < info.conditions; ++i) {
    eg_condition_info c = EG_CONDITION_INFO_INIT;
    eg_condition_describe(model, i, &c);
    printf("condition %s: %s", c.name, dtype_name(c.dtype));
    print_shape(c.rank, c.shape);
    if (c.has & EG_HAS_MINIMUM) printf(" from %g", c.minimum);
    if (c.has & EG_HAS_MAXIMUM) printf(" to %g", c.maximum);
    if (c.has & EG_HAS_DEFAULT) printf(", default %g", c.default_value);
    printf("%s%s\n", c.summary[0] != '\0' ? "; " : "", c.summary);
  }
  for (uint32_t i = 0; i < info.components; ++i) {
    eg_component_info c = EG_COMPONENT_INFO_INIT;
    eg_component_describe(model, i, &c);
    printf("component %s:\n", c.name);
    for (uint32_t k = 0; k < c.inputs + c.outputs; ++k) {
      eg_tensor_info t = EG_TENSOR_INFO_INIT;
      eg_component_tensor(model, i, k, &t);
      printf("  %s %s: %s", k < c.inputs ? "in " : "out", t.name, dtype_name(t.dtype));
      print_shape(t.rank, t.shape);
      printf("\n");
    }
  }
  for (uint32_t i = 0; i < info.programs; ++i) {
    eg_program_info p = EG_PROGRAM_INFO_INIT;
    eg_program_describe(model, i, &p);
    printf("program %s: %u steps, %u evaluations, %u instructions%s\n", p.name, p.steps, p.evaluations, p.instructions, p.states > 0 ? ", a stream" : "");
  }
  for (uint32_t i = 0; i < info.variants; ++i) {
    eg_variant_info v = EG_VARIANT_INFO_INIT;
    eg_variant_describe(model, i, &v);
    printf("variant %s: %s%s%s, %.2f MB, %u golden vectors", v.name, v.engine, v.providers[0] != '\0' ? " with " : "", v.providers, (double)v.bytes / 1e6, v.golden);
    if (v.fused > 0) printf(", %u programs fused", v.fused);
    if (v.threads > 0) printf(", %u threads", v.threads);
    if (v.milliseconds != NULL) printf(", %s ms where it was built", v.milliseconds);
    printf("\n");
  }
  return 0;
}

int main(int count, char **words) {
  if (count > 1 && (strcmp(words[1], "--help") == 0 || strcmp(words[1], "-h") == 0)) {
    fputs(usage, stdout);
    return 0;
  }
  if (count > 1 && strcmp(words[1], "--version") == 0) {
    printf("edgegen-run %s\n", eg_version());
    return 0;
  }
  arguments a;
  const int bad = parse(count, words, &a);
  if (bad != 0) return bad;
  sigset_t signals;
  pthread_t watcher;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, NULL);
  if (pthread_create(&watcher, NULL, watch, &signals) != 0) return wrong("edgegen-run", "a thread cannot be made");
  eg_model *model = NULL;
  eg_message why;
  const eg_status status = eg_open(a.file, NULL, &model, &why);
  if (status != EG_OK) return failed(status, status == EG_CANNOT_OPEN ? "open" : a.file, why.text);
  int code;
  if (strcmp(a.command, "verify") == 0) {
    code = verify(model, &a);
  } else if (strcmp(a.command, "bench") == 0) {
    code = bench(model, &a);
  } else if (strcmp(a.command, "inspect") == 0) {
    code = inspect(model);
  } else {
    code = run(model, &a);
  }
  eg_close(model);
  return code;
}
