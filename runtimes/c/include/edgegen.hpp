// edgegen.hpp: edgegen.h for C++17, header-only. The comments of edgegen.h are the manual; here is only what differs.
//
//     edgegen::Model model = edgegen::Model::open("digits.edgegen");
//     edgegen::Session session(model);
//     session.set("label", 3);
//     std::vector<float> image = session.generate();
//
// Lifetime: a Model is a shared handle: copies are cheap, and are the same model. A Session can be moved, not copied, and keeps its model open. Using
// what was moved away throws Error.
//
// Threads: as in edgegen.h. A Model may be used by any number of threads, a Session by one at a time, Session::cancel is for any thread.
//
// Errors: what fails throws Error, whose status() is the eg_status. What a callback throws (a step function, a component function, a log) stops the call
// that it was made from, which throws it on to its caller. Callbacks must not call the session that calls them, cancel() apart.
//
// Memory: second and later calls of set (without a shape), generate_into, stream_step_into and get_into allocate nothing.
#ifndef EDGEGEN_HPP
#define EDGEGEN_HPP

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "edgegen.h"

namespace edgegen {

class Error : public std::runtime_error {
 public:
  Error(eg_status number, const std::string &message) : std::runtime_error(message), status_(number) {}
  eg_status status() const noexcept { return status_; }

 private:
  eg_status status_;
};

// Elements that are kept elsewhere: of whatever has data() and size(), of an array, or a pointer and a count.
template <class T>
class Span {
 public:
  constexpr Span() noexcept = default;
  constexpr Span(T *first, std::size_t count) noexcept : data_(first), size_(count) {}
  template <class Values, class From = std::remove_pointer_t<decltype(std::data(std::declval<Values &>()))>,
            class = std::enable_if_t<std::is_convertible_v<From (*)[], T (*)[]>>>
  constexpr Span(Values &&values) noexcept : data_(std::data(values)), size_(std::size(values)) {}

  constexpr T *data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T *begin() const noexcept { return data_; }
  constexpr T *end() const noexcept { return data_ + size_; }
  constexpr T &operator[](std::size_t index) const { return data_[index]; }

 private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

// A name: a literal or a std::string.
struct Name {
  Name(const char *literal) noexcept : text(literal) {}
  Name(const std::string &string) noexcept : text(string.c_str()) {}
  const char *text;
};

using Shape = std::vector<std::int64_t>;

// The bits of a float16.
struct Half {
  std::uint16_t bits;
};

// The dtype of a C++ type.
template <class T>
constexpr eg_dtype dtype_of() {
  constexpr bool whole = std::is_integral_v<T> && !std::is_same_v<T, char>;
  constexpr bool with_sign = whole && std::is_signed_v<T>;
  if constexpr (std::is_same_v<T, float>) {
    return EG_FLOAT32;
  } else if constexpr (std::is_same_v<T, double>) {
    return EG_FLOAT64;
  } else if constexpr (std::is_same_v<T, Half>) {
    return EG_FLOAT16;
  } else if constexpr (std::is_same_v<T, bool>) {
    return EG_BOOL;
  } else if constexpr (with_sign && sizeof(T) == 8) {
    return EG_INT64;
  } else if constexpr (with_sign && sizeof(T) == 4) {
    return EG_INT32;
  } else if constexpr (with_sign && sizeof(T) == 1) {
    return EG_INT8;
  } else {
    static_assert(whole && sizeof(T) == 1, "edgegen: expected float, double, edgegen::Half, bool, or an integer of 64, 32 or 8 bits (of 8 also unsigned)");
    return EG_UINT8;
  }
}

inline const char *dtype_name(eg_dtype dtype) {
  constexpr const char *names[] = {"float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool"};
  return dtype >= EG_FLOAT32 && dtype <= EG_BOOL ? names[dtype - EG_FLOAT32] : "no dtype";
}

// ---- What is inside. ----

struct ModelInfo {
  std::string name, summary, licence, producer;
  std::uint64_t bytes;  // of the file
  bool trusted_pickle;
  double low, high;  // the range of a sample's values
  bool image;        // a sample is [channels, height, width]
  Shape shape;       // of one sample
  std::size_t elements;
};

struct Condition {
  std::string name, summary;
  eg_dtype dtype;
  Shape shape;  // without the batch
  std::optional<double> minimum, maximum, default_value, null_value;
};

struct TensorInfo {
  std::string name;
  eg_dtype dtype;
  Shape shape;  // -1: the batch
};

struct Component {
  std::string name;
  std::vector<TensorInfo> inputs, outputs;
};

struct Program {
  std::string name;
  std::uint32_t steps, instructions, evaluations;
  std::uint32_t states;                 // above 0: for stream_step
  std::vector<std::string> conditions;  // that it reads
};

struct Variant {
  std::string name, engine, providers;
  std::optional<std::string> milliseconds;
  std::uint64_t bytes;
  std::uint32_t golden, fused, threads;
};

struct SessionInfo {
  std::uint32_t batch;
  std::string variant, engine;
};

struct Report {
  std::string program, variant;
  std::uint32_t batch, evaluations;
  double seconds, network_seconds;
};

struct ComponentReport {
  std::uint32_t evaluations;
  double seconds;
};

struct Golden {
  std::string program;
  bool passed;
  double rmse, tolerance;
};

// ---- What is chosen. ----

// A tensor of a component function: read inputs, fill outputs.
class Tensor {
 public:
  explicit Tensor(const eg_tensor &tensor) noexcept : tensor_(&tensor) {}
  const char *name() const noexcept { return tensor_->name; }
  eg_dtype dtype() const noexcept { return tensor_->dtype; }
  Span<const std::int64_t> shape() const noexcept { return {tensor_->shape, tensor_->rank}; }
  void *data() const noexcept { return tensor_->data; }
  std::size_t bytes() const noexcept { return tensor_->bytes; }

  // The elements, T as the dtype is, such as float for outputs and const float for inputs. Throws Error (EG_BAD_DTYPE) for another type.
  template <class T>
  Span<T> values() const {
    constexpr eg_dtype wanted = dtype_of<std::remove_const_t<T>>();
    if (wanted != dtype()) throw Error(EG_BAD_DTYPE, std::string("tensor '") + name() + "' holds " + dtype_name(dtype()) + ", not " + dtype_name(wanted));
    return {static_cast<T *>(data()), bytes() / sizeof(T)};
  }

 private:
  const eg_tensor *tensor_;
};

class Tensors {
 public:
  Tensors(const eg_tensor *first, std::uint32_t count) noexcept : first_(first), size_(count) {}
  std::size_t size() const noexcept { return size_; }

  // struct_size apart, because a later library's tensors may be larger than this header's.
  Tensor operator[](std::size_t index) const {
    const auto *bytes = reinterpret_cast<const unsigned char *>(first_);
    return Tensor(*reinterpret_cast<const eg_tensor *>(bytes + index * first_->struct_size));
  }

  // By name. Throws Error (EG_UNKNOWN_NAME) if there is none: of outputs there are those that programs use.
  Tensor named(Name name) const {
    for (std::size_t i = 0; i < size_; ++i) {
      if (std::strcmp((*this)[i].name(), name.text) == 0) return (*this)[i];
    }
    throw Error(EG_UNKNOWN_NAME, std::string("no tensor '") + name.text + "' among the " + std::to_string(size_) + " of this component");
  }

 private:
  const eg_tensor *first_;
  std::size_t size_;
};

// Called when a step is done; returns true to go on, false to cancel (Error with EG_CANCELLED). `sample` is valid during the call.
using OnStep = std::function<bool(std::uint32_t done, std::uint32_t total, Span<const float> sample)>;

// Runs a network in place of an engine.
using ComponentFunction = std::function<void(const char *component, const Tensors &inputs, const Tensors &outputs)>;

using Log = std::function<void(const char *line)>;

struct OpenOptions {
  bool mapped = false;    // Model::open
  bool borrowed = false;  // Model::from_memory
  const eg_allocator *allocator = nullptr;
};

struct SessionOptions {
  std::uint32_t threads = 0;
  std::uint32_t batch = 1;
  std::string variant = {};      // "": the first that this device can run
  std::string onnxruntime = {};  // path of libonnxruntime; "": the usual places
  ComponentFunction component = {};
  Log log = {};
};

struct RunOptions {
  std::uint64_t seed = 0;
  std::string program = {};  // "": the one of `steps`, else the default
  std::uint32_t steps = 0;   // 0: no choice
  std::uint32_t batch = 1;
  Span<const float> noise = {};  // empty: the seed's
  OnStep on_step = {};
  bool allow_nonfinite = false;
  bool stepwise = false;  // also where the variant holds the program as one network
};

namespace detail {

inline void check(eg_status status, const char *what) {
  if (status != EG_OK) throw Error(status, std::string(what) + ": " + eg_status_str(status));
}

inline void check_library() {
  constexpr std::uint32_t major = EG_ABI_MAJOR, minor = EG_ABI_MINOR, needed = major << 16 | minor;
  const std::uint32_t found = eg_abi_version();
  if (found >= needed && found >> 16 == major) return;
  throw Error(EG_BAD_STATE, "libedgegen " + std::string(eg_version()) + " has interface " + std::to_string(found >> 16) + "." + std::to_string(found & 0xffff) + ", this program was compiled for " +
                                std::to_string(major) + "." + std::to_string(minor) + ": install the library that came with its headers");
}

inline const char *text_or_null(const std::string &text) { return text.empty() ? nullptr : text.c_str(); }

inline Shape shape_of(std::uint32_t rank, const std::int64_t *sizes) { return Shape(sizes, sizes + rank); }

inline std::size_t elements_of(std::uint32_t rank, const std::int64_t *sizes) {
  std::size_t count = 1;
  for (std::uint32_t i = 0; i < rank; ++i) count *= static_cast<std::size_t>(sizes[i]);
  return count;
}

inline eg_open_options open_options(const OpenOptions &given) {
  eg_open_options made = EG_OPEN_OPTIONS_INIT;
  made.flags = (given.mapped ? EG_OPEN_MAPPED : 0u) | (given.borrowed ? EG_OPEN_BORROWED : 0u);
  made.allocator = given.allocator;
  return made;
}

// Without the callbacks.
inline eg_session_options session_options(const SessionOptions &given) {
  eg_session_options made = EG_SESSION_OPTIONS_INIT;
  made.threads = given.threads;
  made.batch = given.batch;
  made.variant = text_or_null(given.variant);
  made.onnxruntime = text_or_null(given.onnxruntime);
  return made;
}

// Without the step function.
inline eg_run_options run_options(const RunOptions &given) {
  eg_run_options made = EG_RUN_OPTIONS_INIT;
  made.flags = (given.allow_nonfinite ? EG_RUN_NONFINITE : 0u) | (given.stepwise ? EG_RUN_STEPWISE : 0u);
  made.seed = given.seed;
  made.program = text_or_null(given.program);
  made.steps = given.steps;
  made.batch = given.batch;
  made.noise = given.noise.empty() ? nullptr : given.noise.data();
  made.noise_elements = given.noise.size();
  return made;
}

}  // namespace detail

class Model {
 public:
  static Model open(const std::string &path, const OpenOptions &options = {}) {
    detail::check_library();
    const eg_open_options chosen = detail::open_options(options);
    eg_model *made = nullptr;
    eg_message why;
    const eg_status status = eg_open(path.c_str(), &chosen, &made, &why);
    return Model(status, made, why);
  }

  static Model from_memory(const void *bytes, std::size_t size, const OpenOptions &options = {}) {
    detail::check_library();
    const eg_open_options chosen = detail::open_options(options);
    eg_model *made = nullptr;
    eg_message why;
    const eg_status status = eg_open_memory(bytes, size, &chosen, &made, &why);
    return Model(status, made, why);
  }

  ModelInfo info() const {
    const eg_model_info i = described();
    return {i.name, i.summary, i.licence, i.producer, i.bytes, i.trusted_pickle != 0, i.low, i.high, i.image != 0, detail::shape_of(i.rank, i.shape), static_cast<std::size_t>(i.elements)};
  }

  std::vector<Condition> conditions() const {
    std::vector<Condition> all;
    for (std::uint32_t i = 0; i < described().conditions; ++i) {
      eg_condition_info c = EG_CONDITION_INFO_INIT;
      detail::check(eg_condition_describe(handle(), i, &c), "condition");
      const auto number = [&](std::uint32_t bit, double value) { return (c.has & bit) != 0 ? std::optional<double>(value) : std::nullopt; };
      all.push_back({c.name, c.summary, c.dtype, detail::shape_of(c.rank, c.shape), number(EG_HAS_MINIMUM, c.minimum), number(EG_HAS_MAXIMUM, c.maximum), number(EG_HAS_DEFAULT, c.default_value),
                     number(EG_HAS_NULL, c.null_value)});
    }
    return all;
  }

  std::vector<Component> components() const {
    std::vector<Component> all;
    for (std::uint32_t i = 0; i < described().components; ++i) {
      eg_component_info c = EG_COMPONENT_INFO_INIT;
      detail::check(eg_component_describe(handle(), i, &c), "component");
      Component made{c.name, {}, {}};
      for (std::uint32_t k = 0; k < c.inputs + c.outputs; ++k) {
        eg_tensor_info t = EG_TENSOR_INFO_INIT;
        detail::check(eg_component_tensor(handle(), i, k, &t), "tensor");
        (k < c.inputs ? made.inputs : made.outputs).push_back({t.name, t.dtype, detail::shape_of(t.rank, t.shape)});
      }
      all.push_back(std::move(made));
    }
    return all;
  }

  std::vector<Program> programs() const {
    const std::vector<Condition> known = conditions();
    std::vector<Program> all;
    for (std::uint32_t i = 0; i < described().programs; ++i) {
      eg_program_info p = EG_PROGRAM_INFO_INIT;
      detail::check(eg_program_describe(handle(), i, &p), "program");
      Program made{p.name, p.steps, p.instructions, p.evaluations, p.states, {}};
      for (std::size_t k = 0; k < known.size(); ++k) {
        if ((p.conditions >> k & 1) != 0) made.conditions.push_back(known[k].name);
      }
      all.push_back(std::move(made));
    }
    return all;
  }

  std::vector<Variant> variants() const {
    std::vector<Variant> all;
    for (std::uint32_t i = 0; i < described().variants; ++i) {
      eg_variant_info v = EG_VARIANT_INFO_INIT;
      detail::check(eg_variant_describe(handle(), i, &v), "variant");
      all.push_back({v.name, v.engine, v.providers, v.milliseconds == nullptr ? std::nullopt : std::optional<std::string>(v.milliseconds), v.bytes, v.golden, v.fused, v.threads});
    }
    return all;
  }

  // A JSON document: "recipe", "report" or "measured".
  std::string document(Name name) const {
    const char *text = nullptr;
    std::size_t size = 0;
    detail::check(eg_document(handle(), name.text, &text, &size), name.text);
    return std::string(text, size);
  }

  // Bytes that a session allocates for a program, "" for the default one.
  std::uint64_t session_memory(const SessionOptions &options = {}, const std::string &program = {}) const {
    const eg_session_options chosen = detail::session_options(options);
    std::uint64_t bytes = 0;
    eg_message why;
    const eg_status status = eg_session_memory(handle(), &chosen, detail::text_or_null(program), &bytes, &why);
    if (status != EG_OK) throw Error(status, why.text);
    return bytes;
  }

  // For the C functions. Closed with the last copy and the last session.
  eg_model *handle() const noexcept { return handle_.get(); }

 private:
  Model(eg_status status, eg_model *made, const eg_message &why) {
    if (status != EG_OK) throw Error(status, why.text);
    handle_.reset(made, eg_close);
  }

  eg_model_info described() const {
    eg_model_info i = EG_MODEL_INFO_INIT;
    detail::check(eg_model_describe(handle(), &i), "model");
    return i;
  }

  std::shared_ptr<eg_model> handle_;
};

class Session {
 public:
  explicit Session(const Model &model, const SessionOptions &options = {}) : state_(std::make_unique<State>(model, options)) {
    eg_session_options chosen = detail::session_options(options);
    chosen.component = options.component ? &State::run_component : nullptr;
    chosen.component_user = state_.get();
    chosen.log = options.log ? &State::write_log : nullptr;
    chosen.log_user = state_.get();
    eg_message why;
    const eg_status status = eg_session_create(model.handle(), &chosen, &state_->handle, &why);
    state_->rethrow();
    if (status != EG_OK) throw Error(status, why.text);
  }

  SessionInfo info() const {
    eg_session_info i = EG_SESSION_INFO_INIT;
    detail::check(eg_session_describe(handle(), &i), "session");
    return {i.batch, i.variant, i.engine};
  }

  // Set every element of a condition to a number.
  template <class Number, class = std::enable_if_t<std::is_arithmetic_v<Number>>>
  void set(Name name, Number value) {
    constexpr std::int64_t most = std::int64_t(1) << 53;
    if constexpr (std::is_integral_v<Number> && sizeof(Number) == 8) {
      const bool exact = value <= static_cast<Number>(most) && (std::is_unsigned_v<Number> || value >= static_cast<Number>(-most));
      if (!exact) throw Error(EG_OUT_OF_RANGE, std::string("condition '") + name.text + "': " + std::to_string(value) + " is beyond 2^53, where a number may lose digits; set an array of int64_t");
    }
    call([&](eg_session *s) { return eg_set_number(s, name.text, static_cast<double>(value)); });
  }

  // Set a condition to elements of its dtype: a vector, an array, a Span. Without a shape it is the condition's, with the samples in front if there are
  // more elements than one sample has.
  template <class Values, class = decltype(std::data(std::declval<const Values &>()))>
  void set(Name name, const Values &values, const Shape &shape = {}) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(std::data(values))>>;
    const T *data = std::data(values);
    eg_tensor tensor = EG_TENSOR_INIT;
    tensor.dtype = dtype_of<T>();
    tensor.name = name.text;
    tensor.data = const_cast<T *>(data);  // eg_set only reads
    tensor.bytes = std::size(values) * sizeof(T);
    if (shape.empty()) {
      shape_by_count(tensor, std::size(values));
    } else {
      if (shape.size() > EG_MAX_RANK) throw Error(EG_BAD_SHAPE, std::string("condition '") + name.text + "': a shape of " + std::to_string(shape.size()) + " sizes, expected at most 8");
      tensor.rank = static_cast<std::uint32_t>(shape.size());
      std::copy(shape.begin(), shape.end(), tensor.shape);
    }
    call([&](eg_session *s) { return eg_set(s, &tensor); });
  }

  template <class T>
  void set(Name name, std::initializer_list<T> values, const Shape &shape = {}) {
    set(name, Span<const T>(values.begin(), values.size()), shape);
  }

  // Back to the default, of one condition or of all.
  void unset(Name name) {
    call([&](eg_session *s) { return eg_unset(s, name.text); });
  }
  void unset() {
    call([](eg_session *s) { return eg_unset(s, nullptr); });
  }

  // Samples, [batch, sample shape].
  std::vector<float> generate(const RunOptions &options = {}) {
    std::vector<float> sample(elements(options.batch));
    generate_into(sample, options);
    return sample;
  }

  // The same in the caller's memory, of exactly as many elements.
  void generate_into(Span<float> sample, const RunOptions &options = {}) { run_with(eg_generate, options, place(sample), sample.size()); }

  // The same without a copy of the sample: see get.
  void run(const RunOptions &options = {}) { run_with(eg_generate, options, nullptr, 0); }

  // The next step of a stream. Its first step fixes program, seed, batch and allow_nonfinite.
  std::vector<float> stream_step(const RunOptions &options = {}) {
    std::vector<float> sample(elements(state().stream_batch > 0 ? state().stream_batch : options.batch));
    stream_step_into(sample, options);
    return sample;
  }

  void stream_step_into(Span<float> sample, const RunOptions &options = {}) {
    run_with(eg_stream_step, options, place(sample), sample.size());
    if (state().stream_batch == 0) state().stream_batch = options.batch;
  }

  // Begin again.
  void stream_reset() {
    call([](eg_session *s) { return eg_stream_reset(s); });
    state().stream_batch = 0;
  }

  // Stop the run that is going on, if one is. From any thread, but not while the session is moved or destroyed.
  void cancel() noexcept { eg_cancel(state_ ? state_->handle : nullptr); }

  // The outputs of the last run, with the batch in front of their shapes.
  std::vector<TensorInfo> outputs() const {
    std::vector<TensorInfo> all;
    eg_tensor_info o = EG_TENSOR_INFO_INIT;
    for (std::uint32_t i = 0; describe_output(i, &o); ++i) all.push_back({o.name, o.dtype, detail::shape_of(o.rank, o.shape)});
    return all;
  }

  // One of them.
  std::vector<float> get(Name name) {
    std::size_t count = 0;
    eg_tensor_info o = EG_TENSOR_INFO_INIT;
    for (std::uint32_t i = 0; describe_output(i, &o); ++i) {
      if (std::strcmp(o.name, name.text) == 0) count = detail::elements_of(o.rank, o.shape);
    }
    std::vector<float> data(count);
    get_into(name, data);
    return data;
  }

  void get_into(Name name, Span<float> data) {
    call([&](eg_session *s) { return eg_get(s, name.text, place(data), data.size()); });
  }

  // Figures of the last run, and of one component in it.
  Report report() const {
    eg_report r = EG_REPORT_INIT;
    call([&](eg_session *s) { return eg_session_report(s, &r); });
    return {r.program, r.variant, r.batch, r.evaluations, r.seconds, r.network_seconds};
  }

  ComponentReport component_report(std::uint32_t component) const {
    ComponentReport made{};
    call([&](eg_session *s) { return eg_session_component_report(s, component, &made.evaluations, &made.seconds); });
    return made;
  }

  // Known answers of the session's variant, run on this device: one, or all.
  Golden self_test(std::uint32_t index) {
    eg_golden g = EG_GOLDEN_INIT;
    call([&](eg_session *s) { return eg_self_test(s, index, &g); });
    return {g.program, g.passed != 0, g.rmse, g.tolerance};
  }

  std::vector<Golden> self_test() {
    std::vector<Golden> all;
    const std::string own = info().variant;
    for (const Variant &variant : state().model.variants()) {
      for (std::uint32_t i = 0; variant.name == own && i < variant.golden; ++i) all.push_back(self_test(i));
    }
    return all;
  }

  // For the C functions.
  eg_session *handle() const { return state().handle; }

 private:
  // What stays in its place when the session is moved: the library keeps its address for callbacks.
  struct State {
    State(const Model &owner, const SessionOptions &options) : model(owner), component(options.component), log(options.log) {}
    ~State() { eg_session_destroy(handle); }
    State(const State &) = delete;
    State &operator=(const State &) = delete;

    // Call a callback; what it throws is kept for `rethrow`, because it must not pass through C. False if it threw.
    template <class Callback>
    bool guarded(Callback callback) noexcept {
      try {
        callback();
        return true;
      } catch (...) {
        thrown = std::current_exception();
        return false;
      }
    }

    void rethrow() {
      if (thrown) std::rethrow_exception(std::exchange(thrown, nullptr));
    }

    static std::int32_t run_component(void *user, const char *name, const eg_tensor *inputs, std::uint32_t input_count, const eg_tensor *outputs, std::uint32_t output_count) noexcept {
      State &own = *static_cast<State *>(user);
      return own.guarded([&] { own.component(name, Tensors(inputs, input_count), Tensors(outputs, output_count)); }) ? 0 : 1;
    }

    static void write_log(void *user, const char *line) noexcept {
      State &own = *static_cast<State *>(user);
      own.guarded([&] { own.log(line); });
    }

    Model model;
    ComponentFunction component;
    Log log;
    eg_session *handle = nullptr;
    std::exception_ptr thrown;
    std::atomic<bool> busy{false};
    std::uint32_t stream_batch = 0;  // 0: no stream is going on
  };

  struct Release {
    std::atomic<bool> &busy;
    ~Release() { busy.store(false); }
  };

  struct StepCall {
    State &own;
    const OnStep &function;

    static std::int32_t step(void *user, std::uint32_t done, std::uint32_t total, const float *sample, std::size_t count) noexcept {
      StepCall &step_call = *static_cast<StepCall *>(user);
      bool go_on = false;
      step_call.own.guarded([&] { go_on = step_call.function(done, total, Span<const float>(sample, count)); });
      return go_on ? EG_CONTINUE : 1;
    }
  };

  State &state() const {
    if (!state_) throw Error(EG_BAD_STATE, "this session was moved to another object");
    return *state_;
  }

  // A call of the C interface and its message, by one thread at a time: a second one could read the first one's message.
  template <class Work>
  void call(Work work) const {
    State &own = state();
    if (own.busy.exchange(true)) throw Error(EG_BUSY, "this session is in a call already; use it from one thread at a time, and not from its callbacks");
    const Release release{own.busy};
    const eg_status status = work(own.handle);
    own.rethrow();
    if (status != EG_OK) throw Error(status, eg_last_error(own.handle));
  }

  void run_with(decltype(eg_generate) function, const RunOptions &options, float *sample, std::size_t count) {
    eg_run_options chosen = detail::run_options(options);
    StepCall step_call{state(), options.on_step};
    if (options.on_step) {
      chosen.on_step = &StepCall::step;
      chosen.user = &step_call;
    }
    call([&](eg_session *s) { return function(s, &chosen, sample, count); });
  }

  // Elements of a batch; of a batch above the session's, which the library refuses, no more than the session has.
  std::size_t elements(std::uint32_t batch) const {
    eg_model_info m = EG_MODEL_INFO_INIT;
    eg_session_info s = EG_SESSION_INFO_INIT;
    detail::check(eg_model_describe(state().model.handle(), &m), "model");
    detail::check(eg_session_describe(handle(), &s), "session");
    return static_cast<std::size_t>(m.elements) * std::max(std::min(batch, s.batch), std::uint32_t(1));
  }

  // Never NULL, which would mean that no sample is wanted: an empty buffer is one of the wrong size.
  static float *place(Span<float> buffer) {
    static float nowhere;
    return buffer.data() != nullptr ? buffer.data() : &nowhere;
  }

  // False behind the last output.
  bool describe_output(std::uint32_t index, eg_tensor_info *output) const {
    bool behind = false;
    call([&](eg_session *s) {
      const eg_status status = eg_output_describe(s, index, output);
      behind = status == EG_OUT_OF_RANGE;
      return behind ? EG_OK : status;
    });
    return !behind;
  }

  // The condition's own shape, or with samples in front; what fits neither goes to eg_set as it is, which says what it expects.
  void shape_by_count(eg_tensor &tensor, std::size_t count) const {
    tensor.rank = 1;
    tensor.shape[0] = static_cast<std::int64_t>(count);
    eg_condition_info c = EG_CONDITION_INFO_INIT;
    for (std::uint32_t i = 0; eg_condition_describe(state().model.handle(), i, &c) == EG_OK; ++i) {
      if (std::strcmp(c.name, tensor.name) != 0) continue;
      const std::size_t one = detail::elements_of(c.rank, c.shape);
      if (count == 0 || count % one != 0) return;
      tensor.rank = 0;
      if (count != one) tensor.shape[tensor.rank++] = static_cast<std::int64_t>(count / one);
      for (std::uint32_t k = 0; k < c.rank; ++k) tensor.shape[tensor.rank++] = c.shape[k];
      return;
    }
  }

  std::unique_ptr<State> state_;
};

}  // namespace edgegen

#endif
