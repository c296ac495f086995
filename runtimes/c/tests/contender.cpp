// A contender of edgegen/timing.py in C++: reads counts from standard input, one a line, and answers each with a JSON list of so many seconds.
//
//   contender generate BUNDLE VARIANT PROGRAM THREADS LIBRARY   eg_generate
//   contender interpreter BUNDLE VARIANT PROGRAM                eg_generate with networks that return zeros
//   contender calls MODEL.onnx ROWS COUNT THREADS LIBRARY       COUNT bare OrtApi::Run calls on values made beforehand, nothing else
#include <chrono>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <iostream>
#include <string>

#include <onnxruntime_c_api.h>

#include "kit.h"

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

void serve(const std::function<void()> &run) {
  run();
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::string answer = "[";
    for (size_t i = number(line); i > 0; --i) {
      const double began = now();
      run();
      char text[40];
      std::snprintf(text, sizeof text, "%.9f%s", now() - began, i > 1 ? ", " : "");
      answer += text;
    }
    std::cout << answer << "]" << std::endl;
  }
}

int32_t zero(void *, const char *, const eg_tensor *, uint32_t, const eg_tensor *outputs, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) std::memset(outputs[i].data, 0, outputs[i].bytes);
  return 0;
}

void generate(const char *path, const char *variant, const char *program, const char *threads, const char *library) {
  eg_model *model = nullptr;
  eg_session *session = nullptr;
  eg_message why;
  REQUIRE(eg_open(path, nullptr, &model, &why) == EG_OK, "%s", why.text);
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.variant = variant;
  options.onnxruntime = library;
  if (library == nullptr) options.component = zero;
  if (threads != nullptr) options.threads = static_cast<uint32_t>(number(threads));
  REQUIRE(eg_session_create(model, &options, &session, &why) == EG_OK, "%s", why.text);
  set_missing_conditions(model, session);
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  std::vector<float> sample(static_cast<size_t>(info.elements));
  eg_run_options run = EG_RUN_OPTIONS_INIT;
  run.program = program;
  run.seed = 1;
  serve([&] { REQUIRE(eg_generate(session, &run, sample.data(), sample.size()) == EG_OK, "%s", eg_last_error(session)); });
  eg_session_destroy(session);
  eg_close(model);
}

const OrtApi *api = nullptr;
void check(OrtStatus *status) { REQUIRE(status == nullptr, "%s", api->GetErrorMessage(status)); }

// A value of a graph's input, all zero (times and classes, of which zero is one, and the state), with ROWS in place of the batch.
OrtValue *zeros(const OrtTypeInfo *type, int64_t rows) {
  const OrtTensorTypeAndShapeInfo *info = nullptr;
  check(api->CastTypeInfoToTensorInfo(type, &info));
  ONNXTensorElementDataType dtype;
  size_t rank = 0;
  check(api->GetTensorElementType(info, &dtype));
  check(api->GetDimensionsCount(info, &rank));
  std::vector<int64_t> shape(rank);
  check(api->GetDimensions(info, shape.data(), rank));
  for (int64_t &size : shape) size = size < 0 ? rows : size;
  OrtAllocator *allocator = nullptr;
  OrtValue *value = nullptr;
  OrtTensorTypeAndShapeInfo *made = nullptr;
  check(api->GetAllocatorWithDefaultOptions(&allocator));
  check(api->CreateTensorAsOrtValue(allocator, shape.data(), rank, dtype, &value));
  check(api->GetTensorTypeAndShape(value, &made));
  size_t count = 0;
  check(api->GetTensorShapeElementCount(made, &count));
  api->ReleaseTensorTypeAndShapeInfo(made);
  void *data = nullptr;
  check(api->GetTensorMutableData(value, &data));
  const size_t size = dtype == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 || dtype == ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE ? 8 : 4;
  std::memset(data, 0, count * size);
  return value;
}

void calls(const char *path, int64_t rows, size_t count, int threads, const char *library) {
  void *handle = dlopen(library, RTLD_NOW);
  REQUIRE(handle != nullptr, "%s", dlerror());
  api = reinterpret_cast<const OrtApiBase *(*)()>(dlsym(handle, "OrtGetApiBase"))()->GetApi(20);
  const std::string bytes = read_file(path);
  OrtEnv *environment = nullptr;
  OrtSessionOptions *options = nullptr;
  OrtSession *session = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "contender", &environment));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, threads));
  check(api->SetInterOpNumThreads(options, 1));
  check(api->CreateSessionFromArray(environment, bytes.data(), bytes.size(), options, &session));
  OrtAllocator *allocator = nullptr;
  check(api->GetAllocatorWithDefaultOptions(&allocator));
  size_t inputs = 0, outputs = 0;
  check(api->SessionGetInputCount(session, &inputs));
  check(api->SessionGetOutputCount(session, &outputs));
  std::vector<const char *> names, out_names;
  std::vector<const OrtValue *> values;
  std::vector<OrtValue *> results;
  for (size_t i = 0; i < inputs; ++i) {
    char *name = nullptr;
    OrtTypeInfo *type = nullptr;
    check(api->SessionGetInputName(session, i, allocator, &name));
    check(api->SessionGetInputTypeInfo(session, i, &type));
    names.push_back(name);
    values.push_back(zeros(type, rows));
    api->ReleaseTypeInfo(type);
  }
  for (size_t i = 0; i < outputs; ++i) {
    char *name = nullptr;
    OrtTypeInfo *type = nullptr;
    check(api->SessionGetOutputName(session, i, allocator, &name));
    check(api->SessionGetOutputTypeInfo(session, i, &type));
    out_names.push_back(name);
    results.push_back(zeros(type, rows));
    api->ReleaseTypeInfo(type);
  }
  serve([&] {
    for (size_t i = 0; i < count; ++i) check(api->Run(session, nullptr, names.data(), values.data(), inputs, out_names.data(), outputs, results.data()));
  });
}

}  // namespace

int main(int count, char **words) {
  const std::string what = count > 1 ? words[1] : "";
  if (what == "generate" && count == 7) {
    generate(words[2], words[3], words[4], words[5], words[6]);
  } else if (what == "interpreter" && count == 5) {
    generate(words[2], words[3], words[4], nullptr, nullptr);
  } else if (what == "calls" && count == 7) {
    calls(words[2], static_cast<int64_t>(number(words[3])), number(words[4]), static_cast<int>(number(words[5])), words[6]);
  } else {
    REQUIRE(false, "see the top of contender.cpp");
  }
}
