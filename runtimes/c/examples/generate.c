/* Open a bundle, say what is inside, generate a sample, write it as an image or print its numbers. From the repository's root, after `make native`:
 *
 *   gcc -std=c99 -Iruntimes/c/include runtimes/c/examples/generate.c -o generate -Lbuild/native -ledgegen -Wl,-rpath,"$PWD/build/native"
 *   ./generate digits.edgegen label 3
 */
#include <stdio.h>
#include <stdlib.h>

#include "edgegen.h"

static int32_t progress(void *user, uint32_t done, uint32_t total, const float *sample, size_t elements) {
  (void)user, (void)sample, (void)elements;
  fprintf(stderr, "step %u of %u\n", done, total);
  return EG_CONTINUE; /* anything else cancels */
}

/* An image as sample.pgm, one channel below the other; numbers of anything else on stdout. */
static eg_status show(const eg_model_info *info, const float *sample) {
  FILE *file = info->image ? fopen("sample.pgm", "wb") : stdout;
  if (file == NULL) return EG_CANNOT_WRITE;
  if (info->image) fprintf(file, "P5 %d %d 255\n", (int)info->shape[2], (int)(info->shape[0] * info->shape[1]));
  for (size_t i = 0; i < info->elements; ++i) {
    const double grey = (sample[i] - info->low) / (info->high - info->low) * 255.0 + 0.5;
    if (info->image) fputc(grey < 0.0 ? 0 : grey > 255.0 ? 255 : (int)grey, file);
    if (!info->image) fprintf(file, "%.9g\n", sample[i]);
  }
  return fclose(file) == 0 ? EG_OK : EG_CANNOT_WRITE;
}

static eg_status generate(const eg_model *model, eg_session *session, const char *condition, const char *number) {
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  printf("%s: %s, %u numbers per sample\n", info.name, info.summary, (unsigned)info.elements);
  eg_condition_info about = EG_CONDITION_INFO_INIT;
  for (uint32_t i = 0; eg_condition_describe(model, i, &about) == EG_OK; ++i) printf("condition %s: %s\n", about.name, about.summary);
  eg_run_options options = EG_RUN_OPTIONS_INIT;
  options.seed = 1;
  options.on_step = progress;
  float *sample = malloc(info.elements * sizeof *sample);
  eg_status status = sample == NULL ? EG_NO_MEMORY : EG_OK;
  if (status == EG_OK && condition != NULL) status = eg_set_number(session, condition, strtod(number, NULL));
  if (status == EG_OK) status = eg_generate(session, &options, sample, info.elements);
  if (status == EG_OK) status = show(&info, sample);
  free(sample);
  return status;
}

int main(int count, char **words) {
  eg_model *model = NULL;
  eg_session *session = NULL;
  eg_message why = {"usage: generate FILE [CONDITION NUMBER]"};
  eg_status status = count == 2 || count == 4 ? eg_open(words[1], NULL, &model, &why) : EG_BAD_ARGUMENT;
  if (status == EG_OK) status = eg_session_create(model, NULL, &session, &why);
  if (status == EG_OK) status = generate(model, session, count == 4 ? words[2] : NULL, words[count - 1]);
  if (status != EG_OK) fprintf(stderr, "%s: %s\n", eg_status_str(status), session == NULL ? why.text : eg_last_error(session));
  eg_session_destroy(session);
  eg_close(model);
  return status != EG_OK;
}
