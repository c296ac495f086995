/* edgegen_jni.c: what Native.java declares, over libedgegen.
 *
 * Texts cross as UTF-8 in byte arrays, with a NUL on their way in. Pointers cross as long; Handle.java sees to it that they are valid. JNI may not
 * be called while a Java exception is pending, so each helper does nothing then, and each function returns. */
#include <jni.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include "edgegen.h"

#define NATIVE(type, name) JNIEXPORT type JNICALL Java_edgegen_Native_##name
#define SELF __attribute__((unused)) jclass self

static eg_model *model_of(jlong pointer) { return (eg_model *)(intptr_t)pointer; }

static eg_session *session_of(jlong pointer) { return (eg_session *)(intptr_t)pointer; }

static jboolean pending(JNIEnv *env) { return (*env)->ExceptionCheck(env); }

/* new TYPE(...): the arguments are as `signature` says. */
static jobject make(JNIEnv *env, const char *type, const char *signature, ...) {
  if (pending(env)) return NULL;
  const jclass found = (*env)->FindClass(env, type);
  if (found == NULL) return NULL;
  const jmethodID constructor = (*env)->GetMethodID(env, found, "<init>", signature);
  if (constructor == NULL) return NULL;
  va_list arguments;
  va_start(arguments, signature);
  const jobject made = (*env)->NewObjectV(env, found, constructor, arguments);
  va_end(arguments);
  (*env)->DeleteLocalRef(env, found);
  return made;
}

static jbyteArray bytes(JNIEnv *env, const char *data, size_t size) {
  if (pending(env)) return NULL;
  const jbyteArray made = (*env)->NewByteArray(env, (jsize)size);
  if (made != NULL) (*env)->SetByteArrayRegion(env, made, 0, (jsize)size, (const jbyte *)data);
  return made;
}

static jbyteArray text(JNIEnv *env, const char *characters) { return characters == NULL ? NULL : bytes(env, characters, strlen(characters)); }

static jintArray shape(JNIEnv *env, uint32_t rank, const int64_t *sizes) {
  jint narrow[EG_MAX_RANK]; /* FORMAT.md: a size is below 2^31 */
  for (uint32_t i = 0; i < rank; ++i) narrow[i] = (jint)sizes[i];
  if (pending(env)) return NULL;
  const jintArray made = (*env)->NewIntArray(env, (jsize)rank);
  if (made != NULL) (*env)->SetIntArrayRegion(env, made, 0, (jsize)rank, narrow);
  return made;
}

/* Throws what a status says, unless it is EG_OK; returns whether an exception is pending. */
static jboolean failed(JNIEnv *env, eg_status status, const char *why) {
  if (status == EG_OK || pending(env)) return pending(env);
  const jthrowable thrown = make(env, "edgegen/EdgegenException", "(I[B)V", (jint)status, text(env, why[0] != '\0' ? why : eg_status_str(status)));
  if (thrown != NULL) (*env)->Throw(env, thrown);
  return JNI_TRUE;
}

/* Elements of a Java array, as they were given: NULL means that there was no memory. */
static void *got(JNIEnv *env, void *elements) {
  if (elements == NULL) failed(env, EG_NO_MEMORY, "");
  return elements;
}

/* The characters of a text from Java until give_back; NULL for null. */
static char *take(JNIEnv *env, jbyteArray given) { return given == NULL || pending(env) ? NULL : got(env, (*env)->GetByteArrayElements(env, given, NULL)); }

static void give_back(JNIEnv *env, jbyteArray given, char *taken) {
  if (taken != NULL) (*env)->ReleaseByteArrayElements(env, given, (jbyte *)taken, JNI_ABORT);
}

/* ---- Models ---- */

NATIVE(jbyteArray, version)(JNIEnv *env, SELF) { return text(env, eg_version()); }

NATIVE(jlong, openFile)(JNIEnv *env, SELF, jbyteArray path, jboolean mapped) {
  eg_open_options options = EG_OPEN_OPTIONS_INIT;
  options.flags = mapped ? EG_OPEN_MAPPED : 0;
  char *const characters = take(env, path);
  if (pending(env)) return 0;
  eg_model *model = NULL;
  eg_message why;
  const eg_status status = eg_open(characters, &options, &model, &why);
  give_back(env, path, characters);
  failed(env, status, why.text);
  return (jlong)(intptr_t)model;
}

NATIVE(jlong, openArray)(JNIEnv *env, SELF, jbyteArray given, jint offset, jint size) {
  char *const data = take(env, given);
  if (pending(env)) return 0;
  eg_model *model = NULL;
  eg_message why;
  const eg_status status = eg_open_memory(data + offset, (size_t)size, NULL, &model, &why);
  give_back(env, given, data);
  failed(env, status, why.text);
  return (jlong)(intptr_t)model;
}

NATIVE(jlong, openBuffer)(JNIEnv *env, SELF, jobject buffer, jint offset, jint size, jboolean in_place) {
  eg_open_options options = EG_OPEN_OPTIONS_INIT;
  options.flags = in_place ? EG_OPEN_BORROWED : 0;
  const char *const data = (*env)->GetDirectBufferAddress(env, buffer);
  eg_model *model = NULL;
  eg_message why;
  failed(env, eg_open_memory(data == NULL ? NULL : data + offset, (size_t)size, &options, &model, &why), why.text);
  return (jlong)(intptr_t)model;
}

NATIVE(void, close)(__attribute__((unused)) JNIEnv *env, SELF, jlong model) { eg_close(model_of(model)); }

static jobject condition(JNIEnv *env, const eg_model *model, uint32_t index) {
  eg_condition_info c = EG_CONDITION_INFO_INIT;
  if (failed(env, eg_condition_describe(model, index, &c), "")) return NULL;
  return make(env, "edgegen/Condition", "([B[BI[IIDDDD)V", text(env, c.name), text(env, c.summary), (jint)c.dtype, shape(env, c.rank, c.shape), (jint)c.has, c.minimum, c.maximum,
              c.default_value, c.null_value);
}

static jobject program(JNIEnv *env, const eg_model *model, uint32_t index) {
  eg_program_info p = EG_PROGRAM_INFO_INIT;
  if (failed(env, eg_program_describe(model, index, &p), "")) return NULL;
  return make(env, "edgegen/Program", "([BIIZJ)V", text(env, p.name), (jint)p.steps, (jint)p.evaluations, (jint)(p.states > 0), (jlong)p.conditions);
}

static jobject variant(JNIEnv *env, const eg_model *model, uint32_t index) {
  eg_variant_info v = EG_VARIANT_INFO_INIT;
  if (failed(env, eg_variant_describe(model, index, &v), "")) return NULL;
  return make(env, "edgegen/Variant", "([B[B[B[BJI)V", text(env, v.name), text(env, v.engine), text(env, v.providers), text(env, v.milliseconds), (jlong)v.bytes, (jint)v.golden);
}

/* An array of what `describe` makes of each index. */
static jobjectArray list(JNIEnv *env, const char *type, uint32_t count, jobject (*describe)(JNIEnv *, const eg_model *, uint32_t), const eg_model *model) {
  if (pending(env)) return NULL;
  const jclass found = (*env)->FindClass(env, type);
  if (found == NULL) return NULL;
  const jobjectArray made = (*env)->NewObjectArray(env, (jsize)count, found, NULL);
  for (uint32_t i = 0; made != NULL && i < count; ++i) {
    if ((*env)->PushLocalFrame(env, 16) != 0) return NULL;
    const jobject item = (*env)->PopLocalFrame(env, describe(env, model, i));
    if (pending(env)) return NULL;
    (*env)->SetObjectArrayElement(env, made, (jsize)i, item);
    (*env)->DeleteLocalRef(env, item);
  }
  return made;
}

NATIVE(jobject, describe)(JNIEnv *env, SELF, jlong pointer) {
  const eg_model *const model = model_of(pointer);
  eg_model_info m = EG_MODEL_INFO_INIT;
  if (failed(env, eg_model_describe(model, &m), "")) return NULL;
  return make(env, "edgegen/ModelInfo", "([B[B[B[BJZDDZ[IJ[Ledgegen/Condition;[Ledgegen/Program;[Ledgegen/Variant;)V", text(env, m.name), text(env, m.summary), text(env, m.licence),
              text(env, m.producer), (jlong)m.bytes, (jint)m.trusted_pickle, m.low, m.high, (jint)m.image, shape(env, m.rank, m.shape), (jlong)m.elements,
              list(env, "edgegen/Condition", m.conditions, condition, model), list(env, "edgegen/Program", m.programs, program, model),
              list(env, "edgegen/Variant", m.variants, variant, model));
}

NATIVE(jbyteArray, document)(JNIEnv *env, SELF, jlong model, jbyteArray name) {
  char *const characters = take(env, name);
  if (pending(env)) return NULL;
  const char *json = NULL;
  size_t size = 0;
  const eg_status status = eg_document(model_of(model), characters, &json, &size);
  give_back(env, name, characters);
  if (failed(env, status, status == EG_UNKNOWN_NAME ? "no document of that name in this bundle" : "")) return NULL;
  return bytes(env, json, size);
}

/* ---- Sessions ---- */

NATIVE(jlong, create)(JNIEnv *env, SELF, jlong model, jint threads, jint batch, jbyteArray variant_name, jbyteArray onnxruntime) {
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.threads = (uint32_t)threads;
  options.batch = (uint32_t)batch;
  char *const name = take(env, variant_name);
  char *const path = take(env, onnxruntime);
  options.variant = name;
  options.onnxruntime = path;
  eg_session *session = NULL;
  eg_message why = {""};
  const eg_status status = pending(env) ? EG_NO_MEMORY : eg_session_create(model_of(model), &options, &session, &why);
  give_back(env, variant_name, name);
  give_back(env, onnxruntime, path);
  failed(env, status, why.text);
  return (jlong)(intptr_t)session;
}

NATIVE(void, destroy)(__attribute__((unused)) JNIEnv *env, SELF, jlong session) { eg_session_destroy(session_of(session)); }

NATIVE(jobject, describeSession)(JNIEnv *env, SELF, jlong session) {
  eg_session_info s = EG_SESSION_INFO_INIT;
  if (failed(env, eg_session_describe(session_of(session), &s), "")) return NULL;
  return make(env, "edgegen/SessionInfo", "([B[BI)V", text(env, s.variant), text(env, s.engine), (jint)s.batch);
}

NATIVE(void, set)(JNIEnv *env, SELF, jlong pointer, jbyteArray name, jint dtype, jarray values, jlongArray sizes) {
  static const size_t width[] = {0, 4, 8, 2, 8, 4, 1, 1, 1}; /* by dtype */
  eg_session *const session = session_of(pointer);
  jlong wide[EG_MAX_RANK];
  eg_tensor tensor = EG_TENSOR_INIT;
  tensor.dtype = dtype;
  tensor.bytes = (size_t)(*env)->GetArrayLength(env, values) * width[dtype];
  tensor.rank = (uint32_t)(*env)->GetArrayLength(env, sizes);
  (*env)->GetLongArrayRegion(env, sizes, 0, (jsize)tensor.rank, wide);
  for (uint32_t i = 0; i < tensor.rank; ++i) tensor.shape[i] = wide[i];
  char *const characters = take(env, name);
  if (pending(env)) return;
  tensor.name = characters;
  tensor.data = got(env, (*env)->GetPrimitiveArrayCritical(env, values, NULL));
  const eg_status status = tensor.data == NULL ? EG_NO_MEMORY : eg_set(session, &tensor);
  if (tensor.data != NULL) (*env)->ReleasePrimitiveArrayCritical(env, values, tensor.data, JNI_ABORT);
  give_back(env, name, characters);
  failed(env, status, eg_last_error(session));
}

NATIVE(void, setNumber)(JNIEnv *env, SELF, jlong session, jbyteArray name, jdouble value) {
  char *const characters = take(env, name);
  if (pending(env)) return;
  const eg_status status = eg_set_number(session_of(session), characters, value);
  give_back(env, name, characters);
  failed(env, status, eg_last_error(session_of(session)));
}

NATIVE(void, unset)(JNIEnv *env, SELF, jlong session, jbyteArray name) {
  char *const characters = take(env, name);
  if (pending(env)) return;
  const eg_status status = eg_unset(session_of(session), characters);
  give_back(env, name, characters);
  failed(env, status, eg_last_error(session_of(session)));
}

/* A step listener and how to call it. */
typedef struct {
  JNIEnv *env;
  jobject listener;
  jmethodID method;
} listening;

static int32_t on_step(void *user, uint32_t done, uint32_t total, const float *state, size_t elements) {
  const listening *const to = user;
  JNIEnv *const env = to->env;
  const jfloatArray copy = (*env)->NewFloatArray(env, (jsize)elements);
  if (copy == NULL) return !EG_CONTINUE;
  (*env)->SetFloatArrayRegion(env, copy, 0, (jsize)elements, state);
  const jboolean more = (*env)->CallBooleanMethod(env, to->listener, to->method, (jint)done, (jint)total, copy);
  const jboolean thrown = pending(env);
  (*env)->DeleteLocalRef(env, copy);
  return more && !thrown ? EG_CONTINUE : !EG_CONTINUE;
}

/* Finds the listener's method. */
static listening listen(JNIEnv *env, jobject listener) {
  listening made = {env, listener, NULL};
  if (listener == NULL || pending(env)) return made;
  const jclass type = (*env)->GetObjectClass(env, listener);
  made.method = (*env)->GetMethodID(env, type, "onStep", "(II[F)Z");
  (*env)->DeleteLocalRef(env, type);
  return made;
}

/* Copies the sample of the last run to Java. */
static eg_status get_sample(JNIEnv *env, eg_session *session, jfloatArray sample) {
  const size_t elements = (size_t)(*env)->GetArrayLength(env, sample);
  float *const data = got(env, (*env)->GetPrimitiveArrayCritical(env, sample, NULL));
  if (data == NULL) return EG_NO_MEMORY;
  const eg_status status = eg_get(session, "sample", data, elements);
  (*env)->ReleasePrimitiveArrayCritical(env, sample, data, 0);
  return status;
}

NATIVE(void, run)(JNIEnv *env, SELF, jlong pointer, jboolean stream, jbyteArray program_name, jint steps, jlong seed, jint batch, jfloatArray noise, jboolean nonfinite, jobject listener,
                  jfloatArray sample) {
  eg_session *const session = session_of(pointer);
  listening to = listen(env, listener);
  char *const characters = take(env, program_name);
  jfloat *const normals = noise == NULL || pending(env) ? NULL : got(env, (*env)->GetFloatArrayElements(env, noise, NULL));
  eg_run_options options = EG_RUN_OPTIONS_INIT;
  options.flags = nonfinite ? EG_RUN_NONFINITE : 0;
  options.seed = (uint64_t)seed;
  options.program = characters;
  options.steps = (uint32_t)steps;
  options.batch = (uint32_t)batch;
  options.on_step = listener == NULL ? NULL : on_step;
  options.user = &to;
  options.noise = normals;
  options.noise_elements = normals == NULL ? 0 : (size_t)(*env)->GetArrayLength(env, noise);
  const eg_status status = pending(env) ? EG_NO_MEMORY : (stream ? eg_stream_step : eg_generate)(session, &options, NULL, 0);
  if (normals != NULL) (*env)->ReleaseFloatArrayElements(env, noise, normals, JNI_ABORT);
  give_back(env, program_name, characters);
  if (!failed(env, status, eg_last_error(session))) failed(env, get_sample(env, session, sample), eg_last_error(session));
}

NATIVE(void, resetStream)(JNIEnv *env, SELF, jlong session) { failed(env, eg_stream_reset(session_of(session)), eg_last_error(session_of(session))); }

NATIVE(void, cancel)(__attribute__((unused)) JNIEnv *env, SELF, jlong session) { eg_cancel(session_of(session)); }

NATIVE(jobject, report)(JNIEnv *env, SELF, jlong session) {
  eg_report r = EG_REPORT_INIT;
  if (failed(env, eg_session_report(session_of(session), &r), eg_last_error(session_of(session)))) return NULL;
  return make(env, "edgegen/Report", "([B[BIDD)V", text(env, r.program), text(env, r.variant), (jint)r.evaluations, r.seconds, r.network_seconds);
}

NATIVE(jobject, selfTest)(JNIEnv *env, SELF, jlong session, jint index) {
  eg_golden g = EG_GOLDEN_INIT;
  if (failed(env, eg_self_test(session_of(session), (uint32_t)index, &g), eg_last_error(session_of(session)))) return NULL;
  return make(env, "edgegen/Golden", "([BDDZ)V", text(env, g.program), g.rmse, g.tolerance, (jint)g.passed);
}
