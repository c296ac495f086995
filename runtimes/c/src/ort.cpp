#include "ort.h"

#include <atomic>
#include <cstring>
#include <dlfcn.h>
#include <mutex>

#include "network.h"
#include "ort_library.h"

namespace eg {

namespace {

// ONNX Runtime's registries race when two sessions are made at once (onnxruntime#27089).
std::mutex construction;

ONNXTensorElementDataType onnx_type(eg_dtype dtype) {
  switch (dtype) {
    case EG_FLOAT32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case EG_FLOAT64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case EG_FLOAT16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case EG_INT64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case EG_INT32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case EG_INT8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case EG_UINT8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
  }
}

// Turns a status that is not OK into a Fault, and releases it.
class Checked {
 public:
  Checked(const OrtApi *api, const char *what) : api_(api), what_(what) {}
  void operator()(OrtStatus *status, eg_status code = EG_BACKEND_FAILED) const {
    if (status == nullptr) return;
    char text[EG_MESSAGE_SIZE];
    size_t size = View(api_->GetErrorMessage(status)).copy(text, sizeof text - 1);
    while (size > 0 && (text[size - 1] == '\n' || text[size - 1] == ' ')) --size;
    text[size] = '\0';
    api_->ReleaseStatus(status);
    fail(code, "%s: ONNX Runtime: %s", what_, text);
  }

 private:
  const OrtApi *api_;
  const char *what_;
};

// An object of ONNX Runtime that releases itself.
template <class T>
class Held {
 public:
  explicit Held(void (*release)(T *)) : release_(release) {}
  Held(Held &&other) noexcept : release_(other.release_), object_(std::exchange(other.object_, nullptr)) {}
  Held(const Held &) = delete;
  Held &operator=(const Held &) = delete;
  ~Held() {
    if (object_ != nullptr) release_(object_);
  }
  T **out() { return &object_; }
  T *get() const { return object_; }

 private:
  void (*release_)(T *);
  T *object_ = nullptr;
};

bool same_letters(View a, View b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if ((a[i] | 0x20) != (b[i] | 0x20)) return false;
  }
  return true;
}

class OrtEngine;

class OrtCalls final : public Calls {
 public:
  OrtCalls(Memory &memory, const OrtEngine &engine);
  void destroy() noexcept override { memory_.destroy(this); }
  void bind(uint16_t component, const Tensor *inputs, const Tensor *outputs, const uint16_t *output_index, size_t count) override;
  void run(uint32_t call) override;
  void stop() noexcept override;
  void go() override;

 private:
  struct Call {
    uint16_t component;
    uint32_t first, inputs, outputs, first_name;
  };
  // A value bound before: the same place with the same shape, used by another call.
  struct Bound {
    const void *data;
    uint32_t tensor;  // of the manifest
    int64_t rows;
    OrtValue *value;
  };

  OrtValue *value_of(uint32_t tensor, const Tensor &t);

  Memory &memory_;
  const OrtEngine &engine_;
  Held<OrtRunOptions> options_;
  std::atomic<bool> stopped_{false};
  Vec<Call> calls_;
  Vec<OrtValue *> values_;       // of each call: inputs, outputs
  Vec<const char *> out_names_;  // of each call
  Vec<Held<OrtValue>> owned_;
  Vec<Bound> bound_;             // sorted by data
};

class OrtEngine final : public Engine {
 public:
  OrtEngine(Memory &memory, const Networks &networks, const Vec<Network> &checked, Json providers, uint32_t threads, const OrtLibrary &library)
      : memory(memory), manifest(networks.manifest), kind(networks.kind), library(library), api(library.api), environment(api->ReleaseEnv), cpu(api->ReleaseMemoryInfo), texts(memory), names(&memory),
        weights_(&memory), copies_(&memory), sessions(&memory) {
    const Checked check(api, "the engine");
    check(api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "edgegen", environment.out()));  // what fails comes back as a status
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, cpu.out()));
    std::snprintf(description_, sizeof description_, "ONNX Runtime %.40s, %s", library.version, library.path);
    for (const TensorSpec &t : manifest.tensors) names.push_back(texts.keep(t.name));
    sessions.reserve(manifest.components.size());
    for (size_t i = 0; i < manifest.components.size(); ++i) open(networks, checked[i], providers, i, threads);
  }
  void destroy() noexcept override { memory.destroy(this); }
  Calls *make_calls() override { return memory.make<OrtCalls>(memory, *this); }
  const char *description() const override { return description_; }

  Memory &memory;
  const Manifest &manifest;
  const char *kind;
  OrtLibrary library;
  const OrtApi *api;
  Held<OrtEnv> environment;
  Held<OrtMemoryInfo> cpu;
  Texts texts;
  Vec<const char *> names;  // of the manifest's tensors

 private:
  Vec<Held<OrtValue>> weights_;  // constants outside the models: they must outlive the sessions
  Vec<Block> copies_;            // of weights that were not aligned

 public:
  Vec<Held<OrtSession>> sessions;  // by component

 private:
  void open(const Networks &networks, const Network &network, Json providers, size_t index, uint32_t threads);
  void add_providers(Json providers, OrtSessionOptions *options);
  void add_provider(View name, const char *const *keys, const char *const *values, size_t count, OrtSessionOptions *options);
  void add_weights(const Network &network, const Vec<Weights> &weights, OrtSessionOptions *options);

  char description_[PATH_MAX + 64];
};

void OrtEngine::open(const Networks &networks, const Network &network, Json providers, size_t index, uint32_t threads) {
  const View model = networks.models[index];
  char what[100];
  std::snprintf(what, sizeof what, "%s '%.*s'", kind, EG_SHOW(manifest.components[index].name));
  const Checked check(api, what);
  Held<OrtSessionOptions> options(api->ReleaseSessionOptions);
  check(api->CreateSessionOptions(options.out()));
  check(api->SetIntraOpNumThreads(options.get(), static_cast<int>(threads)));
  check(api->SetInterOpNumThreads(options.get(), 1));
  check(api->SetSessionLogSeverityLevel(options.get(), ORT_LOGGING_LEVEL_FATAL));
  add_providers(providers, options.get());
  add_weights(network, networks.weights[index], options.get());
  sessions.emplace_back(api->ReleaseSession);
  const std::lock_guard<std::mutex> lock(construction);
  check(api->CreateSessionFromArray(environment.get(), model.data(), model.size(), options.get(), sessions.back().out()));
}

// Large constants are read where they lie: AddExternalInitializers tells the optimizer of them, AddInitializer keeps the session from copying them.
void OrtEngine::add_weights(const Network &network, const Vec<Weights> &weights, OrtSessionOptions *options) {
  if (network.outside.empty()) return;
  const Checked check(api, "weights");
  Vec<const char *> bases(&memory);
  for (const Weights &w : weights) {
    bases.push_back(w.bytes.data());
    if (reinterpret_cast<uintptr_t>(w.bytes.data()) % 64 == 0) continue;
    copies_.emplace_back(memory, w.bytes.size());
    std::memcpy(copies_.back().data(), w.bytes.data(), w.bytes.size());
    bases.back() = reinterpret_cast<const char *>(copies_.back().data());
  }
  Vec<const char *> constant_names(&memory);
  Vec<OrtValue *> constants(&memory);
  for (const OutsideConstant &c : network.outside) {
    weights_.emplace_back(api->ReleaseValue);
    char *place = const_cast<char *>(bases[c.member]) + c.offset;  // read only: the API has no const
    check(api->CreateTensorWithDataAsOrtValue(cpu.get(), place, static_cast<size_t>(c.size), network.dims.data() + c.first_dim, c.dims, static_cast<ONNXTensorElementDataType>(c.onnx_type),
                                              weights_.back().out()));
    constant_names.push_back(texts.keep(c.name));
    constants.push_back(weights_.back().get());
  }
  check(api->AddExternalInitializers(options, constant_names.data(), constants.data(), constants.size()));
  for (size_t i = 0; i < constants.size(); ++i) check(api->AddInitializer(options, constant_names[i], constants[i]));
}

void OrtEngine::add_providers(Json providers, OrtSessionOptions *options) {
  for (Items i(providers); i.next();) {
    Json name, settings;
    read_fields(i.value, EG_BAD_MANIFEST, "provider", {{"name", Json::Kind::string, &name}, {"options", Json::Kind::object, &settings}});
    Vec<const char *> keys(&memory), values(&memory);
    for (Items o(settings); o.next();) {
      keys.push_back(texts.keep(o.key));
      Block plain(memory, o.value.text().size());
      char *characters = reinterpret_cast<char *>(plain.data());
      values.push_back(texts.keep(View(characters, unescape(o.value.string(), characters))));
    }
    add_provider(name.string(), keys.data(), values.data(), keys.size(), options);
  }
}

void OrtEngine::add_provider(View name, const char *const *keys, const char *const *values, size_t count, OrtSessionOptions *options) {
  char what[100];
  std::snprintf(what, sizeof what, "execution provider %.*s", EG_SHOW(name));
  const Checked check(api, what);
  char **available = nullptr;
  int length = 0;
  check(api->GetAvailableProviders(&available, &length));
  constexpr View suffix = "ExecutionProvider";
  bool there = false;
  char listed[200] = "";
  for (int i = 0; i < length; ++i) {
    const View known = available[i];
    there = there || (known.size() > suffix.size() && same_letters(known.substr(0, known.size() - suffix.size()), name));
    std::strncat(listed, i == 0 ? "" : ", ", sizeof listed - std::strlen(listed) - 1);
    std::strncat(listed, available[i], sizeof listed - std::strlen(listed) - 1);
  }
  check(api->ReleaseAvailableProviders(available, length));
  if (!there) fail(EG_PROVIDER_MISSING, "the execution provider %.*s is needed, which ONNX Runtime %.40s here does not have; it has %s", EG_SHOW(name), library.version, listed);

  if (same_letters(name, "CPU")) return;
  if (same_letters(name, "CUDA")) {
    Held<OrtCUDAProviderOptionsV2> settings(api->ReleaseCUDAProviderOptions);
    check(api->CreateCUDAProviderOptions(settings.out()), EG_PROVIDER_MISSING);
    check(api->UpdateCUDAProviderOptions(settings.get(), keys, values, count), EG_PROVIDER_MISSING);
    check(api->SessionOptionsAppendExecutionProvider_CUDA_V2(options, settings.get()), EG_PROVIDER_MISSING);
  } else if (same_letters(name, "TensorRT")) {
    Held<OrtTensorRTProviderOptionsV2> settings(api->ReleaseTensorRTProviderOptions);
    check(api->CreateTensorRTProviderOptions(settings.out()), EG_PROVIDER_MISSING);
    check(api->UpdateTensorRTProviderOptions(settings.get(), keys, values, count), EG_PROVIDER_MISSING);
    check(api->SessionOptionsAppendExecutionProvider_TensorRT_V2(options, settings.get()), EG_PROVIDER_MISSING);
  } else if (same_letters(name, "NNAPI")) {
    // has no place in the API: a function of its own, with flags
    const auto append = reinterpret_cast<OrtStatus *(*)(OrtSessionOptions *, uint32_t)>(dlsym(library.handle, "OrtSessionOptionsAppendExecutionProvider_Nnapi"));
    if (append == nullptr) fail(EG_PROVIDER_MISSING, "this ONNX Runtime has no function for the execution provider NNAPI");
    uint32_t flags = 0;
    for (size_t i = 0; i < count; ++i) {
      if (View(keys[i]) != "flags" || values[i][0] < '0' || values[i][0] > '9' || values[i][1] != '\0') fail(EG_INCONSISTENT, "NNAPI takes one option, `flags`, 0 .. 9; found '%.64s'", keys[i]);
      flags = static_cast<uint32_t>(values[i][0] - '0');
    }
    check(append(options, flags), EG_PROVIDER_MISSING);
  } else {
    // short names as the API spells them
    static const char *const kSpelled[] = {"XNNPACK", "CoreML", "QNN", "OpenVINO", "NvTensorRtRtx", "WebGPU", "VitisAI", "SNPE", "AZURE"};
    const char *spelled = texts.keep(name);
    for (const char *s : kSpelled) {
      if (same_letters(name, s)) spelled = s;
    }
    check(api->SessionOptionsAppendExecutionProvider(options, spelled, keys, values, count), EG_PROVIDER_MISSING);
  }
}

OrtCalls::OrtCalls(Memory &memory, const OrtEngine &engine)
    : memory_(memory), engine_(engine), options_(engine.api->ReleaseRunOptions), calls_(&memory), values_(&memory), out_names_(&memory), owned_(&memory), bound_(&memory) {
  Checked(engine.api, "the engine")(engine.api->CreateRunOptions(options_.out()));
}

OrtValue *OrtCalls::value_of(uint32_t tensor, const Tensor &t) {
  const int64_t rows = t.rank > 0 ? t.shape[0] : 0;
  size_t low = 0, high = bound_.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (bound_[middle].data < t.data) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  for (size_t i = low; i < bound_.size() && bound_[i].data == t.data; ++i) {
    if (bound_[i].tensor == tensor && bound_[i].rows == rows) return bound_[i].value;
  }
  owned_.emplace_back(engine_.api->ReleaseValue);
  Checked(engine_.api, engine_.names[tensor])(
      engine_.api->CreateTensorWithDataAsOrtValue(engine_.cpu.get(), t.data, t.bytes(), t.shape, t.rank, onnx_type(t.dtype), owned_.back().out()));
  bound_.insert(bound_.begin() + static_cast<ptrdiff_t>(low), {t.data, tensor, rows, owned_.back().get()});
  return owned_.back().get();
}

void OrtCalls::bind(uint16_t component, const Tensor *inputs, const Tensor *outputs, const uint16_t *output_index, size_t count) {
  const Component &c = engine_.manifest.components[component];
  calls_.push_back({component, static_cast<uint32_t>(values_.size()), c.inputs, static_cast<uint32_t>(count), static_cast<uint32_t>(out_names_.size())});
  for (uint32_t i = 0; i < c.inputs; ++i) values_.push_back(value_of(c.first + i, inputs[i]));
  for (size_t i = 0; i < count; ++i) {
    const uint32_t tensor = c.first + c.inputs + output_index[i];
    values_.push_back(value_of(tensor, outputs[i]));
    out_names_.push_back(engine_.names[tensor]);
  }
}

void OrtCalls::run(uint32_t number) {
  const Call &call = calls_[number];
  const Component &component = engine_.manifest.components[call.component];
  OrtValue **values = values_.data() + call.first;
  OrtStatus *status = engine_.api->Run(engine_.sessions[call.component].get(), options_.get(), engine_.names.data() + component.first, values, call.inputs,
                                       out_names_.data() + call.first_name, call.outputs, values + call.inputs);
  if (status == nullptr) return;
  if (stopped_.load()) {
    engine_.api->ReleaseStatus(status);
    fail(EG_CANCELLED, "cancelled by eg_cancel inside a network");
  }
  char what[100];
  std::snprintf(what, sizeof what, "%s '%.*s'", engine_.kind, EG_SHOW(component.name));
  Checked(engine_.api, what)(status);
}

void OrtCalls::stop() noexcept {
  stopped_.store(true);
  OrtStatus *status = engine_.api->RunOptionsSetTerminate(options_.get());
  if (status != nullptr) engine_.api->ReleaseStatus(status);
}

void OrtCalls::go() {
  if (!stopped_.load()) return;
  Checked(engine_.api, "the engine")(engine_.api->RunOptionsUnsetTerminate(options_.get()));
  stopped_.store(false);
}

}  // namespace

Engine *open_onnxruntime(Memory &memory, const Networks &networks, Json providers, uint32_t threads, const char *path) {
  Vec<Network> checked(&memory);  // before the engine is even loaded
  const Vec<Component> &components = networks.manifest.components;
  for (size_t i = 0; i < components.size(); ++i) {
    checked.emplace_back(memory);
    check_network(memory, networks.models[i], networks.manifest, components[i], networks.batch, networks.weights[i], &checked.back());
  }
  return memory.make<OrtEngine>(memory, networks, checked, providers, threads, load_onnxruntime(path));
}

}  // namespace eg
