// The C boundary: arguments are checked, faults become statuses and messages, nothing is thrown past it.
#include <cstring>
#include <new>

#include "session.h"

namespace {

using eg::fail;
using eg::View;

// Run `work`; what it throws becomes a status and a text.
template <class Work>
eg_status guarded(char *text, size_t room, Work work) noexcept {
  const auto say = [&](const char *reason) {
    if (text == nullptr || room == 0) return;
    const size_t size = View(reason).copy(text, room - 1);
    text[size] = '\0';
  };
  try {
    work();
    say("");
    return EG_OK;
  } catch (const eg::Fault &fault) {
    say(fault.text);
    return fault.status;
  } catch (const std::bad_alloc &) {
    say("out of memory");
    return EG_NO_MEMORY;
  } catch (...) {
    say("a callback threw an exception, which it may not");
    return EG_BACKEND_FAILED;
  }
}

template <class Work>
eg_status guarded(eg_message *message, Work work) noexcept {
  return guarded(message == nullptr ? nullptr : message->text, EG_MESSAGE_SIZE, work);
}

// Work on a session, by one thread at a time.
template <class Work>
eg_status guarded(eg_session *session, Work work) noexcept {
  if (session == nullptr) return EG_BAD_ARGUMENT;
  if (session->busy.exchange(1) != 0) return EG_BUSY;  // the message belongs to the thread that is in it
  const eg_status status = guarded(session->error, sizeof session->error, work);
  session->busy.store(0);
  return status;
}

void need(bool given, const char *what) {
  if (!given) fail(EG_BAD_ARGUMENT, "%s", what);
}

// The caller's struct as this version knows it: its first struct_size bytes, the rest zero. Bytes that this version does not know must be zero.
template <class T>
T read_struct(const T *given, const char *name) {
  T known{};
  const size_t size = given->struct_size;
  if (size < sizeof(uint32_t) * 2 || size > 4096) fail(EG_BAD_ARGUMENT, "%s: struct_size is %zu; set it with its INIT macro", name, size);
  std::memcpy(&known, given, size < sizeof(T) ? size : sizeof(T));
  for (size_t i = sizeof(T); i < size; ++i) {
    if (reinterpret_cast<const unsigned char *>(given)[i] != 0) fail(EG_BAD_ARGUMENT, "%s: a field is set that this version of the library does not know; update it", name);
  }
  known.struct_size = sizeof(T);
  return known;
}

// Write a struct of results: as many bytes as the caller has room for; bytes that this version does not know become zero.
template <class T>
void write_struct(T *place, const T &made, const char *name) {
  const size_t size = place->struct_size;
  if (size < sizeof(uint32_t) * 2 || size > 4096) fail(EG_BAD_ARGUMENT, "%s: struct_size is %zu; set it with its INIT macro", name, size);
  unsigned char *bytes = reinterpret_cast<unsigned char *>(place);
  const size_t known = size < sizeof(T) ? size : sizeof(T);
  std::memcpy(bytes + sizeof(uint32_t), reinterpret_cast<const unsigned char *>(&made) + sizeof(uint32_t), known - sizeof(uint32_t));
  if (size > known) std::memset(bytes + known, 0, size - known);
}

void check_allocator(const eg_allocator *given, eg_allocator *known) {
  *known = read_struct(given, "eg_allocator");
  need(known->allocate != nullptr && known->release != nullptr && known->reserved == 0, "eg_allocator: allocate and release are needed, and reserved is 0");
}

eg_open_options open_options(const eg_open_options *given, uint32_t allowed, eg_allocator *allocator) {
  eg_open_options known = EG_OPEN_OPTIONS_INIT;
  if (given != nullptr) known = read_struct(given, "eg_open_options");
  if ((known.flags & ~allowed) != 0) fail(EG_BAD_ARGUMENT, "eg_open_options: unknown flags %#x", static_cast<unsigned>(known.flags));
  if (known.allocator != nullptr) {
    check_allocator(known.allocator, allocator);
    known.allocator = allocator;
  }
  return known;
}

// A model in memory of the caller's allocator.
template <class... Arguments>
eg_model *make_model(const eg_allocator *allocator, Arguments... arguments) {
  eg::Memory memory(allocator);
  return memory.make<eg_model>(allocator, arguments...);
}

eg::SessionOptions session_options(const eg_session_options *given) {
  eg::SessionOptions made;
  if (given == nullptr) return made;
  const eg_session_options known = read_struct(given, "eg_session_options");
  need(known.reserved == 0, "eg_session_options: reserved is 0");
  if (known.batch > EG_MAX_BATCH) fail(EG_OUT_OF_RANGE, "a batch of %u, expected 1 .. %d", known.batch, EG_MAX_BATCH);
  if (known.threads > 1024) fail(EG_OUT_OF_RANGE, "%u threads, expected at most 1024", known.threads);
  made.threads = known.threads;
  made.batch = known.batch == 0 ? 1 : known.batch;
  made.variant = known.variant;
  made.onnxruntime = known.onnxruntime;
  made.component = known.component;
  made.component_user = known.component_user;
  made.log = known.log;
  made.log_user = known.log_user;
  return made;
}

eg::RunOptions run_options(const eg_run_options *given) {
  eg::RunOptions made;
  if (given == nullptr) return made;
  const eg_run_options known = read_struct(given, "eg_run_options");
  if ((known.flags & ~(EG_RUN_NONFINITE | EG_RUN_STEPWISE)) != 0) fail(EG_BAD_ARGUMENT, "eg_run_options: unknown flags %#x", static_cast<unsigned>(known.flags));
  need(reinterpret_cast<uintptr_t>(known.noise) % alignof(float) == 0, "eg_run_options: noise is not aligned to its elements");
  made.context.seed = known.seed;
  made.context.nonfinite_allowed = (known.flags & EG_RUN_NONFINITE) != 0;
  made.stepwise = (known.flags & EG_RUN_STEPWISE) != 0;
  made.context.on_step = known.on_step;
  made.context.user = known.user;
  made.program = known.program;
  made.steps = known.steps;
  made.batch = known.batch == 0 ? 1 : known.batch;
  made.noise = known.noise;
  made.noise_elements = known.noise_elements;
  return made;
}

void check_buffer(const float *data) { need(reinterpret_cast<uintptr_t>(data) % alignof(float) == 0, "a buffer of float that is not aligned to its elements"); }

// A describing function: `model` and `info` are there, the index is below `count`, `fill` writes.
template <class T, class Fill>
eg_status describe(const eg_model *model, uint32_t index, size_t count, T *info, const char *name, Fill fill) noexcept {
  if (model == nullptr || info == nullptr) return EG_BAD_ARGUMENT;
  if (index >= count) return EG_OUT_OF_RANGE;
  return guarded(nullptr, 0, [&] {
    T made{};
    fill(made);
    write_struct(info, made, name);
  });
}

void copy_shape(const eg::Shape &shape, uint32_t *rank, int64_t *sizes) {
  *rank = shape.rank;
  for (uint32_t i = 0; i < shape.rank; ++i) sizes[i] = shape.size[i];
}

}  // namespace

extern "C" {

uint32_t eg_abi_version(void) { return EG_ABI_MAJOR << 16 | EG_ABI_MINOR; }

const char *eg_version(void) { return EDGEGEN_VERSION; }

eg_status eg_open(const char *path, const eg_open_options *options, eg_model **model, eg_message *message) {
  if (model != nullptr) *model = nullptr;
  return guarded(message, [&] {
    need(path != nullptr && model != nullptr, "eg_open: a path and a place for the model are needed");
    eg_allocator allocator{};
    const eg_open_options known = open_options(options, EG_OPEN_MAPPED, &allocator);
    *model = make_model(known.allocator, path, (known.flags & EG_OPEN_MAPPED) != 0);
  });
}

eg_status eg_open_memory(const void *bytes, size_t size, const eg_open_options *options, eg_model **model, eg_message *message) {
  if (model != nullptr) *model = nullptr;
  return guarded(message, [&] {
    need(bytes != nullptr && model != nullptr, "eg_open_memory: bytes and a place for the model are needed");
    eg_allocator allocator{};
    const eg_open_options known = open_options(options, EG_OPEN_BORROWED, &allocator);
    *model = make_model(known.allocator, bytes, size, (known.flags & EG_OPEN_BORROWED) != 0);
  });
}

void eg_close(eg_model *model) {
  if (model != nullptr) model->release();
}

eg_status eg_model_describe(const eg_model *model, eg_model_info *info) {
  return describe(model, 0, 1, info, "eg_model_info", [&](eg_model_info &made) {
    const eg::Manifest &m = model->bundle.manifest();
    made.trusted_pickle = m.trusted_pickle ? 1 : 0;
    made.name = model->texts.name;
    made.summary = model->texts.summary;
    made.licence = model->texts.licence;
    made.producer = model->texts.producer;
    made.bytes = model->bundle.size();
    made.conditions = static_cast<uint32_t>(m.conditions.size());
    made.components = static_cast<uint32_t>(m.components.size());
    made.programs = static_cast<uint32_t>(m.programs.size());
    made.variants = static_cast<uint32_t>(m.variants.size());
    made.low = m.low;
    made.high = m.high;
    made.image = m.image ? 1 : 0;
    copy_shape(m.sample, &made.rank, made.shape);
    made.elements = m.sample.elements();
  });
}

eg_status eg_condition_describe(const eg_model *model, uint32_t index, eg_condition_info *info) {
  return describe(model, index, model == nullptr ? 0 : model->bundle.manifest().conditions.size(), info, "eg_condition_info", [&](eg_condition_info &made) {
    const eg::Condition &c = model->bundle.manifest().conditions[index];
    made.has = (c.minimum.exists ? EG_HAS_MINIMUM : 0) | (c.maximum.exists ? EG_HAS_MAXIMUM : 0) | (c.fallback.exists ? EG_HAS_DEFAULT : 0) | (c.null.exists ? EG_HAS_NULL : 0);
    made.name = model->texts.conditions[index].name;
    made.summary = model->texts.conditions[index].summary;
    made.dtype = c.dtype;
    copy_shape(c.shape, &made.rank, made.shape);
    made.minimum = c.minimum.value;
    made.maximum = c.maximum.value;
    made.default_value = c.fallback.value;
    made.null_value = c.null.value;
  });
}

eg_status eg_component_describe(const eg_model *model, uint32_t index, eg_component_info *info) {
  return describe(model, index, model == nullptr ? 0 : model->bundle.manifest().components.size(), info, "eg_component_info", [&](eg_component_info &made) {
    const eg::Component &c = model->bundle.manifest().components[index];
    made.inputs = c.inputs;
    made.outputs = c.outputs;
    made.name = model->texts.components[index];
  });
}

eg_status eg_component_tensor(const eg_model *model, uint32_t component, uint32_t index, eg_tensor_info *info) {
  if (model == nullptr) return EG_BAD_ARGUMENT;
  const eg::Manifest &m = model->bundle.manifest();
  if (component >= m.components.size()) return EG_OUT_OF_RANGE;
  const eg::Component &c = m.components[component];
  return describe(model, index, c.inputs + c.outputs, info, "eg_tensor_info", [&](eg_tensor_info &made) {
    const eg::TensorSpec &t = m.tensors[c.first + index];
    made.dtype = t.dtype;
    made.name = model->texts.tensors[c.first + index];
    copy_shape(t.shape, &made.rank, made.shape);
  });
}

eg_status eg_program_describe(const eg_model *model, uint32_t index, eg_program_info *info) {
  return describe(model, index, model == nullptr ? 0 : model->bundle.manifest().programs.size(), info, "eg_program_info", [&](eg_program_info &made) {
    const eg::ProgramFacts &facts = model->bundle.facts(index);
    made.steps = model->bundle.manifest().programs[index].steps;
    made.name = model->texts.programs[index];
    made.instructions = facts.instructions;
    made.evaluations = facts.evaluations;
    made.states = facts.states;
    made.conditions = facts.conditions;
  });
}

eg_status eg_variant_describe(const eg_model *model, uint32_t index, eg_variant_info *info) {
  return describe(model, index, model == nullptr ? 0 : model->bundle.manifest().variants.size(), info, "eg_variant_info", [&](eg_variant_info &made) {
    const eg::Variant &v = model->bundle.manifest().variants[index];
    const eg::ModelTexts::Variant &texts = model->texts.variants[index];
    made.golden = static_cast<uint32_t>(v.golden.count());
    made.name = texts.name;
    made.engine = texts.engine;
    made.providers = texts.providers;
    made.milliseconds = texts.milliseconds;
    for (eg::Items c(v.components); c.next();) made.bytes += model->bundle.member(c.value.string()).size();
    for (eg::Items w(v.weights); w.next();) made.bytes += model->bundle.member(w.value.string()).size();
    for (eg::Items f(v.fused); f.next();) made.bytes += model->bundle.member(eg::member_of(f.value, "member")).size();
    made.fused = static_cast<uint32_t>(v.fused.count());
    made.threads = v.threads;
  });
}

eg_status eg_document(const eg_model *model, const char *name, const char **json, size_t *size) {
  if (model == nullptr || name == nullptr || json == nullptr || size == nullptr) return EG_BAD_ARGUMENT;
  return guarded(nullptr, 0, [&] {
    const View member = eg::member_of(model->bundle.manifest().documents, name);
    if (member.empty()) fail(EG_UNKNOWN_NAME, "no such document");
    const View text = model->bundle.member(member);
    eg::check_json(text);
    *json = text.data();
    *size = text.size();
  });
}

eg_status eg_session_create(eg_model *model, const eg_session_options *options, eg_session **session, eg_message *message) {
  if (session != nullptr) *session = nullptr;
  return guarded(message, [&] {
    need(model != nullptr && session != nullptr, "eg_session_create: a model and a place for the session are needed");
    *session = model->memory.make<eg_session>(*model, session_options(options));
    model->retain();
  });
}

void eg_session_destroy(eg_session *session) {
  if (session == nullptr) return;
  eg_model &model = session->model;
  model.memory.destroy(session);
  model.release();  // which may be the last of it
}

eg_status eg_session_memory(eg_model *model, const eg_session_options *options, const char *program, uint64_t *bytes, eg_message *message) {
  return guarded(message, [&] {
    need(model != nullptr && bytes != nullptr, "eg_session_memory: a model and a place for the bytes are needed");
    const int index = program == nullptr ? 0 : model->bundle.manifest().find_program(program);
    if (index < 0) fail(EG_UNKNOWN_NAME, "no program '%.80s' in this bundle", program);
    *bytes = eg::session_bytes(*model, session_options(options).batch, static_cast<uint32_t>(index));
  });
}

eg_status eg_session_describe(const eg_session *session, eg_session_info *info) {
  if (session == nullptr || info == nullptr) return EG_BAD_ARGUMENT;
  return guarded(nullptr, 0, [&] {
    eg_session_info made{};
    made.batch = session->batch;
    made.variant = session->model.texts.variants[session->variant].name;
    made.engine = session->engine();
    write_struct(info, made, "eg_session_info");
  });
}

const char *eg_last_error(const eg_session *session) { return session == nullptr ? "" : session->error; }

eg_status eg_set(eg_session *session, const eg_tensor *value) {
  return guarded(session, [&] {
    need(value != nullptr, "eg_set: a tensor is needed");
    const eg_tensor known = read_struct(value, "eg_tensor");
    need(known.name != nullptr && known.data != nullptr && known.reserved == 0, "eg_tensor: a name and data are needed, and reserved is 0");
    need(known.dtype >= EG_FLOAT32 && known.dtype <= EG_BOOL, "eg_tensor: the dtype is none");
    need(known.rank <= EG_MAX_RANK, "eg_tensor: a rank above EG_MAX_RANK");
    need(reinterpret_cast<uintptr_t>(known.data) % eg::bytes_of(known.dtype) == 0, "eg_tensor: data are not aligned to their elements");
    session->set(known);
  });
}

eg_status eg_set_number(eg_session *session, const char *name, double value) {
  return guarded(session, [&] {
    need(name != nullptr, "eg_set_number: a name is needed");
    session->set_number(name, value);
  });
}

eg_status eg_unset(eg_session *session, const char *name) {
  return guarded(session, [&] { session->unset(name); });
}

eg_status eg_generate(eg_session *session, const eg_run_options *options, float *sample, size_t elements) {
  return guarded(session, [&] {
    check_buffer(sample);
    session->generate(run_options(options), sample, elements);
  });
}

eg_status eg_stream_step(eg_session *session, const eg_run_options *options, float *sample, size_t elements) {
  return guarded(session, [&] {
    check_buffer(sample);
    session->stream_step(run_options(options), sample, elements);
  });
}

eg_status eg_stream_reset(eg_session *session) {
  return guarded(session, [&] { session->stream_reset(); });
}

void eg_cancel(eg_session *session) {
  if (session != nullptr) session->cancel();
}

eg_status eg_get(eg_session *session, const char *name, float *data, size_t elements) {
  return guarded(session, [&] {
    need(name != nullptr && data != nullptr, "eg_get: a name and a buffer are needed");
    check_buffer(data);
    session->get(name, data, elements);
  });
}

eg_status eg_output_describe(eg_session *session, uint32_t index, eg_tensor_info *info) {
  return guarded(session, [&] {
    need(info != nullptr, "eg_output_describe: a place for the result is needed");
    eg_tensor_info made{};
    session->describe_output(index, &made);
    write_struct(info, made, "eg_tensor_info");
  });
}

eg_status eg_session_report(eg_session *session, eg_report *report) {
  return guarded(session, [&] {
    need(report != nullptr, "eg_session_report: a place for the result is needed");
    session->need_run();
    eg_report made{};
    for (size_t i = 0; i < session->model.bundle.manifest().components.size(); ++i) {
      made.evaluations += session->evaluations(i);
      made.network_seconds += session->seconds(i);
    }
    made.seconds = session->last_seconds;
    made.program = session->model.texts.programs[session->last_program];
    made.variant = session->model.texts.variants[session->variant].name;
    made.batch = session->last->batch();
    write_struct(report, made, "eg_report");
  });
}

eg_status eg_session_component_report(eg_session *session, uint32_t component, uint32_t *evaluations, double *seconds) {
  return guarded(session, [&] {
    need(evaluations != nullptr && seconds != nullptr, "eg_session_component_report: places for the results are needed");
    const size_t count = session->model.bundle.manifest().components.size();
    if (component >= count) fail(EG_OUT_OF_RANGE, "component %u of %zu", component, count);
    session->need_run();
    *evaluations = session->evaluations(component);
    *seconds = session->seconds(component);
  });
}

eg_status eg_self_test(eg_session *session, uint32_t index, eg_golden *golden) {
  return guarded(session, [&] {
    need(golden != nullptr, "eg_self_test: a place for the result is needed");
    eg_golden made{};
    session->self_test(index, &made);
    write_struct(golden, made, "eg_golden");
  });
}

}  // extern "C"
