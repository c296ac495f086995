// T14, T15, T23: calls with wrong arguments, wrong numbers and structs of other versions. Each has its exact status, says why, and leaves the caller's
// buffers as they were: these lie between pages that cannot be touched.
//
//   test-misuse TINY STREAM      the bundles of tests/tiny.py: `tiny` has the condition label, int64 in 0 .. 3, null 4, default 1
#include <cmath>
#include <cstring>
#include <limits>
#include <sys/mman.h>
#include <unistd.h>

#include "kit.h"

namespace {

int calls = 0;

// Floats that end at a page which cannot be touched, all 7; the page before them cannot be touched either.
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count), page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    const size_t inner = (count * sizeof(float) + page_ - 1) / page_ * page_;
    size_ = inner + 2 * page_;
    base_ = static_cast<char *>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(base_ != MAP_FAILED && mprotect(base_ + page_, inner, PROT_READ | PROT_WRITE) == 0, "mmap");
    data_ = reinterpret_cast<float *>(base_ + page_ + inner - count * sizeof(float));
    for (float *at = reinterpret_cast<float *>(base_ + page_); at < data_ + count; ++at) *at = 7.0f;
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded &) = delete;
  Guarded &operator=(const Guarded &) = delete;

  float *data() const { return data_; }
  size_t count() const { return count_; }
  bool untouched() const {
    for (float *at = reinterpret_cast<float *>(base_ + page_); at < data_ + count_; ++at) {
      if (*at != 7.0f) return false;
    }
    return true;
  }
  void reset() {
    for (size_t i = 0; i < count_; ++i) data_[i] = 7.0f;
  }

 private:
  size_t count_, page_, size_;
  char *base_;
  float *data_;
};

// A call on a session whose status is known, with a reason in words wherever it is not OK.
#define EXPECT(session, call, status)                                                                                          \
  do {                                                                                                                         \
    const eg_status got = (call);                                                                                            \
    ++calls;                                                                                                                   \
    REQUIRE(got == (status), "expected %d, found %d (%s)", (status), got, eg_last_error(session));                         \
    REQUIRE(((status) == EG_OK) == (eg_last_error(session)[0] == '\0') || (session) == nullptr, "'%s'", eg_last_error(session)); \
  } while (0)
#define EXPECT_PLAIN(call, status)                                        \
  do {                                                                    \
    const eg_status got = (call);                                       \
    ++calls;                                                              \
    REQUIRE(got == (status), "expected %d, found %d", (status), got); \
  } while (0)

eg_model *open_model(const char *path) {
  eg_model *model = nullptr;
  eg_message why;
  REQUIRE(eg_open(path, nullptr, &model, &why) == EG_OK, "%s", why.text);
  return model;
}

void opening(const char *path) {
  eg_model *model = reinterpret_cast<eg_model *>(1);
  eg_message why;
  EXPECT_PLAIN(eg_open(nullptr, nullptr, &model, &why), EG_BAD_ARGUMENT);
  REQUIRE(model == nullptr && why.text[0] != '\0', "a failed eg_open leaves NULL and says why");
  EXPECT_PLAIN(eg_open(path, nullptr, nullptr, &why), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_open("/nowhere/at/all", nullptr, &model, &why), EG_CANNOT_OPEN);
  REQUIRE(std::strstr(why.text, "/nowhere/at/all") != nullptr, "'%s'", why.text);
  EXPECT_PLAIN(eg_open("/", nullptr, &model, &why), EG_CANNOT_OPEN);
  EXPECT_PLAIN(eg_open("/dev/zero", nullptr, &model, &why), EG_CANNOT_OPEN);
  EXPECT_PLAIN(eg_open("", nullptr, &model, nullptr), EG_CANNOT_OPEN);
  EXPECT_PLAIN(eg_open_memory(nullptr, 10, nullptr, &model, &why), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_open_memory("", 0, nullptr, &model, &why), EG_TRUNCATED);
  for (const uint32_t flags : {EG_OPEN_BORROWED, 4u, 0x80000000u}) {
    eg_open_options options = EG_OPEN_OPTIONS_INIT;
    options.flags = flags;
    EXPECT_PLAIN(eg_open(path, &options, &model, &why), EG_BAD_ARGUMENT);
  }
  eg_open_options options = EG_OPEN_OPTIONS_INIT;
  options.flags = EG_OPEN_MAPPED;
  EXPECT_PLAIN(eg_open_memory("", 0, &options, &model, &why), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_open(path, &options, &model, &why), EG_OK);
  eg_close(model);
  for (const uint32_t size : {0u, 1u, 4u, 5000u, UINT32_MAX}) {
    options = EG_OPEN_OPTIONS_INIT;
    options.struct_size = size;
    EXPECT_PLAIN(eg_open(path, &options, &model, &why), EG_BAD_ARGUMENT);
  }
  eg_allocator allocator = EG_ALLOCATOR_INIT;
  options = EG_OPEN_OPTIONS_INIT;
  options.allocator = &allocator;
  EXPECT_PLAIN(eg_open(path, &options, &model, &why), EG_BAD_ARGUMENT);
  Counter counter;
  allocator = counter.allocator();
  allocator.release = nullptr;
  EXPECT_PLAIN(eg_open(path, &options, &model, &why), EG_BAD_ARGUMENT);
  allocator = counter.allocator();
  allocator.reserved = 1;
  EXPECT_PLAIN(eg_open(path, &options, &model, &why), EG_BAD_ARGUMENT);
  eg_close(nullptr);
  eg_session_destroy(nullptr);
  REQUIRE(eg_last_error(nullptr)[0] == '\0', "eg_last_error(NULL)");
  REQUIRE(std::strcmp(eg_status_str(12345), "unknown status") == 0, "eg_status_str");
  for (int i = 0; i < 700; ++i) REQUIRE(eg_status_str(i) != nullptr, "eg_status_str");
  REQUIRE(eg_abi_version() == (EG_ABI_MAJOR << 16 | EG_ABI_MINOR), "eg_abi_version");
}

// A describing function with every wrong argument, and structs of other sizes: shorter ones get less, longer ones zeros behind.
template <class Info, class Describe>
void describing(uint32_t valid, uint32_t beyond, Describe describe) {
  Info info{};
  info.struct_size = sizeof(Info);
  EXPECT_PLAIN(describe(valid, &info), EG_OK);
  EXPECT_PLAIN(describe(beyond, &info), EG_OUT_OF_RANGE);
  EXPECT_PLAIN(describe(UINT32_MAX, &info), EG_OUT_OF_RANGE);
  EXPECT_PLAIN(describe(valid, static_cast<Info *>(nullptr)), EG_BAD_ARGUMENT);
  for (const uint32_t size : {0u, 4u, 100000u}) {
    Info wrong{};
    wrong.struct_size = size;
    EXPECT_PLAIN(describe(valid, &wrong), EG_BAD_ARGUMENT);
  }
  for (uint32_t size = 8; size < sizeof(Info); size += 4) {  // an older client
    alignas(16) unsigned char bytes[sizeof(Info)];
    std::memset(bytes, 0xAA, sizeof bytes);
    std::memcpy(bytes, &size, sizeof size);
    EXPECT_PLAIN(describe(valid, reinterpret_cast<Info *>(bytes)), EG_OK);
    REQUIRE(std::memcmp(bytes + 4, reinterpret_cast<unsigned char *>(&info) + 4, size - 4) == 0, "a shorter struct of %u bytes", size);
    for (size_t i = size; i < sizeof bytes; ++i) REQUIRE(bytes[i] == 0xAA, "byte %zu behind a struct of %u was written", i, size);
  }
  struct Longer {  // a newer client
    Info known;
    unsigned char more[24];
  } longer{};
  std::memset(longer.more, 0xAA, sizeof longer.more);
  longer.known.struct_size = sizeof longer;
  EXPECT_PLAIN(describe(valid, &longer.known), EG_OK);
  for (const unsigned char c : longer.more) REQUIRE(c == 0, "an unknown field is not zero");
}

void introspection(eg_model *model, eg_session *session) {
  describing<eg_model_info>(0, UINT32_MAX, [&](uint32_t index, eg_model_info *info) { return index == UINT32_MAX ? EG_OUT_OF_RANGE : eg_model_describe(model, info); });
  describing<eg_condition_info>(0, 1, [&](uint32_t index, eg_condition_info *info) { return eg_condition_describe(model, index, info); });
  describing<eg_component_info>(0, 1, [&](uint32_t index, eg_component_info *info) { return eg_component_describe(model, index, info); });
  describing<eg_tensor_info>(3, 4, [&](uint32_t index, eg_tensor_info *info) { return eg_component_tensor(model, 0, index, info); });
  describing<eg_program_info>(2, 3, [&](uint32_t index, eg_program_info *info) { return eg_program_describe(model, index, info); });
  describing<eg_variant_info>(1, 2, [&](uint32_t index, eg_variant_info *info) { return eg_variant_describe(model, index, info); });
  describing<eg_session_info>(0, UINT32_MAX, [&](uint32_t index, eg_session_info *info) { return index == UINT32_MAX ? EG_OUT_OF_RANGE : eg_session_describe(session, info); });
  eg_tensor_info tensor = EG_TENSOR_INFO_INIT;
  EXPECT_PLAIN(eg_component_tensor(model, 1, 0, &tensor), EG_OUT_OF_RANGE);
  EXPECT_PLAIN(eg_component_tensor(nullptr, 0, 0, &tensor), EG_BAD_ARGUMENT);
  eg_model_info info = EG_MODEL_INFO_INIT;
  EXPECT_PLAIN(eg_model_describe(nullptr, &info), EG_BAD_ARGUMENT);
  eg_condition_info condition = EG_CONDITION_INFO_INIT;
  EXPECT_PLAIN(eg_condition_describe(nullptr, 0, &condition), EG_BAD_ARGUMENT);
  const char *json = nullptr;
  size_t size = 0;
  EXPECT_PLAIN(eg_document(model, "recipe", &json, &size), EG_OK);
  REQUIRE(size > 2 && json[0] == '{' && json[size - 1] == '}', "the recipe's text");
  EXPECT_PLAIN(eg_document(model, "secrets", &json, &size), EG_UNKNOWN_NAME);
  EXPECT_PLAIN(eg_document(model, "", &json, &size), EG_UNKNOWN_NAME);
  EXPECT_PLAIN(eg_document(model, nullptr, &json, &size), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_document(nullptr, "recipe", &json, &size), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_document(model, "recipe", nullptr, &size), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_document(model, "recipe", &json, nullptr), EG_BAD_ARGUMENT);
  uint64_t bytes = 0;
  EXPECT_PLAIN(eg_session_memory(model, nullptr, nullptr, &bytes, nullptr), EG_OK);
  EXPECT_PLAIN(eg_session_memory(model, nullptr, "none", &bytes, nullptr), EG_UNKNOWN_NAME);
  EXPECT_PLAIN(eg_session_memory(model, nullptr, nullptr, nullptr, nullptr), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_session_memory(nullptr, nullptr, nullptr, &bytes, nullptr), EG_BAD_ARGUMENT);
}

void creating(eg_model *model) {
  eg_session *session = nullptr;
  eg_message why;
  EXPECT_PLAIN(eg_session_create(nullptr, nullptr, &session, &why), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_session_create(model, nullptr, nullptr, &why), EG_BAD_ARGUMENT);
  const auto with = [&](auto change, eg_status status, const char *words) {
    eg_session_options options = EG_SESSION_OPTIONS_INIT;
    options.component = surrogate;
    change(options);
    session = reinterpret_cast<eg_session *>(1);
    EXPECT_PLAIN(eg_session_create(model, &options, &session, &why), status);
    REQUIRE(session == nullptr && std::strstr(why.text, words) != nullptr, "'%s'", why.text);
  };
  with([](eg_session_options &o) { o.batch = EG_MAX_BATCH + 1; }, EG_OUT_OF_RANGE, "batch");
  with([](eg_session_options &o) { o.threads = 1025; }, EG_OUT_OF_RANGE, "threads");
  with([](eg_session_options &o) { o.reserved = 1; }, EG_BAD_ARGUMENT, "reserved");
  with([](eg_session_options &o) { o.struct_size = 3; }, EG_BAD_ARGUMENT, "struct_size");
  with([](eg_session_options &o) { o.variant = "int4"; }, EG_NO_VARIANT, "no variant 'int4'");
  with([](eg_session_options &o) { o.variant = ""; }, EG_NO_VARIANT, "no variant");
  with([](eg_session_options &o) { o.component = nullptr, o.onnxruntime = "/nowhere/lib.so"; }, EG_BACKEND_MISSING, "cannot be loaded from the path given");
  with([](eg_session_options &o) { o.component = nullptr, o.onnxruntime = "libc.so.6"; }, EG_BACKEND_MISSING, "is not ONNX Runtime");
  struct Longer {
    eg_session_options known;
    uint64_t more;
  } longer{};
  const eg_session_options fresh = EG_SESSION_OPTIONS_INIT;
  longer.known = fresh;
  longer.known.struct_size = sizeof longer;
  longer.known.component = surrogate;
  longer.more = 1;  // a newer client that uses what this library does not know
  EXPECT_PLAIN(eg_session_create(model, &longer.known, &session, &why), EG_BAD_ARGUMENT);
  REQUIRE(std::strstr(why.text, "does not know") != nullptr, "'%s'", why.text);
  longer.more = 0;  // and one that does not use it
  EXPECT_PLAIN(eg_session_create(model, &longer.known, &session, &why), EG_OK);
  eg_session_destroy(session);
  longer.known.struct_size = offsetof(eg_session_options, log);  // an older client
  EXPECT_PLAIN(eg_session_create(model, &longer.known, &session, &why), EG_OK);
  eg_session_destroy(session);
}

void conditions(eg_session *session) {
  int64_t labels[4] = {0, 1, 2, 3};
  const auto tensor = [&] {
    eg_tensor t = EG_TENSOR_INIT;
    t.dtype = EG_INT64;
    t.name = "label";
    t.data = labels;
    t.bytes = sizeof labels[0];
    return t;
  };
  eg_tensor t = tensor();
  EXPECT(session, eg_set(session, &t), EG_OK);
  EXPECT_PLAIN(eg_set(nullptr, &t), EG_BAD_ARGUMENT);
  EXPECT(session, eg_set(session, nullptr), EG_BAD_ARGUMENT);
  const auto with = [&](auto change, eg_status status) {
    t = tensor();
    change(t);
    EXPECT(session, eg_set(session, &t), status);
  };
  with([](eg_tensor &x) { x.name = nullptr; }, EG_BAD_ARGUMENT);
  with([](eg_tensor &x) { x.data = nullptr; }, EG_BAD_ARGUMENT);
  with([](eg_tensor &x) { x.reserved = 1; }, EG_BAD_ARGUMENT);
  with([](eg_tensor &x) { x.rank = EG_MAX_RANK + 1; }, EG_BAD_ARGUMENT);
  with([](eg_tensor &x) { x.data = static_cast<char *>(x.data) + 4; }, EG_BAD_ARGUMENT);
  with([](eg_tensor &x) { x.name = "lable"; }, EG_UNKNOWN_NAME);
  with([](eg_tensor &x) { x.name = ""; }, EG_UNKNOWN_NAME);
  for (const eg_dtype dtype : {0, 9, -1, INT32_MAX, INT32_MIN}) with([&](eg_tensor &x) { x.dtype = dtype; }, EG_BAD_ARGUMENT);
  for (const eg_dtype dtype : {EG_FLOAT32, EG_FLOAT64, EG_FLOAT16, EG_INT32, EG_INT8, EG_UINT8, EG_BOOL}) with([&](eg_tensor &x) { x.dtype = dtype; }, EG_BAD_DTYPE);
  for (const size_t bytes : {size_t{0}, size_t{7}, size_t{9}, SIZE_MAX}) with([&](eg_tensor &x) { x.bytes = bytes; }, EG_BAD_SHAPE);
  for (const int64_t rows : {int64_t{0}, int64_t{-1}, int64_t{5}, INT64_MAX, INT64_MIN}) with([&](eg_tensor &x) { x.rank = 1, x.shape[0] = rows, x.bytes = sizeof labels; }, EG_BAD_SHAPE);
  with([](eg_tensor &x) { x.rank = 2, x.shape[0] = 1, x.shape[1] = 1; }, EG_BAD_SHAPE);
  with([](eg_tensor &x) { x.rank = 1, x.shape[0] = 4, x.bytes = 32; }, EG_OK);
  with([](eg_tensor &x) { x.struct_size = 2; }, EG_BAD_ARGUMENT);
  for (const int64_t value : {int64_t{-1}, int64_t{5}, INT64_MAX, INT64_MIN}) {
    labels[0] = value;
    with([](eg_tensor &) {}, EG_OUT_OF_RANGE);
    REQUIRE(std::strstr(eg_last_error(session), "label") != nullptr && std::strstr(eg_last_error(session), "element 0") != nullptr, "'%s'", eg_last_error(session));
    labels[0] = 0;
    labels[2] = value;  // the third sample
    with([](eg_tensor &x) { x.rank = 1, x.shape[0] = 4, x.bytes = 32; }, EG_OUT_OF_RANGE);
    REQUIRE(std::strstr(eg_last_error(session), "element 2") != nullptr, "'%s'", eg_last_error(session));
    labels[2] = 2;
  }
  for (const double value : {0.0, 3.0, 4.0, -0.0}) EXPECT(session, eg_set_number(session, "label", value), EG_OK);  // 4 is the null
  for (const double value : {-1.0, 5.0, 1e18}) EXPECT(session, eg_set_number(session, "label", value), EG_OUT_OF_RANGE);
  for (const double value : {0.5, 1e300, -9.3e18, 9.3e18}) EXPECT(session, eg_set_number(session, "label", value), EG_BAD_DTYPE);
  for (const double value : {HUGE_VAL, -HUGE_VAL, std::numeric_limits<double>::quiet_NaN()}) EXPECT(session, eg_set_number(session, "label", value), EG_NONFINITE);
  EXPECT(session, eg_set_number(session, nullptr, 1.0), EG_BAD_ARGUMENT);
  EXPECT(session, eg_set_number(session, "x", 1.0), EG_UNKNOWN_NAME);
  EXPECT_PLAIN(eg_set_number(nullptr, "label", 1.0), EG_BAD_ARGUMENT);
  EXPECT(session, eg_unset(session, "x"), EG_UNKNOWN_NAME);
  EXPECT(session, eg_unset(session, "label"), EG_OK);
  EXPECT(session, eg_unset(session, nullptr), EG_OK);
  EXPECT_PLAIN(eg_unset(nullptr, nullptr), EG_BAD_ARGUMENT);
}

void running(eg_model *model, eg_session *session) {
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  const size_t elements = static_cast<size_t>(info.elements);
  Guarded sample(elements), four(4 * elements), noise(elements);
  const auto with = [&](auto change, eg_status status, Guarded &buffer, size_t count) {
    eg_run_options options = EG_RUN_OPTIONS_INIT;
    change(options);
    EXPECT(session, eg_generate(session, &options, buffer.data(), count), status);
    REQUIRE((status == EG_OK) != buffer.untouched(), "status %d and the buffer", status);
    buffer.reset();
  };
  const auto nothing = [](eg_run_options &) {};
  with(nothing, EG_OK, sample, elements);
  eg_report report = EG_REPORT_INIT;
  EXPECT(session, eg_session_report(session, &report), EG_OK);
  for (const size_t count : {size_t{0}, size_t{1}, elements - 1, elements + 1, 2 * elements, SIZE_MAX}) with(nothing, EG_BAD_SHAPE, sample, count);
  EXPECT_PLAIN(eg_generate(nullptr, nullptr, sample.data(), elements), EG_BAD_ARGUMENT);
  EXPECT(session, eg_generate(session, nullptr, nullptr, 0), EG_OK);
  EXPECT(session, eg_generate(session, nullptr, nullptr, 12345), EG_OK);
  EXPECT(session, eg_generate(session, nullptr, reinterpret_cast<float *>(reinterpret_cast<char *>(sample.data()) - 2), elements), EG_BAD_ARGUMENT);
  with([](eg_run_options &o) { o.program = "none"; }, EG_UNKNOWN_NAME, sample, elements);
  with([](eg_run_options &o) { o.program = ""; }, EG_UNKNOWN_NAME, sample, elements);
  with([](eg_run_options &o) { o.program = "ddim-3"; }, EG_OK, sample, elements);
  for (const uint32_t steps : {1u, 5u, 65536u, UINT32_MAX}) with([&](eg_run_options &o) { o.steps = steps; }, EG_OUT_OF_RANGE, sample, elements);
  for (const uint32_t steps : {2u, 3u, 4u}) with([&](eg_run_options &o) { o.steps = steps; }, EG_OK, sample, elements);
  for (const uint32_t batch : {5u, 65536u, UINT32_MAX}) with([&](eg_run_options &o) { o.batch = batch; }, EG_OUT_OF_RANGE, four, 4 * elements);
  with([](eg_run_options &o) { o.batch = 4; }, EG_OK, four, 4 * elements);
  for (const uint32_t flags : {4u, 8u, 0x80000000u}) with([&](eg_run_options &o) { o.flags = flags; }, EG_BAD_ARGUMENT, sample, elements);
  for (const uint32_t size : {0u, 4u, 4097u}) with([&](eg_run_options &o) { o.struct_size = size; }, EG_BAD_ARGUMENT, sample, elements);
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1} << 63, UINT64_MAX}) with([&](eg_run_options &o) { o.seed = seed; }, EG_OK, sample, elements);
  const auto given = [&](eg_run_options &o) { o.noise = noise.data(), o.noise_elements = elements; };
  with(given, EG_OK, sample, elements);
  for (const size_t count : {size_t{0}, elements - 1, elements + 1, SIZE_MAX}) with([&](eg_run_options &o) { o.noise = noise.data(), o.noise_elements = count; }, EG_BAD_SHAPE, sample, elements);
  with([&](eg_run_options &o) { o.noise = reinterpret_cast<float *>(reinterpret_cast<char *>(noise.data()) - 1), o.noise_elements = elements; }, EG_BAD_ARGUMENT, sample, elements);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const size_t index : {size_t{0}, size_t{17}, elements - 1}) {
      noise.data()[index] = bad;
      with(given, EG_NONFINITE, sample, elements);
      char words[40];
      std::snprintf(words, sizeof words, "noise: NaN or infinity at element %zu", index);
      REQUIRE(std::strstr(eg_last_error(session), words) != nullptr, "'%s'", eg_last_error(session));
      noise.reset();
    }
  }
  for (const float fine : {std::numeric_limits<float>::denorm_min(), -0.0f, 1e30f}) {  // subnormal, minus zero, huge: deterministic
    noise.data()[3] = fine;
    std::vector<float> first(elements), second(elements);
    eg_run_options options = EG_RUN_OPTIONS_INIT;
    given(options);
    EXPECT(session, eg_generate(session, &options, first.data(), elements), EG_OK);
    EXPECT(session, eg_generate(session, &options, second.data(), elements), EG_OK);
    REQUIRE(std::memcmp(first.data(), second.data(), elements * sizeof(float)) == 0, "two runs differ");
  }
  noise.reset();
  {  // noise and sample may be one buffer
    std::vector<float> wanted(elements);
    eg_run_options options = EG_RUN_OPTIONS_INIT;
    given(options);
    EXPECT(session, eg_generate(session, &options, wanted.data(), elements), EG_OK);
    EXPECT(session, eg_generate(session, &options, noise.data(), elements), EG_OK);
    REQUIRE(std::memcmp(noise.data(), wanted.data(), elements * sizeof(float)) == 0, "an overlapping buffer");
    noise.reset();
  }
  EXPECT(session, eg_get(session, "sample", sample.data(), elements), EG_OK);
  sample.reset();
  describing<eg_tensor_info>(0, 1, [&](uint32_t index, eg_tensor_info *output) { return eg_output_describe(session, index, output); });
  eg_tensor_info output = EG_TENSOR_INFO_INIT;
  EXPECT(session, eg_output_describe(session, 0, &output), EG_OK);
  REQUIRE(std::strcmp(output.name, "sample") == 0 && output.rank == 4 && output.shape[0] == 1 && output.shape[3] == 8, "the sample's output");
  EXPECT(session, eg_get(session, "sample", sample.data(), elements - 1), EG_BAD_SHAPE);
  EXPECT(session, eg_get(session, "latent", sample.data(), elements), EG_UNKNOWN_NAME);
  EXPECT(session, eg_get(session, nullptr, sample.data(), elements), EG_BAD_ARGUMENT);
  EXPECT(session, eg_get(session, "sample", nullptr, elements), EG_BAD_ARGUMENT);
  REQUIRE(sample.untouched(), "a failed eg_get wrote");
  // what was set for four samples does not fit a run of one
  int64_t labels[4] = {0, 1, 2, 3};
  eg_tensor t = EG_TENSOR_INIT;
  t.dtype = EG_INT64, t.name = "label", t.data = labels, t.bytes = sizeof labels, t.rank = 1, t.shape[0] = 4;
  EXPECT(session, eg_set(session, &t), EG_OK);
  with(nothing, EG_BAD_SHAPE, sample, elements);
  with([](eg_run_options &o) { o.batch = 4; }, EG_OK, four, 4 * elements);
  EXPECT(session, eg_unset(session, nullptr), EG_OK);
  // streams
  EXPECT(session, eg_stream_step(session, nullptr, sample.data(), elements), EG_BAD_STATE);
  EXPECT(session, eg_stream_reset(session), EG_OK);
  EXPECT_PLAIN(eg_stream_reset(nullptr), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_stream_step(nullptr, nullptr, nullptr, 0), EG_BAD_ARGUMENT);
  // the self-test
  eg_golden golden = EG_GOLDEN_INIT;
  EXPECT(session, eg_self_test(session, 0, &golden), EG_OK);
  EXPECT(session, eg_self_test(session, 3, &golden), EG_OUT_OF_RANGE);
  EXPECT(session, eg_self_test(session, 0, nullptr), EG_BAD_ARGUMENT);
  golden.struct_size = 0;
  EXPECT(session, eg_self_test(session, 0, &golden), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_self_test(nullptr, 0, &golden), EG_BAD_ARGUMENT);
  uint32_t evaluations = 0;
  double seconds = 0.0;
  EXPECT(session, eg_session_component_report(session, 0, &evaluations, &seconds), EG_OK);
  EXPECT(session, eg_session_component_report(session, 1, &evaluations, &seconds), EG_OUT_OF_RANGE);
  EXPECT(session, eg_session_component_report(session, 0, nullptr, &seconds), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_session_component_report(nullptr, 0, &evaluations, &seconds), EG_BAD_ARGUMENT);
  EXPECT_PLAIN(eg_session_report(nullptr, &report), EG_BAD_ARGUMENT);
  EXPECT(session, eg_session_report(session, nullptr), EG_BAD_ARGUMENT);
}

// A network that gives NaN at an element of its second call.
struct Poison {
  size_t index;
  float value;
  int calls;
};
int32_t poisoned(void *user, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs, uint32_t output_count) {
  Poison &p = *static_cast<Poison *>(user);
  const int32_t status = surrogate(nullptr, component, inputs, input_count, outputs, output_count);
  if (++p.calls == 2) static_cast<float *>(outputs[0].data)[p.index] = p.value;
  return status;
}
int32_t failing(void *, const char *, const eg_tensor *, uint32_t, const eg_tensor *, uint32_t) { return 42; }

void networks(eg_model *model) {
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  const size_t elements = static_cast<size_t>(info.elements);
  Poison poison{};
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.component = poisoned;
  options.component_user = &poison;
  eg_session *session = nullptr;
  REQUIRE(eg_session_create(model, &options, &session, nullptr) == EG_OK, "a session");
  Guarded sample(elements);
  eg_run_options run = EG_RUN_OPTIONS_INIT;
  run.program = "ddim-3";
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const size_t index : {size_t{0}, size_t{9}, elements - 1}) {
      poison = {index, bad, 0};
      EXPECT(session, eg_generate(session, &run, sample.data(), elements), EG_NONFINITE);
      char words[100];
      std::snprintf(words, sizeof words, "component 'denoiser' returned NaN or infinity in 'prediction' at element %zu", index);
      REQUIRE(std::strstr(eg_last_error(session), words) != nullptr && sample.untouched(), "'%s'", eg_last_error(session));
      EXPECT(session, eg_get(session, "sample", sample.data(), elements), EG_BAD_STATE);
      eg_tensor_info output = EG_TENSOR_INFO_INIT;
      EXPECT(session, eg_output_describe(session, 0, &output), EG_BAD_STATE);
      run.flags = EG_RUN_NONFINITE;
      std::vector<float> first(elements), second(elements);
      poison.calls = 0;
      EXPECT(session, eg_generate(session, &run, first.data(), elements), EG_OK);
      poison.calls = 0;
      EXPECT(session, eg_generate(session, &run, second.data(), elements), EG_OK);
      REQUIRE(std::memcmp(first.data(), second.data(), elements * sizeof(float)) == 0, "two runs differ");
      run.flags = 0;
    }
  }
  eg_session_destroy(session);
  options.component = failing;
  REQUIRE(eg_session_create(model, &options, &session, nullptr) == EG_OK, "a session");
  EXPECT(session, eg_generate(session, &run, sample.data(), elements), EG_BACKEND_FAILED);
  REQUIRE(std::strstr(eg_last_error(session), "42") != nullptr && sample.untouched(), "'%s'", eg_last_error(session));
  eg_session_destroy(session);
}

// A session that is called while it is running, from its own step function.
int32_t again(void *user, uint32_t, uint32_t, const float *, size_t) {
  eg_session *session = static_cast<eg_session *>(user);
  ++calls;
  REQUIRE(eg_generate(session, nullptr, nullptr, 0) == EG_BUSY && eg_set_number(session, "label", 1.0) == EG_BUSY, "a call inside a run");
  return EG_CONTINUE;
}
int32_t throwing(void *, uint32_t, uint32_t, const float *, size_t) { throw 7; }

void callbacks(eg_session *session) {
  eg_run_options run = EG_RUN_OPTIONS_INIT;
  run.on_step = again;
  run.user = session;
  EXPECT(session, eg_generate(session, &run, nullptr, 0), EG_OK);
  run.on_step = throwing;  // not allowed; nothing is thrown past the boundary all the same
  EXPECT(session, eg_generate(session, &run, nullptr, 0), EG_BACKEND_FAILED);
  EXPECT(session, eg_generate(session, nullptr, nullptr, 0), EG_OK);
}

// Tensors come in the manifest's order, whatever the order of the program's names.
int32_t ordered(void *, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs, uint32_t output_count) {
  ++calls;
  REQUIRE(input_count == 2 && std::strcmp(inputs[0].name, "x") == 0 && std::strcmp(inputs[1].name, "h") == 0, "inputs");
  REQUIRE(output_count == 2 && std::strcmp(outputs[0].name, "y") == 0 && std::strcmp(outputs[1].name, "g") == 0, "outputs %s, %s", outputs[0].name, outputs[1].name);
  return surrogate(nullptr, component, inputs, input_count, outputs, output_count);
}

void order(const char *path) {
  eg_model *model = open_model(path);
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.component = ordered;
  eg_session *session = nullptr;
  REQUIRE(eg_session_create(model, &options, &session, nullptr) == EG_OK, "a session");
  EXPECT(session, eg_stream_step(session, nullptr, nullptr, 0), EG_OK);
  eg_session_destroy(session);
  eg_close(model);
}

void streams(const char *path) {
  eg_model *model = open_model(path);
  eg_session *session = surrogate_session(model, 2);
  eg_report report = EG_REPORT_INIT;
  Guarded sample(4), two(8);
  EXPECT(session, eg_session_report(session, &report), EG_BAD_STATE);
  EXPECT(session, eg_get(session, "sample", sample.data(), 4), EG_BAD_STATE);
  eg_run_options run = EG_RUN_OPTIONS_INIT;
  run.program = "stream";
  EXPECT(session, eg_generate(session, &run, sample.data(), 4), EG_BAD_STATE);
  run.program = "once";
  EXPECT(session, eg_stream_step(session, &run, sample.data(), 4), EG_BAD_STATE);
  run.program = "none";
  EXPECT(session, eg_stream_step(session, &run, sample.data(), 4), EG_UNKNOWN_NAME);
  run.program = nullptr;
  run.batch = 3;
  EXPECT(session, eg_stream_step(session, &run, sample.data(), 4), EG_OUT_OF_RANGE);
  run.batch = 1;
  run.noise = two.data();
  run.noise_elements = 4;
  EXPECT(session, eg_stream_step(session, &run, sample.data(), 4), EG_BAD_ARGUMENT);
  run.noise = nullptr;
  EXPECT(session, eg_stream_step(session, &run, sample.data(), 5), EG_BAD_SHAPE);
  REQUIRE(sample.untouched(), "a failed step wrote");
  // two streams with a failure between: the same as without
  std::vector<float> wanted, found(4);
  for (int i = 0; i < 4; ++i) {
    EXPECT(session, eg_stream_step(session, nullptr, sample.data(), 4), EG_OK);
    wanted.insert(wanted.end(), sample.data(), sample.data() + 4);
  }
  EXPECT(session, eg_stream_reset(session), EG_OK);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT(session, eg_stream_step(session, nullptr, sample.data(), 3), EG_BAD_SHAPE);
    eg_run_options stopped = EG_RUN_OPTIONS_INIT;
    stopped.on_step = [](void *, uint32_t, uint32_t, const float *, size_t) -> int32_t { return 1; };
    EXPECT(session, eg_stream_step(session, &stopped, found.data(), 4), EG_CANCELLED);
    run.program = "once";
    if (i > 0) EXPECT(session, eg_stream_step(session, &run, found.data(), 4), EG_BAD_STATE);
    run.program = i % 2 == 0 ? "stream" : nullptr;
    if (i > 0) EXPECT(session, eg_stream_step(session, &run, found.data(), 3), EG_BAD_SHAPE);
    EXPECT(session, eg_stream_step(session, nullptr, found.data(), 4), EG_OK);
    REQUIRE(std::memcmp(found.data(), wanted.data() + 4 * i, 4 * sizeof(float)) == 0, "step %zu differs", i);
  }
  eg_session_destroy(session);
  eg_close(model);
}

}  // namespace

int main(int count, char **words) {
  REQUIRE(count == 3, "usage: test-misuse TINY STREAM");
  opening(words[1]);
  eg_model *model = open_model(words[1]);
  eg_session *session = surrogate_session(model, 4);
  introspection(model, session);
  creating(model);
  conditions(session);
  running(model, session);
  networks(model);
  callbacks(session);
  eg_session_destroy(session);
  eg_close(model);
  streams(words[2]);
  order(words[2]);
  REQUIRE(calls >= 200, "only %d calls", calls);
  std::printf("%d calls\n", calls);
}
