#include "session.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>

#include "checked.h"

namespace {

using eg::fail;
using eg::View;

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

// A number in a dtype that holds it exactly (floats: rounded once, finite); false if it does not.
bool write_number(double value, eg_dtype dtype, unsigned char *out) {
  const auto put = [&](auto number) {
    std::memcpy(out, &number, sizeof number);
    return true;
  };
  const bool whole = value >= -0x1p63 && value < 0x1p63 && value == static_cast<double>(static_cast<int64_t>(value));
  switch (dtype) {
    case EG_FLOAT64: return value - value == 0.0 && put(value);
    case EG_FLOAT32: return eg::fits(value, EG_FLOAT32) && put(static_cast<float>(value));
    case EG_FLOAT16: {
      if (!eg::fits(value, EG_FLOAT16)) return false;
      const float number = static_cast<float>(value);
      eg::convert(out, EG_FLOAT16, &number, EG_FLOAT32, 1);
      return true;
    }
    case EG_INT64: return whole && put(static_cast<int64_t>(value));
    case EG_INT32: return whole && value >= -0x1p31 && value < 0x1p31 && put(static_cast<int32_t>(value));
    case EG_INT8: return whole && value >= -128.0 && value < 128.0 && put(static_cast<int8_t>(value));
    case EG_UINT8: return whole && value >= 0.0 && value < 256.0 && put(static_cast<uint8_t>(value));
    default: return whole && value >= 0.0 && value < 2.0 && put(static_cast<uint8_t>(value));
  }
}

double read_number(const unsigned char *data, eg_dtype dtype) {
  const auto get = [&](auto number) {
    std::memcpy(&number, data, sizeof number);
    return static_cast<double>(number);
  };
  switch (dtype) {
    case EG_FLOAT64: return get(double{});
    case EG_FLOAT32: return get(float{});
    case EG_FLOAT16: {
      float number;
      eg::convert(&number, EG_FLOAT32, data, EG_FLOAT16, 1);
      return static_cast<double>(number);
    }
    case EG_INT64: return get(int64_t{});
    case EG_INT32: return get(int32_t{});
    case EG_INT8: return get(int8_t{});
    default: return get(uint8_t{});
  }
}

// Writes a shape such as [2, 3] into `text`.
void write_shape(const int64_t *sizes, uint32_t rank, char *text, size_t room) {
  size_t at = static_cast<size_t>(std::snprintf(text, room, "["));
  for (uint32_t i = 0; i < rank && at < room; ++i) at += static_cast<size_t>(std::snprintf(text + at, room - at, i == 0 ? "%lld" : ", %lld", static_cast<long long>(sizes[i])));
  if (at < room) std::snprintf(text + at, room - at, "]");
}

}  // namespace

// From here on a run can be cancelled, its plan being made or not.
class eg_session::Running {
 public:
  explicit Running(eg_session &session) : session_(session) {
    const std::lock_guard<std::mutex> lock(session_.cancel_mutex_);
    session_.cancelled_.store(0);
    session_.running_ = true;
  }
  ~Running() {
    const std::lock_guard<std::mutex> lock(session_.cancel_mutex_);
    session_.running_ = false;
    session_.calls_ = nullptr;
  }
  Running(const Running &) = delete;
  Running &operator=(const Running &) = delete;

 private:
  eg_session &session_;
};

eg_session::eg_session(eg_model &owner, const eg::SessionOptions &options)
    : model(owner), batch(options.batch), engines_(&owner.memory), texts_(owner.memory), values_block_(owner.memory), values_(&owner.memory), settings_(&owner.memory),
      programs_(&owner.memory), plans_(&owner.memory) {
  const eg::Manifest &m = model.bundle.manifest();
  size_t total = 0;
  for (const eg::Condition &c : m.conditions) {
    Value v;
    v.elements = static_cast<size_t>(c.shape.elements());
    settings_.push_back(v);
    total += rounded(v.elements * batch * eg::bytes_of(c.dtype));
  }
  values_block_ = eg::Block(model.memory, total);
  unsigned char *place = values_block_.data();
  for (size_t i = 0; i < m.conditions.size(); ++i) {
    values_.push_back(place);
    place += rounded(settings_[i].elements * batch * eg::bytes_of(m.conditions[i].dtype));
    set_default(static_cast<uint32_t>(i));
  }
  programs_.resize(m.programs.size(), nullptr);
  choose_variant(options);
}

eg_session::~eg_session() {
  for (const Ready &r : plans_) model.memory.destroy(r.plan);
  for (eg::Program *p : programs_) model.memory.destroy(p);
  for (const eg::SharedEngine &e : engines_) model.return_engine(e.engine);
  if (own_engine_ != nullptr) own_engine_->destroy();
}

void eg_session::choose_variant(const eg::SessionOptions &options) {
  const eg::Manifest &m = model.bundle.manifest();
  int wanted = -1;
  if (options.variant != nullptr) {
    wanted = m.find_variant(options.variant);
    if (wanted < 0) fail(EG_NO_VARIANT, "no variant '%.80s' in this bundle; the first is '%.*s'", options.variant, EG_SHOW(m.variants[0].name));
  }
  if (options.component != nullptr) {
    variant = wanted < 0 ? 0 : static_cast<uint32_t>(wanted);
    own_engine_ = eg::open_function(model.memory, m, options.component, options.component_user);
    return;
  }
  path_ = options.onnxruntime == nullptr ? nullptr : texts_.keep(options.onnxruntime);
  char passed_over[EG_MESSAGE_SIZE] = "";
  const auto pass_over = [&](const eg::Variant &v, const char *why) {
    char line[EG_MESSAGE_SIZE];
    std::snprintf(line, sizeof line, "variant %.*s: %.400s", EG_SHOW(v.name), why);
    if (options.log != nullptr) options.log(options.log_user, line);
    const size_t used = std::strlen(passed_over);
    std::snprintf(passed_over + used, sizeof passed_over - used, "%s%.200s", used == 0 ? "" : "; ", line);
  };
  for (uint32_t i = 0; i < m.variants.size(); ++i) {
    const eg::Variant &v = m.variants[i];
    const bool alone = wanted >= 0 || m.variants.size() == 1;
    if (wanted >= 0 && i != static_cast<uint32_t>(wanted)) continue;
    if (v.engine != "onnxruntime") {
      char why[160];
      std::snprintf(why, sizeof why, "is for the engine %.*s, which this library does not run", EG_SHOW(v.engine));
      if (alone) fail(EG_NO_VARIANT, "variant %.*s %s", EG_SHOW(v.name), why);
      pass_over(v, why);
      continue;
    }
    try {
      variant = i;
      threads_ = options.threads != 0 ? options.threads : v.threads;
      take(eg::find_fused(v, m.programs[0].name, batch));  // what the default program needs; the rest when it is needed
      return;
    } catch (const eg::Fault &fault) {
      if (fault.status != EG_PROVIDER_MISSING || alone) throw;
      pass_over(v, fault.text);
    }
  }
  fail(EG_NO_VARIANT, "no variant of this bundle runs here: %.440s", passed_over);
}

// The engine of the variant's components (-1), or of one of its fused programs.
const eg::SharedEngine &eg_session::take(int fused) {
  for (const eg::SharedEngine &e : engines_) {
    if (e.fused == fused) return e;
  }
  engines_.reserve(engines_.size() + 1);
  engines_.push_back(model.take_engine(variant, fused, threads_, path_));
  return engines_.back();
}

const char *eg_session::engine() const { return own_engine_ != nullptr ? own_engine_->description() : engines_[0].engine->description(); }

uint32_t eg_session::evaluations(size_t component) const { return last_fused_ != nullptr ? last_fused_->evaluations[component] : last->evaluations(component); }

double eg_session::seconds(size_t component) const {
  if (last_fused_ == nullptr) return last->seconds(component);
  uint32_t all = 0;
  for (const uint32_t e : last_fused_->evaluations) all += e;
  return all == 0 ? 0.0 : last->seconds(0) * last_fused_->evaluations[component] / all;
}

uint32_t eg_session::condition(const char *name) const {
  const int found = model.bundle.manifest().find_condition(name);
  if (found < 0) fail(EG_UNKNOWN_NAME, "no condition '%.80s' in this bundle", name);
  return static_cast<uint32_t>(found);
}

void eg_session::set_default(uint32_t index) {
  const eg::Condition &c = model.bundle.manifest().conditions[index];
  Value &v = settings_[index];
  v.setting = c.fallback.exists ? Setting::fallback : Setting::missing;
  if (!c.fallback.exists) return;
  unsigned char one[8];
  v.fault = EG_OK;
  if (!write_number(c.fallback.value, c.dtype, one)) {
    v.fault = EG_BAD_DTYPE;
    return;
  }
  try {
    check_values(index, one, 1);
  } catch (const eg::Fault &fault) {
    v.fault = fault.status;
    return;
  }
  const size_t size = eg::bytes_of(c.dtype);
  for (size_t i = 0; i < v.elements * batch; ++i) std::memcpy(values_[index] + i * size, one, size);
}

// Every value is finite and in the condition's range, or its null.
void eg_session::check_values(uint32_t index, const unsigned char *data, size_t elements) const {
  const eg::Condition &c = model.bundle.manifest().conditions[index];
  const size_t size = eg::bytes_of(c.dtype);
  const bool limited = c.minimum.exists || c.maximum.exists || c.dtype == EG_BOOL;
  if (!limited && !eg::is_float(c.dtype)) return;
  for (size_t i = 0; i < elements; ++i) {
    const double value = read_number(data + i * size, c.dtype);
    if (!(value - value == 0.0)) fail(EG_NONFINITE, "condition '%.*s': NaN or infinity at element %zu", EG_SHOW(c.name), i);
    const double low = c.minimum.exists ? c.minimum.value : c.dtype == EG_BOOL ? 0.0 : -HUGE_VAL, high = c.maximum.exists ? c.maximum.value : c.dtype == EG_BOOL ? 1.0 : HUGE_VAL;
    if ((value >= low && value <= high) || (c.null.exists && value == c.null.value)) continue;
    fail(EG_OUT_OF_RANGE, "condition '%.*s': %.9g at element %zu is out of range, from %.9g to %.9g", EG_SHOW(c.name), value, i, low, high);
  }
}

void eg_session::store(uint32_t index, const void *data, size_t elements, size_t samples) {
  const size_t size = eg::bytes_of(model.bundle.manifest().conditions[index].dtype) * elements;
  if (samples > 0) {
    std::memcpy(values_[index], data, size * samples);
    return;
  }
  for (size_t i = 0; i < batch; ++i) std::memcpy(values_[index] + i * size, data, size);
}

void eg_session::set(const eg_tensor &value) {
  const uint32_t index = condition(value.name);
  const eg::Condition &c = model.bundle.manifest().conditions[index];
  Value &v = settings_[index];
  if (value.dtype != c.dtype) fail(EG_BAD_DTYPE, "condition '%.*s': expected %s, found %s", EG_SHOW(c.name), eg::dtype_name(c.dtype), eg::dtype_name(value.dtype));
  const bool samples = value.rank == c.shape.rank + 1 && value.shape[0] >= 1 && value.shape[0] <= batch;
  bool fits = samples || value.rank == c.shape.rank;
  for (uint32_t i = 0; fits && i < c.shape.rank; ++i) fits = value.shape[i + (samples ? 1 : 0)] == c.shape.size[i];
  if (!fits) {
    char found[160], expected[160];
    int64_t sizes[eg::kMaxSizes];
    for (uint32_t i = 0; i < c.shape.rank; ++i) sizes[i] = c.shape.size[i];
    write_shape(value.shape, value.rank, found, sizeof found);
    write_shape(sizes, c.shape.rank, expected, sizeof expected);
    fail(EG_BAD_SHAPE, "condition '%.*s': shape %s, expected %s, or with up to %u samples in front", EG_SHOW(c.name), found, expected, batch);
  }
  const size_t count = v.elements * (samples ? static_cast<size_t>(value.shape[0]) : 1), bytes = count * eg::bytes_of(c.dtype);
  if (value.bytes != bytes) fail(EG_BAD_SHAPE, "condition '%.*s': a buffer of %zu bytes, expected %zu", EG_SHOW(c.name), value.bytes, bytes);
  check_values(index, static_cast<const unsigned char *>(value.data), count);
  store(index, value.data, v.elements, samples ? static_cast<size_t>(value.shape[0]) : 0);
  v.setting = samples ? Setting::per_sample : Setting::for_all;
  v.samples = samples ? static_cast<uint32_t>(value.shape[0]) : 0;
}

void eg_session::set_number(const char *name, double value) {
  const uint32_t index = condition(name);
  const eg::Condition &c = model.bundle.manifest().conditions[index];
  Value &v = settings_[index];
  unsigned char one[8];
  if (!(value - value == 0.0)) fail(EG_NONFINITE, "condition '%.*s': NaN or infinity", EG_SHOW(c.name));
  if (!write_number(value, c.dtype, one)) fail(EG_BAD_DTYPE, "condition '%.*s': %.9g is not a number that %s holds", EG_SHOW(c.name), value, eg::dtype_name(c.dtype));
  check_values(index, one, 1);
  const size_t size = eg::bytes_of(c.dtype);
  for (size_t i = 0; i < v.elements * batch; ++i) std::memcpy(values_[index] + i * size, one, size);
  v.setting = Setting::for_all;
}

void eg_session::unset(const char *name) {
  if (name != nullptr) {
    set_default(condition(name));
    return;
  }
  for (size_t i = 0; i < settings_.size(); ++i) set_default(static_cast<uint32_t>(i));
}

uint32_t eg_session::pick(const eg::RunOptions &options) const {
  const eg::Manifest &m = model.bundle.manifest();
  if (options.program != nullptr) {
    const int found = m.find_program(options.program);
    if (found < 0) fail(EG_UNKNOWN_NAME, "no program '%.80s' in this bundle; the first is '%.*s'", options.program, EG_SHOW(m.programs[0].name));
    return static_cast<uint32_t>(found);
  }
  if (options.steps == 0) return 0;
  for (size_t i = 0; i < m.programs.size(); ++i) {
    if (m.programs[i].steps == options.steps) return static_cast<uint32_t>(i);
  }
  fail(EG_OUT_OF_RANGE, "no program of %u steps in this bundle; the first has %u. Add it to the recipe and build again", options.steps, m.programs[0].steps);
}

// A program of the bundle, decoded when it is first asked for.
const eg::Program &eg_session::decoded(uint32_t program) {
  eg::Memory &memory = model.memory;
  const eg::Bundle &bundle = model.bundle;
  const eg::ProgramEntry &entry = bundle.manifest().programs[program];
  if (programs_[program] == nullptr) {
    eg::Program *made = memory.make<eg::Program>(memory);
    try {
      eg::load_program(memory, bundle.member(entry.member), bundle.manifest(), entry.name, made);
    } catch (...) {
      memory.destroy(made);
      throw;
    }
    programs_[program] = made;
  }
  return *programs_[program];
}

// The plan of a program at a batch, made when it is first asked for: fused where the variant holds it so, unless it has to go step by step.
eg::Plan &eg_session::plan_of(uint32_t program, uint32_t count, bool stepwise) {
  const eg::Manifest &m = model.bundle.manifest();
  const int index = stepwise || own_engine_ != nullptr ? -1 : eg::find_fused(m.variants[variant], m.programs[program].name, count);
  for (const Ready &r : plans_) {
    if (r.program == program && r.batch == count && (r.fused != nullptr) == (index >= 0)) return *r.plan;
  }
  plans_.reserve(plans_.size() + 1);
  eg::Engine *engine = own_engine_;
  const eg::Fused *fused = nullptr;
  if (engine == nullptr) {
    const eg::SharedEngine &taken = take(index);
    engine = taken.engine;
    fused = taken.program;
  }
  const eg::Manifest &manifest = fused == nullptr ? m : fused->manifest;
  eg::Plan *plan = model.memory.make<eg::Plan>(model.memory, manifest, fused == nullptr ? decoded(program) : fused->program, count, values_, engine);
  plans_.push_back({program, count, fused, plan});
  return *plan;
}

void eg_session::check_conditions(uint32_t program, uint32_t count) const {
  const eg::Manifest &m = model.bundle.manifest();
  const uint64_t needed = model.bundle.facts(program).conditions;
  for (size_t i = 0; i < settings_.size(); ++i) {
    if ((needed >> i & 1) == 0) continue;
    const eg::Condition &c = m.conditions[i];
    const Value &v = settings_[i];
    if (v.setting == Setting::missing) fail(EG_UNKNOWN_NAME, "condition '%.*s' is needed, %s; set it with eg_set", EG_SHOW(c.name), eg::dtype_name(c.dtype));
    if (v.setting == Setting::fallback && v.fault != EG_OK) fail(v.fault, "condition '%.*s': its default is not a value that it may have; set it with eg_set", EG_SHOW(c.name));
    if (v.setting == Setting::per_sample && v.samples != count) fail(EG_BAD_SHAPE, "condition '%.*s' was set for %u samples, this run has %u", EG_SHOW(c.name), v.samples, count);
  }
}

void eg_session::check_sample(const float *sample, size_t elements, uint32_t count) const {
  const size_t expected = static_cast<size_t>(model.bundle.manifest().sample.elements()) * count;
  if (sample != nullptr && elements != expected) fail(EG_BAD_SHAPE, "a sample buffer of %zu elements, expected %zu for a batch of %u", elements, expected, count);
}

void eg_session::run(eg::Plan &plan, uint32_t program, eg::RunContext context, const float *noise, float *sample) {
  const double began = now();
  last = nullptr;
  context.cancelled = &cancelled_;
  plan.calls().go();
  attach(&plan.calls());
  plan.start(noise, context);
  plan.run(context);
  if (sample != nullptr) {
    size_t elements = 0;
    const float *made = plan.output("sample", &elements);
    std::memcpy(sample, made, elements * sizeof(float));
  }
  for (const Ready &r : plans_) {
    if (r.plan == &plan) last_fused_ = r.fused;
  }
  last = &plan;
  last_program = program;
  last_seconds = now() - began;
}

void eg_session::attach(eg::Calls *calls) {
  const std::lock_guard<std::mutex> lock(cancel_mutex_);
  calls_ = calls;
}

void eg_session::generate(const eg::RunOptions &options, float *sample, size_t elements) {
  const Running running(*this);
  const uint32_t program = pick(options);
  const eg::ProgramEntry &entry = model.bundle.manifest().programs[program];
  if (model.bundle.facts(program).states > 0) fail(EG_BAD_STATE, "program '%.*s' has states, so it runs as a stream: eg_stream_step", EG_SHOW(entry.name));
  if (options.batch > batch) fail(EG_OUT_OF_RANGE, "a batch of %u, this session was made for at most %u", options.batch, batch);
  check_sample(sample, elements, options.batch);
  if (options.noise != nullptr) {
    const size_t expected = static_cast<size_t>(model.bundle.manifest().sample.elements()) * options.batch;
    if (options.noise_elements != expected) fail(EG_BAD_SHAPE, "noise of %zu elements, expected %zu for a batch of %u", options.noise_elements, expected, options.batch);
    const size_t bad = eg::first_nonfinite(options.noise, expected);
    if (bad < expected) fail(EG_NONFINITE, "noise: NaN or infinity at element %zu", bad);
  }
  check_conditions(program, options.batch);
  run(plan_of(program, options.batch, options.stepwise || options.context.on_step != nullptr), program, options.context, options.noise, sample);
}

void eg_session::stream_step(const eg::RunOptions &options, float *sample, size_t elements) {
  const Running running(*this);
  const eg::Manifest &m = model.bundle.manifest();
  Stream next = stream_;
  if (!next.running) {
    if (options.program == nullptr && options.steps == 0) {
      next.program = UINT32_MAX;
      for (uint32_t i = 0; i < m.programs.size() && next.program == UINT32_MAX; ++i) {
        if (model.bundle.facts(i).states > 0) next.program = i;
      }
      if (next.program == UINT32_MAX) fail(EG_BAD_STATE, "no program of this bundle has states, so none can run as a stream");
    } else {
      next.program = pick(options);
    }
    if (model.bundle.facts(next.program).states == 0) fail(EG_BAD_STATE, "program '%.*s' has no states, so it cannot run as a stream: eg_generate", EG_SHOW(m.programs[next.program].name));
    if (options.batch > batch) fail(EG_OUT_OF_RANGE, "a batch of %u, this session was made for at most %u", options.batch, batch);
    next.batch = options.batch;
    next.seed = options.context.seed;
    next.nonfinite_allowed = options.context.nonfinite_allowed;
    next.calls = 0;
  } else if (options.program != nullptr && m.programs[next.program].name != options.program) {
    fail(EG_BAD_STATE, "a stream of program '%.*s' is running, not of '%.80s'; eg_stream_reset ends it", EG_SHOW(m.programs[next.program].name), options.program);
  }
  if (options.noise != nullptr) fail(EG_BAD_ARGUMENT, "a stream draws its own noise; options->noise must be NULL");
  check_sample(sample, elements, next.batch);
  check_conditions(next.program, next.batch);
  next.plan = &plan_of(next.program, next.batch, true);
  if (!next.running) next.plan->reset_states();
  eg::RunContext context = options.context;
  context.seed = next.seed;
  context.nonfinite_allowed = next.nonfinite_allowed;
  context.call = next.calls;
  run(*next.plan, next.program, context, nullptr, sample);
  next.plan->commit_states();
  next.running = true;
  ++next.calls;
  stream_ = next;
}

void eg_session::need_run() const {
  if (last == nullptr) fail(EG_BAD_STATE, "this session has not run, or its last run failed");
}

void eg_session::get(const char *name, float *data, size_t elements) {
  need_run();
  size_t expected = 0;
  const float *found = last->output(name, &expected);
  if (found == nullptr) fail(EG_UNKNOWN_NAME, "program '%.*s' has no output '%.80s'", EG_SHOW(model.bundle.manifest().programs[last_program].name), name);
  if (elements != expected) fail(EG_BAD_SHAPE, "a buffer of %zu elements for output '%.80s', expected %zu", elements, name, expected);
  std::memcpy(data, found, elements * sizeof(float));
}

void eg_session::describe_output(uint32_t index, eg_tensor_info *info) const {
  need_run();
  const eg::Program &program = last->program();
  if (index >= program.outputs.size()) fail(EG_OUT_OF_RANGE, "output %u of %zu", index, program.outputs.size());
  const eg::ProgramOutput &output = program.outputs[index];
  info->dtype = EG_FLOAT32;
  info->name = output.text;
  info->rank = output.shape.rank + 1;
  info->shape[0] = last->batch();
  for (uint32_t i = 0; i < output.shape.rank; ++i) info->shape[i + 1] = output.shape.size[i];
}

void eg_session::self_test(uint32_t index, eg_golden *golden) {
  const Running running(*this);
  const eg::Bundle &bundle = model.bundle;
  const eg::Manifest &m = bundle.manifest();
  const eg::Variant &v = m.variants[variant];
  if (index >= v.golden.count()) fail(EG_OUT_OF_RANGE, "golden vector %u of %zu", index, v.golden.count());
  const eg::Golden vector = eg::golden_of(v, index);
  const uint32_t program = static_cast<uint32_t>(m.find_program(vector.program));
  if (bundle.facts(program).states > 0) fail(EG_BAD_STATE, "the golden vector of a program with states cannot be checked by itself");
  eg::Plan &plan = plan_of(program, 1, false);

  // default conditions for this run only
  eg::Block saved(model.memory, values_block_.size());
  if (saved.size() > 0) std::memcpy(saved.data(), values_block_.data(), saved.size());
  const auto restore = [&] {
    if (saved.size() > 0) std::memcpy(values_block_.data(), saved.data(), saved.size());
  };
  try {
    for (size_t i = 0; i < m.conditions.size(); ++i) {
      const eg::Condition &c = m.conditions[i];
      unsigned char one[8];
      const double value = c.fallback.exists ? c.fallback.value : c.minimum.exists ? c.minimum.value : 0.0;
      if (!write_number(value, c.dtype, one)) fail(EG_BAD_DTYPE, "condition '%.*s': its default %.9g is not a number that %s holds", EG_SHOW(c.name), value, eg::dtype_name(c.dtype));
      const size_t size = eg::bytes_of(c.dtype);
      for (size_t k = 0; k < settings_[i].elements; ++k) std::memcpy(values_[i] + k * size, one, size);
    }
    run(plan, program, eg::RunContext(), nullptr, nullptr);
  } catch (...) {
    restore();
    throw;
  }
  restore();

  size_t elements = 0;
  const float *found = plan.output("sample", &elements);
  const char *expected = bundle.member(vector.member).data();
  double squares = 0.0;
  for (size_t i = 0; i < elements; ++i) {
    float wanted;
    std::memcpy(&wanted, expected + i * sizeof wanted, sizeof wanted);
    const double difference = static_cast<double>(found[i]) - static_cast<double>(wanted);
    squares += difference * difference;
  }
  golden->program = model.texts.programs[program];
  golden->rmse = __builtin_sqrt(squares / static_cast<double>(elements));
  golden->tolerance = vector.tolerance;
  golden->passed = golden->rmse <= golden->tolerance ? 1 : 0;
}

void eg_session::cancel() noexcept {
  const std::lock_guard<std::mutex> lock(cancel_mutex_);
  if (!running_) return;
  cancelled_.store(1);
  if (calls_ != nullptr) calls_->stop();
}

namespace eg {

uint64_t session_bytes(eg_model &model, uint32_t batch, uint32_t program) {
  const Bundle &bundle = model.bundle;
  const ProgramEntry &entry = bundle.manifest().programs[program];
  Program decoded(model.memory);
  load_program(model.memory, bundle.member(entry.member), bundle.manifest(), entry.name, &decoded);
  const ConditionValues none(&model.memory);
  const Plan plan(model.memory, bundle.manifest(), decoded, batch, none, nullptr);
  uint64_t total = plan.bytes();
  for (const Variant &v : bundle.manifest().variants) {
    const int index = find_fused(v, entry.name, batch);
    if (index < 0) continue;
    Fused fused(model.memory);
    make_fused(model.memory, bundle, fused_of(v, static_cast<size_t>(index)), &fused);
    const Plan short_plan(model.memory, fused.manifest, fused.program, batch, none, nullptr);
    total = std::max<uint64_t>(total, short_plan.bytes());
  }
  for (const Condition &c : bundle.manifest().conditions) total += rounded(static_cast<size_t>(c.shape.elements()) * batch * bytes_of(c.dtype));
  return total;
}

}  // namespace eg
