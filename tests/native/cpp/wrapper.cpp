// Test program of edgegen.hpp: `wrapper CASE TINY STREAM PASSED ORT OUT` runs one case, `wrapper` lists them. TINY, STREAM, PASSED: bundles; ORT: path of
// libonnxruntime; OUT: where a case writes what tests/native/test_examples.py compares with the Python runtime.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <future>
#include <limits>
#include <new>
#include <thread>

#include "edgegen.hpp"

using edgegen::Error;
using edgegen::Model;
using edgegen::RunOptions;
using edgegen::Session;
using edgegen::SessionOptions;
using edgegen::Span;
using edgegen::Tensors;
using Floats = std::vector<float>;

static std::atomic<std::size_t> allocations{0};

// Not inlined, because GCC takes free for a mistake where it sees that the block is from new.
__attribute__((noinline)) void *operator new(std::size_t size) {
  ++allocations;
  void *block = std::malloc(size);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
__attribute__((noinline)) void operator delete(void *block) noexcept { std::free(block); }
__attribute__((noinline)) void operator delete(void *block, std::size_t) noexcept { std::free(block); }

namespace {

struct Arguments {
  std::string tiny, stream, passed, onnxruntime, out;
};

#define CHECK(fact) \
  if (!(fact)) throw std::runtime_error("line " + std::to_string(__LINE__) + ": not so: " #fact)

template <class Work>
eg_status status_of(Work work) {
  try {
    work();
  } catch (const Error &e) {
    CHECK(e.what()[0] != '\0');
    return e.status();
  }
  return EG_OK;
}

template <class Work>
std::string message_of(Work work) {
  try {
    work();
  } catch (const Error &e) {
    return e.what();
  }
  return "";
}

float element(const edgegen::Tensor &tensor, std::size_t at) {
  if (tensor.dtype() == EG_INT64) return static_cast<float>(tensor.values<std::int64_t>()[at]);
  return tensor.values<const float>()[at];
}

std::size_t count_of(const edgegen::Tensor &tensor) { return tensor.bytes() / (tensor.dtype() == EG_INT64 ? 8 : 4); }

// The exact surrogate: runtimes/FORMAT.md, section 8.
void surrogate(const char *, const Tensors &inputs, const Tensors &outputs) {
  for (std::size_t o = 0; o < outputs.size(); ++o) {
    const std::size_t rows = static_cast<std::size_t>(outputs[o].shape()[0]);
    const Span<float> out = outputs[o].values<float>();
    const std::size_t n = out.size() / rows;
    float weight = 1.0f;
    for (std::size_t k = 0; k < inputs.size(); ++k, weight *= 0.5f) {
      const bool batched = !inputs[k].shape().empty() && static_cast<std::size_t>(inputs[k].shape()[0]) == rows;
      const std::size_t period = count_of(inputs[k]) / (batched ? rows : 1);
      for (std::size_t i = 0; i < out.size(); ++i) {
        const float v = element(inputs[k], (batched ? i / n * period : 0) + i % n % period);
        const float term = v / (1.0f + (v < 0.0f ? -v : v)) * weight;
        out[i] = k == 0 ? term : out[i] + term;
      }
    }
  }
}

SessionOptions by_function(std::uint32_t batch = 1) {
  SessionOptions options;
  options.batch = batch;
  options.component = surrogate;
  return options;
}

SessionOptions by_engine(const Arguments &a, std::uint32_t batch = 1) {
  SessionOptions options;
  options.batch = batch;
  options.threads = 1;
  options.onnxruntime = a.onnxruntime;
  return options;
}

void append(std::ofstream &file, const Floats &numbers) {
  file.write(reinterpret_cast<const char *>(numbers.data()), static_cast<std::streamsize>(numbers.size() * sizeof(float)));
}

std::string joined(const edgegen::Shape &shape) {
  std::string text;
  for (const std::int64_t size : shape) text += std::to_string(size) + ",";
  return text;
}

std::string optional(const std::optional<double> &number) {
  char text[32] = "none";
  if (number) std::snprintf(text, sizeof text, "%.17g", *number);
  return text;
}

// ---- Cases without an engine. ----

void samples_by_a_function(const Arguments &a) {
  const Model model = Model::open(a.tiny);
  Session session(model, by_function(2));
  session.set("label", {std::int64_t(0), std::int64_t(3)});
  std::ofstream out(a.out, std::ios::binary);
  RunOptions options;
  options.seed = 0xfedcba9876543210;
  options.batch = 2;
  for (const edgegen::Program &program : model.programs()) {
    options.program = program.name;
    append(out, session.generate(options));
  }
}

void descriptions(const Arguments &a) {
  std::ofstream out(a.out);
  for (const std::string &path : {a.tiny, a.stream, a.passed}) {
    const Model model = Model::open(path);
    const edgegen::ModelInfo m = model.info();
    out << m.name << "|" << m.summary << "|" << m.licence << "|" << m.producer << "|" << m.bytes << "|" << m.trusted_pickle << "|" << m.low << "|" << m.high << "|" << m.image << "|"
        << joined(m.shape) << "|" << m.elements << "\n";
    for (const edgegen::Condition &c : model.conditions()) {
      out << c.name << "|" << c.summary << "|" << edgegen::dtype_name(c.dtype) << "|" << joined(c.shape) << "|" << optional(c.minimum) << "|" << optional(c.maximum) << "|"
          << optional(c.default_value) << "|" << optional(c.null_value) << "\n";
    }
    for (const edgegen::Component &c : model.components()) {
      out << c.name;
      for (const edgegen::TensorInfo &t : c.inputs) out << "|in " << t.name << " " << edgegen::dtype_name(t.dtype) << " " << joined(t.shape);
      for (const edgegen::TensorInfo &t : c.outputs) out << "|out " << t.name << " " << edgegen::dtype_name(t.dtype) << " " << joined(t.shape);
      out << "\n";
    }
    for (const edgegen::Program &p : model.programs()) {
      out << p.name << "|" << p.steps << "|" << p.instructions << "|" << p.evaluations << "|" << p.states;
      for (const std::string &name : p.conditions) out << "|" << name;
      out << "\n";
    }
    for (const edgegen::Variant &v : model.variants()) {
      out << v.name << "|" << v.engine << "|" << v.providers << "|" << v.milliseconds.value_or("none") << "|" << v.bytes << "|" << v.golden << "\n";
    }
  }
  out << Model::open(a.tiny).document("recipe");
}

void errors_have_the_status_of_the_library(const Arguments &a) {
  CHECK(status_of([] { Model::open("/absent.edgegen"); }) == EG_CANNOT_OPEN);
  CHECK(message_of([] { Model::open("/absent.edgegen"); }).find("/absent.edgegen") != std::string::npos);
  CHECK(status_of([] { Model::from_memory("nothing", 7); }) != EG_OK);
  edgegen::OpenOptions wrong;
  wrong.borrowed = true;
  CHECK(status_of([&] { Model::open(a.tiny, wrong); }) == EG_BAD_ARGUMENT);

  const Model model = Model::open(a.tiny);
  CHECK(status_of([&] { model.document("novel"); }) == EG_UNKNOWN_NAME);
  CHECK(status_of([&] { model.session_memory({}, "none"); }) == EG_UNKNOWN_NAME);
  SessionOptions unknown = by_function();
  unknown.variant = "float8";
  CHECK(status_of([&] { Session(model, unknown); }) == EG_NO_VARIANT);
  CHECK(message_of([&] { Session(model, unknown); }).find("float8") != std::string::npos);
  CHECK(status_of([&] { Session(model, by_function(EG_MAX_BATCH + 1)); }) == EG_OUT_OF_RANGE);
  SessionOptions many_threads = by_function();
  many_threads.threads = 5000;
  CHECK(status_of([&] { Session(model, many_threads); }) == EG_OUT_OF_RANGE);
  SessionOptions nowhere;
  nowhere.onnxruntime = "/absent.so";
  CHECK(status_of([&] { Session(model, nowhere); }) == EG_BACKEND_MISSING);

  Session session(model, by_function(2));
  CHECK(status_of([&] { session.report(); }) == EG_BAD_STATE);
  CHECK(message_of([&] { session.report(); }) == "this session has not run, or its last run failed");
  CHECK(status_of([&] { session.component_report(0); }) == EG_BAD_STATE);
  CHECK(status_of([&] { session.component_report(9); }) == EG_OUT_OF_RANGE);
  CHECK(status_of([&] { session.outputs(); }) == EG_BAD_STATE);
  CHECK(status_of([&] { session.get("sample"); }) == EG_BAD_STATE);
  CHECK(status_of([&] { session.self_test(99); }) == EG_OUT_OF_RANGE);
  CHECK(status_of([&] { session.set("lable", 1); }) == EG_UNKNOWN_NAME);
  CHECK(status_of([&] { session.set("lable", {1.0f}); }) == EG_UNKNOWN_NAME);
  CHECK(status_of([&] { session.unset("lable"); }) == EG_UNKNOWN_NAME);
  CHECK(status_of([&] { session.set("label", 1.5); }) == EG_BAD_DTYPE);
  CHECK(status_of([&] { session.set("label", {1.0f}); }) == EG_BAD_DTYPE);
  CHECK(status_of([&] { session.set("label", 9); }) == EG_OUT_OF_RANGE);
  CHECK(status_of([&] { session.set("label", std::numeric_limits<double>::quiet_NaN()); }) == EG_NONFINITE);
  CHECK(status_of([&] { session.set("label", Floats()); }) != EG_OK);
  CHECK(status_of([&] { session.set("label", std::array<std::int64_t, 3>{}); }) == EG_BAD_SHAPE);
  CHECK(status_of([&] { session.set("label", {std::int64_t(1)}, {1, 1}); }) == EG_BAD_SHAPE);
  CHECK(status_of([&] { session.set("label", {std::int64_t(1)}, {1, 1, 1, 1, 1, 1, 1, 1, 1}); }) == EG_BAD_SHAPE);
  CHECK(status_of([&] { session.stream_step(); }) == EG_BAD_STATE);

  RunOptions options;
  options.program = "euler-1";
  CHECK(status_of([&] { session.generate(options); }) == EG_UNKNOWN_NAME);
  options = RunOptions();
  options.steps = 1000;
  CHECK(status_of([&] { session.generate(options); }) == EG_OUT_OF_RANGE);
  options = RunOptions();
  options.batch = std::numeric_limits<std::uint32_t>::max();
  CHECK(status_of([&] { session.generate(options); }) == EG_OUT_OF_RANGE);
  CHECK(status_of([&] { session.generate_into(Floats(63)); }) == EG_BAD_SHAPE);
  CHECK(status_of([&] { session.generate_into(Floats()); }) == EG_BAD_SHAPE);
  options = RunOptions();
  const Floats short_noise(63), bad_noise(64, std::numeric_limits<float>::infinity());
  options.noise = short_noise;
  CHECK(status_of([&] { session.generate(options); }) == EG_BAD_SHAPE);
  options.noise = bad_noise;
  CHECK(status_of([&] { session.generate(options); }) == EG_NONFINITE);
  CHECK(session.generate().size() == 64);
  CHECK(status_of([&] { session.get("x0"); }) == EG_UNKNOWN_NAME);
  CHECK(status_of([&] { session.get_into("sample", Floats(63)); }) == EG_BAD_SHAPE);
  CHECK(status_of([&] { session.get_into("sample", {}); }) == EG_BAD_SHAPE);
}

void numbers_that_a_double_does_not_hold_are_refused(const Arguments &a) {
  Session session(Model::open(a.tiny), by_function());
  const std::int64_t edge = std::int64_t(1) << 53;
  for (const std::int64_t beyond : {edge + 1, -edge - 1, std::numeric_limits<std::int64_t>::max(), std::numeric_limits<std::int64_t>::min()}) {
    CHECK(message_of([&] { session.set("label", beyond); }).find("beyond 2^53") != std::string::npos);
  }
  CHECK(message_of([&] { session.set("label", std::numeric_limits<std::uint64_t>::max()); }).find("beyond 2^53") != std::string::npos);
  CHECK(message_of([&] { session.set("label", edge); }).find("9.00719925e+15") != std::string::npos);
  session.set("label", std::uint64_t(3));
}

void conditions_are_set_in_every_form(const Arguments &a) {
  const Model model = Model::open(a.tiny);
  Session session(model, by_function(2));
  const Floats by_default = session.generate();
  session.set("label", 3);
  const Floats three = session.generate();
  CHECK(three != by_default);
  const auto same = [&](auto set) {
    session.unset();
    CHECK(session.generate() == by_default);
    set();
    CHECK(session.generate() == three);
  };
  const std::string name = "label";
  const std::vector<std::int64_t> vector = {3};
  const long long array[] = {3};
  same([&] { session.set(name, 3.0); });
  same([&] { session.set(name, vector); });
  same([&] { session.set("label", array); });
  same([&] { session.set("label", {std::int64_t(3)}); });
  same([&] { session.set("label", Span<const std::int64_t>(vector)); });
  same([&] { session.set("label", vector, {1}); });
  session.unset("label");
  CHECK(session.generate() == by_default);

  const Model frames = Model::open(a.stream);
  Session stream(frames, by_function(2));
  const Floats both = {1, 2, 3, 4, -1, -2, -3, -4};
  RunOptions two;
  two.batch = 2;
  stream.set("frame", both);
  const Floats deduced = stream.generate(two);
  CHECK(status_of([&] { stream.generate(); }) == EG_BAD_SHAPE);  // set for two
  stream.set("frame", both, {2, 4});
  CHECK(stream.generate(two) == deduced);
  stream.set("frame", Span<const float>(both.data(), 4));
  const Floats first = stream.generate();
  CHECK(Floats(deduced.begin(), deduced.begin() + 4) == first);
  stream.set("frame", {-1.0f, -2.0f, -3.0f, -4.0f});
  const Floats second = stream.generate(two);
  CHECK(Floats(deduced.begin() + 4, deduced.end()) == Floats(second.begin() + 4, second.end()));
  CHECK(message_of([&] { stream.set("frame", {1.0f, 2.0f, 3.0f}); }).find("expected [4]") != std::string::npos);
}

void samples_go_where_they_should(const Arguments &a) {
  Session session(Model::open(a.tiny), by_function(3));
  RunOptions options;
  options.seed = 5;
  options.batch = 3;
  const Floats samples = session.generate(options);
  CHECK(samples.size() == 3 * 64);
  Floats into(3 * 64);
  session.generate_into(into, options);
  CHECK(into == samples);
  session.run(options);
  CHECK(session.get("sample") == samples && session.report().batch == 3);
  Floats got(3 * 64);
  session.get_into("sample", got);
  CHECK(got == samples);

  float array[64];
  options.batch = 1;
  session.generate_into(array, options);
  CHECK(std::equal(array, array + 64, samples.begin()));
  options.batch = 0;
  CHECK(session.generate(options).size() == 64);
  options.seed = 6;
  CHECK(session.generate(options) != Floats(array, array + 64));

  const Floats noise(64, 0.5f);
  options.noise = noise;
  const Floats from_noise = session.generate(options);
  Floats in_place = noise;
  options.noise = in_place;
  session.generate_into(in_place, options);
  CHECK(in_place == from_noise);
}

void every_output_can_be_had(const Arguments &a) {
  Floats made;
  SessionOptions options = by_function(2);
  options.component = [&](const char *name, const Tensors &inputs, const Tensors &outputs) {
    surrogate(name, inputs, outputs);
    const Span<float> state = outputs.named("g").values<float>();
    made.assign(state.begin(), state.end());
  };
  Session session(Model::open(a.passed), options);
  RunOptions two;
  two.batch = 2;
  const Floats sample = session.generate(two);
  const std::vector<edgegen::TensorInfo> outputs = session.outputs();
  CHECK(outputs.size() == 2 && outputs[0].name == "sample" && outputs[1].name == "state");
  CHECK((outputs[0].shape == edgegen::Shape{2, 4} && outputs[1].shape == edgegen::Shape{2, 8} && outputs[1].dtype == EG_FLOAT32));
  CHECK(session.get("sample") == sample && session.get("state") == made && made.size() == 16);
}

void programs_are_picked_by_name_and_steps(const Arguments &a) {
  Session session(Model::open(a.tiny), by_function());
  RunOptions options;
  options.program = "ddim-3";
  const Floats named = session.generate(options);
  CHECK(session.report().program == "ddim-3" && session.report().evaluations == 3);
  options = RunOptions();
  options.steps = 3;
  CHECK(session.generate(options) == named);
  CHECK(session.generate() != named);
  CHECK(session.report().program == "dpmpp_2m-4" && session.report().variant == "float32");
  CHECK(session.report().seconds >= session.report().network_seconds && session.report().network_seconds > 0.0);
  CHECK(session.component_report(0).evaluations == session.report().evaluations);
  CHECK(session.component_report(0).seconds == session.report().network_seconds);
  CHECK(session.info().batch == 1 && session.info().variant == "float32" && session.info().engine == "the caller's function");
}

void steps_are_reported(const Arguments &a) {
  Session session(Model::open(a.tiny), by_function(2));
  std::vector<std::pair<std::uint32_t, std::uint32_t>> seen;
  Floats last;
  RunOptions options;
  options.batch = 2;
  options.on_step = [&](std::uint32_t done, std::uint32_t total, Span<const float> sample) {
    seen.push_back({done, total});
    last.assign(sample.begin(), sample.end());
    return true;
  };
  const Floats sample = session.generate(options);
  CHECK((seen == std::vector<std::pair<std::uint32_t, std::uint32_t>>{{1, 4}, {2, 4}, {3, 4}, {4, 4}}));
  CHECK(last == sample);
}

void a_step_that_returns_false_cancels(const Arguments &a) {
  Session session(Model::open(a.tiny), by_function());
  const Floats expected = session.generate();
  std::uint32_t calls = 0;
  RunOptions options;
  options.on_step = [&](std::uint32_t done, std::uint32_t, Span<const float>) {
    ++calls;
    return done < 2;
  };
  CHECK(status_of([&] { session.generate(options); }) == EG_CANCELLED && calls == 2);
  CHECK(status_of([&] { session.report(); }) == EG_BAD_STATE);
  CHECK(session.generate() == expected);
}

struct Thrown {  // no std::exception
  int number;
};

// What `work` throws of this type, or -1.
template <class Work>
int number_thrown(Work work) {
  try {
    work();
  } catch (const Thrown &thrown) {
    return thrown.number;
  }
  return -1;
}

void what_a_step_throws_reaches_the_caller(const Arguments &a) {
  Session session(Model::open(a.tiny), by_function());
  const Floats expected = session.generate();
  std::uint32_t calls = 0;
  RunOptions options;
  options.on_step = [&](std::uint32_t done, std::uint32_t, Span<const float>) -> bool {
    ++calls;
    if (done == 2) throw Thrown{7};
    return true;
  };
  Floats untouched(64, 42.0f);
  CHECK(number_thrown([&] { session.generate_into(untouched, options); }) == 7 && calls == 2);
  CHECK(untouched == Floats(64, 42.0f));
  CHECK(session.generate() == expected);
  options.on_step = [](std::uint32_t, std::uint32_t, Span<const float>) -> bool { throw Error(EG_NO_SPACE, "no room for the picture"); };
  CHECK(status_of([&] { session.generate(options); }) == EG_NO_SPACE);
}

void what_a_component_throws_reaches_the_caller(const Arguments &a) {
  int calls = 0;
  bool failing = false;
  SessionOptions options;
  options.component = [&](const char *name, const Tensors &inputs, const Tensors &outputs) {
    CHECK(std::string(name) == "denoiser" && inputs.size() == 3 && outputs.size() == 1 && std::string(inputs[2].name()) == "label");
    ++calls;
    if (failing) throw Thrown{calls};
    surrogate(name, inputs, outputs);
  };
  Session session(Model::open(a.tiny), options);
  const Floats expected = session.generate();
  failing = true;
  const int before = calls;
  CHECK(number_thrown([&] { session.generate(); }) == before + 1 && calls == before + 1);
  CHECK(number_thrown([&] { session.self_test(0); }) == before + 2);
  failing = false;
  CHECK(session.generate() == expected);
}

void a_tensor_is_read_as_what_it_holds(const Arguments &a) {
  SessionOptions options;
  options.component = [](const char *, const Tensors &inputs, const Tensors &) { inputs[2].values<float>(); };
  Session session(Model::open(a.tiny), options);
  CHECK(status_of([&] { session.generate(); }) == EG_BAD_DTYPE);
  CHECK(message_of([&] { session.generate(); }) == "tensor 'label' holds int64, not float32");

  options.component = [](const char *, const Tensors &inputs, const Tensors &outputs) {
    CHECK(inputs.named(std::string("label")).values<const std::int64_t>()[0] == 1);
    outputs.named("label");
  };
  Session other(Model::open(a.tiny), options);
  CHECK(status_of([&] { other.generate(); }) == EG_UNKNOWN_NAME);
}

void tensors_of_a_later_library_are_found(const Arguments &) {
  struct Later {
    eg_tensor known;
    std::uint64_t more;
  };
  Later later[2] = {{EG_TENSOR_INIT, 1}, {EG_TENSOR_INIT, 2}};
  for (Later &one : later) one.known.struct_size = sizeof(Later);
  later[1].known.name = "second";
  CHECK(std::string(Tensors(&later[0].known, 2)[1].name()) == "second");
}

void nan_passes_where_it_is_allowed(const Arguments &a) {
  SessionOptions options;
  options.component = [](const char *, const Tensors &, const Tensors &outputs) {
    for (float &value : outputs[0].values<float>()) value = std::numeric_limits<float>::quiet_NaN();
  };
  Session session(Model::open(a.tiny), options);
  CHECK(status_of([&] { session.generate(); }) == EG_NONFINITE);
  RunOptions allowing;
  allowing.allow_nonfinite = true;
  CHECK(std::isnan(session.generate(allowing)[0]));
}

// A session whose first component call says that it began, and waits.
struct Waiting {
  std::promise<void> began, go_on;
  std::atomic<bool> first{true};

  SessionOptions options() {
    SessionOptions made;
    made.component = [this](const char *name, const Tensors &inputs, const Tensors &outputs) {
      if (first.exchange(false)) {
        began.set_value();
        go_on.get_future().wait();
      }
      surrogate(name, inputs, outputs);
    };
    return made;
  }
};

void cancel_from_another_thread(const Arguments &a) {
  Waiting waiting;
  Session session(Model::open(a.tiny), waiting.options());
  session.cancel();  // nothing is running
  eg_status status = EG_OK;
  std::thread runner([&] { status = status_of([&] { session.generate(); }); });
  waiting.began.get_future().wait();
  session.cancel();
  waiting.go_on.set_value();
  runner.join();
  CHECK(status == EG_CANCELLED);
  CHECK(session.generate().size() == 64);
}

void a_second_call_meanwhile_is_refused(const Arguments &a) {
  Waiting waiting;
  Session session(Model::open(a.tiny), waiting.options());
  Floats sample;
  std::thread runner([&] { sample = session.generate(); });
  waiting.began.get_future().wait();
  const std::string message = message_of([&] { session.set("label", 2); });
  waiting.go_on.set_value();
  runner.join();
  CHECK(message.find("one thread") != std::string::npos);
  CHECK(sample == session.generate());

  RunOptions options;
  options.on_step = [&](std::uint32_t, std::uint32_t, Span<const float>) {
    session.set("label", 2);
    return true;
  };
  CHECK(status_of([&] { session.generate(options); }) == EG_BUSY);
  CHECK(session.generate() == sample);
}

void sessions_move_and_models_are_shared(const Arguments &a) {
  static_assert(std::is_copy_constructible_v<Model> && std::is_copy_assignable_v<Model> && std::is_nothrow_move_constructible_v<Model>);
  static_assert(!std::is_copy_constructible_v<Session> && !std::is_copy_assignable_v<Session>);
  static_assert(std::is_nothrow_move_constructible_v<Session> && std::is_nothrow_move_assignable_v<Session>);
  static_assert(std::is_base_of_v<std::runtime_error, Error>);

  auto model = std::make_unique<Model>(Model::open(a.tiny));
  const Model copy = *model;
  CHECK(copy.handle() == model->handle());
  std::vector<Session> sessions;
  for (int i = 0; i < 3; ++i) sessions.emplace_back(*model, by_function());
  model.reset();
  const Floats expected = sessions[0].generate();
  CHECK(copy.info().name == "tiny");

  Session moved = std::move(sessions[0]);
  CHECK(moved.generate() == expected);
  CHECK(status_of([&] { sessions[0].generate(); }) == EG_BAD_STATE);
  CHECK(status_of([&] { sessions[0].info(); }) == EG_BAD_STATE);
  CHECK(status_of([&] { sessions[0].set("label", 1); }) == EG_BAD_STATE);
  CHECK(status_of([&] { sessions[0].stream_reset(); }) == EG_BAD_STATE);
  sessions[0].cancel();
  sessions[0] = std::move(sessions[1]);
  CHECK(sessions[0].generate() == expected);
  sessions[2] = std::move(moved);
  sessions.erase(sessions.begin());
  sessions.erase(sessions.begin());
  CHECK(sessions.size() == 1 && sessions[0].generate() == expected);

  Model gone = copy;
  const Model taken = std::move(gone);
  CHECK(taken.info().name == "tiny");
  CHECK(status_of([&] { gone.info(); }) == EG_BAD_ARGUMENT);
  CHECK(status_of([&] { Session(gone, by_function()); }) == EG_BAD_ARGUMENT);
}

void a_session_keeps_its_model(const Arguments &a) {
  Session session(Model::open(a.tiny), by_function());
  CHECK(session.generate().size() == 64 && session.self_test().size() == 3);
}

void streams_go_on_and_begin_again(const Arguments &a) {
  const Model model = Model::open(a.stream);
  Session session(model, by_function(2));
  RunOptions options;
  options.batch = 2;
  options.seed = 3;
  session.set("frame", 1.0);
  const Floats first = session.stream_step(options), second = session.stream_step(), third = session.stream_step();
  CHECK(first.size() == 8 && second.size() == 8 && first != second && second != third);

  const auto again = [&] {
    session.stream_reset();
    CHECK(session.stream_step(options) == first);
  };
  again();
  options.on_step = [](std::uint32_t, std::uint32_t, Span<const float>) -> bool { throw Thrown{1}; };
  CHECK(number_thrown([&] { session.stream_step(options); }) == 1);
  Floats into(8);
  session.stream_step_into(into);  // the step that failed left the stream as it was
  CHECK(into == second);
  options.on_step = nullptr;
  again();

  session.stream_reset();
  CHECK(session.stream_step().size() == 4);  // another batch from here
  CHECK(status_of([&] { session.stream_step_into(Floats(8)); }) == EG_BAD_SHAPE);
  const Floats noise(8);
  options.noise = noise;
  CHECK(status_of([&] { session.stream_step(options); }) == EG_BAD_ARGUMENT);
  options = RunOptions();
  options.program = "stream";
  CHECK(status_of([&] { session.generate(options); }) == EG_BAD_STATE);
}

// An allocator of the library that counts.
struct Counter {
  std::size_t taken = 0, blocks = 0, bytes = 0;

  eg_allocator allocator() {
    eg_allocator made = EG_ALLOCATOR_INIT;
    made.context = this;
    made.allocate = [](void *context, std::size_t size, std::size_t alignment) {
      Counter &own = *static_cast<Counter *>(context);
      ++own.taken;
      ++own.blocks;
      own.bytes += size;
      return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    };
    made.release = [](void *context, void *block, std::size_t size, std::size_t) {
      --static_cast<Counter *>(context)->blocks;
      static_cast<Counter *>(context)->bytes -= size;
      std::free(block);
    };
    return made;
  }
};

void later_runs_allocate_nothing(const Arguments &a) {
  Counter counter;
  const eg_allocator allocator = counter.allocator();
  edgegen::OpenOptions opening;
  opening.allocator = &allocator;
  {
    Session session(Model::open(a.tiny, opening), by_function()), stream(Model::open(a.stream, opening), by_function());
    Floats image(64), frame(4);
    RunOptions options;
    options.on_step = [&](std::uint32_t, std::uint32_t, Span<const float>) { return true; };
    const auto run = [&](std::uint64_t seed) {
      options.seed = seed;
      session.set("label", 2);
      session.generate_into(image, options);
      session.get_into("sample", image);
      stream.set("frame", frame);
      stream.stream_step_into(frame, options);
    };
    run(1);
    const std::size_t before = allocations + counter.taken;
    for (std::uint64_t seed = 2; seed < 20; ++seed) run(seed);
    CHECK(allocations + counter.taken == before);
    CHECK(counter.blocks > 0);
  }
  CHECK(counter.blocks == 0);
}

void bundles_open_from_files_and_memory(const Arguments &a) {
  const Floats expected = Session(Model::open(a.tiny), by_function()).generate();
  std::ifstream file(a.tiny, std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  Counter counter;
  const eg_allocator allocator = counter.allocator();
  edgegen::OpenOptions copying, mapping, borrowing;
  copying.allocator = mapping.allocator = borrowing.allocator = &allocator;
  mapping.mapped = true;
  borrowing.borrowed = true;
  const auto bytes_of = [&](const Model &model) {
    CHECK(Session(model, by_function()).generate() == expected);
    return counter.bytes;
  };
  const std::size_t read = bytes_of(Model::open(a.tiny, copying)), mapped = bytes_of(Model::open(a.tiny, mapping));
  const std::size_t copied = bytes_of(Model::from_memory(bytes.data(), bytes.size(), copying)), borrowed = bytes_of(Model::from_memory(bytes.data(), bytes.size(), borrowing));
  CHECK(counter.blocks == 0);
  CHECK(read >= mapped + bytes.size() && copied >= borrowed + bytes.size());

  const Model own = Model::from_memory(bytes.data(), bytes.size());
  std::fill(bytes.begin(), bytes.end(), '\0');
  CHECK(Session(own, by_function()).generate() == expected);
}

void the_memory_of_a_session_is_known(const Arguments &a) {
  const Model model = Model::open(a.tiny);
  const std::uint64_t one = model.session_memory(), default_program = model.session_memory({}, "dpmpp_2m-4");
  SessionOptions many;
  many.batch = 8;
  CHECK(one > 64 * sizeof(float) && default_program == one && model.session_memory({}, "ddim-3") != one && model.session_memory(many) > 4 * one);
}

void dtypes_follow_from_types(const Arguments &) {
  static_assert(edgegen::dtype_of<float>() == EG_FLOAT32 && edgegen::dtype_of<double>() == EG_FLOAT64 && edgegen::dtype_of<edgegen::Half>() == EG_FLOAT16);
  static_assert(edgegen::dtype_of<std::int64_t>() == EG_INT64 && edgegen::dtype_of<long long>() == EG_INT64 && edgegen::dtype_of<std::int32_t>() == EG_INT32);
  static_assert(edgegen::dtype_of<std::int8_t>() == EG_INT8 && edgegen::dtype_of<std::uint8_t>() == EG_UINT8 && edgegen::dtype_of<bool>() == EG_BOOL);
  CHECK(std::string(edgegen::dtype_name(EG_FLOAT32)) == "float32" && std::string(edgegen::dtype_name(EG_BOOL)) == "bool" && std::string(edgegen::dtype_name(0)) == "no dtype");
}

// ---- Cases with an engine. ----

void samples_by_the_engine(const Arguments &a) {
  const Model model = Model::open(a.tiny);
  std::ofstream out(a.out, std::ios::binary);
  for (const edgegen::Variant &variant : model.variants()) {
    SessionOptions chosen = by_engine(a, 2);
    chosen.variant = variant.name;
    Session session(model, chosen);
    RunOptions options;
    options.seed = 5;
    options.batch = 2;
    session.set("label", std::vector<std::int64_t>{0, 3});
    for (const edgegen::Program &program : model.programs()) {
      options.program = program.name;
      append(out, session.generate(options));
    }
  }
}

void a_stream_by_the_engine(const Arguments &a) {
  Session session(Model::open(a.stream), by_engine(a, 2));
  std::ofstream out(a.out, std::ios::binary);
  RunOptions options;
  options.seed = 9;
  options.batch = 2;
  for (int step = 0; step < 5; ++step) {
    if (step == 3) session.stream_reset();
    Floats frames(8);
    for (std::size_t i = 0; i < frames.size(); ++i) frames[i] = 0.25f * static_cast<float>(i) - static_cast<float>(step);
    session.set("frame", frames);
    append(out, session.stream_step(options));
  }
}

void known_answers_by_the_engine(const Arguments &a) {
  Session session(Model::open(a.tiny), by_engine(a));
  const std::vector<edgegen::Golden> answers = session.self_test();
  CHECK(answers.size() == 3 && answers[0].program == "dpmpp_2m-4");
  for (const edgegen::Golden &golden : answers) CHECK(golden.passed && golden.rmse <= golden.tolerance && golden.tolerance > 0.0);
  CHECK(session.info().engine.find("ONNX Runtime") != std::string::npos && session.info().engine.find(a.onnxruntime) != std::string::npos);

  Session other(Model::open(a.tiny), by_function());
  CHECK(!other.self_test(0).passed);
}

void what_a_log_throws_reaches_the_caller(const Arguments &a) {
  const Model model = Model::open(a.passed);
  SessionOptions options = by_engine(a);
  std::vector<std::string> lines;
  options.log = [&](const char *line) { lines.push_back(line); };
  Session session(model, options);
  CHECK(session.info().variant == "float32" && session.self_test().empty());  // the other variant has a known answer
  CHECK(lines.size() == 1 && lines[0].find("variant other") != std::string::npos);
  options.log = [](const char *) { throw Thrown{3}; };
  CHECK(number_thrown([&] { Session(model, options); }) == 3);
}

struct Case {
  const char *name;
  void (*run)(const Arguments &);
};

#define CASE(name) \
  { #name, name }
constexpr Case cases[] = {
    CASE(samples_by_a_function),
    CASE(descriptions),
    CASE(errors_have_the_status_of_the_library),
    CASE(numbers_that_a_double_does_not_hold_are_refused),
    CASE(conditions_are_set_in_every_form),
    CASE(samples_go_where_they_should),
    CASE(every_output_can_be_had),
    CASE(programs_are_picked_by_name_and_steps),
    CASE(steps_are_reported),
    CASE(a_step_that_returns_false_cancels),
    CASE(what_a_step_throws_reaches_the_caller),
    CASE(what_a_component_throws_reaches_the_caller),
    CASE(a_tensor_is_read_as_what_it_holds),
    CASE(tensors_of_a_later_library_are_found),
    CASE(nan_passes_where_it_is_allowed),
    CASE(cancel_from_another_thread),
    CASE(a_second_call_meanwhile_is_refused),
    CASE(sessions_move_and_models_are_shared),
    CASE(a_session_keeps_its_model),
    CASE(streams_go_on_and_begin_again),
    CASE(later_runs_allocate_nothing),
    CASE(bundles_open_from_files_and_memory),
    CASE(the_memory_of_a_session_is_known),
    CASE(dtypes_follow_from_types),
    CASE(samples_by_the_engine),
    CASE(a_stream_by_the_engine),
    CASE(known_answers_by_the_engine),
    CASE(what_a_log_throws_reaches_the_caller),
};

}  // namespace

int main(int count, char **words) {
  for (const Case &c : cases) {
    if (count != 7) std::puts(c.name);
    if (count != 7 || std::string(words[1]) != c.name) continue;
    try {
      c.run({words[2], words[3], words[4], words[5], words[6]});
      std::puts("ok");
      return 0;
    } catch (const std::exception &e) {
      std::fprintf(stderr, "%s\n", e.what());
      return 1;
    }
  }
  return count == 7 ? 2 : 0;
}
