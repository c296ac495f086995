#include "tensorrt_component.h"

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstring>
#include <map>
#include <mutex>

static_assert(NV_TENSORRT_MAJOR >= 10, "edgegen-jetson needs TensorRT 10 or newer (JetPack 6.1 has 10.3)");

namespace edgegen_jetson {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void check(cudaError_t error, const char *what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call reports it again
  throw Failure(error == cudaErrorMemoryAllocation ? EG_NO_MEMORY : EG_BACKEND_FAILED, std::string(what) + ": " + cudaGetErrorString(error));
}

// TensorRT's messages: errors are kept for ours, warnings go to the log.
class Logger final : public nvinfer1::ILogger {
 public:
  explicit Logger(Log log) : log_(std::move(log)) {}

  void log(Severity severity, const char *message) noexcept override {
    if (severity > Severity::kWARNING) return;
    try {
      const std::lock_guard<std::mutex> lock(guard_);  // builders log from threads of their own
      const std::string line = std::string(message).substr(0, std::strcspn(message, "\n"));
      if (severity != Severity::kWARNING && errors_.size() < 400) errors_ += (errors_.empty() ? "" : "; ") + line;
      if (log_) log_("TensorRT: " + line);
    } catch (...) {
    }
  }

  // The errors since the last call, or that there were none.
  std::string take_errors() {
    const std::lock_guard<std::mutex> lock(guard_);
    std::string taken = errors_.empty() ? "TensorRT gave no reason" : errors_;
    errors_.clear();
    return taken;
  }

 private:
  std::mutex guard_;
  Log log_;
  std::string errors_;
};

nvinfer1::Dims dims_of(const std::vector<int64_t> &shape) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size() && i < static_cast<size_t>(nvinfer1::Dims::MAX_DIMS); ++i) dims.d[i] = shape[i];
  return dims;
}

std::vector<int64_t> shape_of(const nvinfer1::Dims &dims) { return std::vector<int64_t>(dims.d, dims.d + (dims.nbDims < 0 ? 0 : dims.nbDims)); }

std::string text_of(const std::vector<int64_t> &shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + (shape[i] < 0 ? "batch" : std::to_string(shape[i]));
  return text + "]";
}

// The dtype of an engine's tensor; 0 for one that bundles do not have.
eg_dtype dtype_of(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT: return EG_FLOAT32;
    case nvinfer1::DataType::kHALF: return EG_FLOAT16;
    case nvinfer1::DataType::kINT64: return EG_INT64;
    case nvinfer1::DataType::kINT32: return EG_INT32;
    case nvinfer1::DataType::kINT8: return EG_INT8;
    case nvinfer1::DataType::kUINT8: return EG_UINT8;
    case nvinfer1::DataType::kBOOL: return EG_BOOL;
    default: return 0;
  }
}

size_t bytes_of(eg_dtype dtype) {
  constexpr size_t sizes[] = {0, 4, 8, 2, 8, 4, 1, 1, 1};
  return sizes[dtype];
}

bool has_batch(const std::vector<int64_t> &shape) {
  for (const int64_t size : shape) {
    if (size < 0) return true;
  }
  return false;
}

std::vector<int64_t> with_rows(std::vector<int64_t> shape, int64_t rows) {
  for (int64_t &size : shape) {
    if (size < 0) size = rows;
  }
  return shape;
}

// A tensor's memory: what the CPU writes or reads, and where the GPU sees it.
class Buffer {
 public:
  Buffer(size_t bytes, bool mapped) : bytes_(bytes) {
    const size_t size = bytes > 0 ? bytes : 1;
    check(cudaHostAlloc(&host_, size, mapped ? cudaHostAllocMapped : cudaHostAllocDefault), "cudaHostAlloc");
    std::memset(host_, 0, size);
    try {
      if (mapped) {
        check(cudaHostGetDevicePointer(&device_, host_, 0), "cudaHostGetDevicePointer");
      } else {
        check(cudaMalloc(&device_, size), "cudaMalloc");
        own_ = true;
        check(cudaMemset(device_, 0, size), "cudaMemset");
      }
    } catch (...) {
      free();
      throw;
    }
  }
  Buffer(const Buffer &) = delete;
  Buffer &operator=(const Buffer &) = delete;
  ~Buffer() { free(); }

  void *host() const { return host_; }
  void *device() const { return device_; }
  size_t bytes() const { return bytes_; }
  bool copied() const { return own_; }

 private:
  void free() {
    if (own_) cudaFree(device_);
    cudaFreeHost(host_);
  }

  void *host_ = nullptr, *device_ = nullptr;
  size_t bytes_;
  bool own_ = false;  // the device's memory is one of its own
};

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  Stream(const Stream &) = delete;
  Stream &operator=(const Stream &) = delete;
  ~Stream() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

struct IoTensor {
  std::string name;
  bool input;
  eg_dtype dtype;
  std::vector<int64_t> shape;  // -1: the batch
};

// An engine for one number of rows: a context, a buffer per tensor, and the call as a graph.
class Call {
 public:
  Call(nvinfer1::ICudaEngine &engine, Logger &logger, const std::vector<IoTensor> &tensors, int64_t rows, bool mapped, bool graph, const Log &log)
      : logger_(logger), tensors_(tensors), context_(engine.createExecutionContext()) {
    if (!context_) throw Failure(EG_BACKEND_FAILED, "TensorRT makes no context: " + logger.take_errors());
    for (const IoTensor &t : tensors) {
      const std::vector<int64_t> shape = with_rows(t.shape, rows);
      if (t.input && !context_->setInputShape(t.name.c_str(), dims_of(shape))) {
        throw Failure(EG_BAD_SHAPE, "input '" + t.name + "' does not take the shape " + text_of(shape) + ": " + logger.take_errors());
      }
    }
    for (const IoTensor &t : tensors) {
      const std::vector<int64_t> shape = with_rows(t.shape, rows), found = shape_of(context_->getTensorShape(t.name.c_str()));
      if (found != shape) throw Failure(EG_INCONSISTENT, "tensor '" + t.name + "' has the shape " + text_of(found) + ", expected " + text_of(shape));
      size_t bytes = bytes_of(t.dtype);
      for (const int64_t size : shape) bytes *= static_cast<size_t>(size);
      buffers_.push_back(std::make_unique<Buffer>(bytes, mapped));
      if (!context_->setTensorAddress(t.name.c_str(), buffers_.back()->device())) {
        throw Failure(EG_BACKEND_FAILED, "tensor '" + t.name + "' takes no address: " + logger.take_errors());
      }
    }
    enqueue();  // once outside a recording: kernels are loaded here
    wait();
    if (graph) record(log);
  }
  Call(const Call &) = delete;
  Call &operator=(const Call &) = delete;
  ~Call() {
    if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  }

  void run(const edgegen::Tensors &inputs, const edgegen::Tensors &outputs) {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Buffer &buffer = at(inputs[i], true);
      std::memcpy(buffer.host(), inputs[i].data(), buffer.bytes());
    }
    if (graph_ != nullptr) {
      check(cudaGraphLaunch(graph_, stream_.get()), "cudaGraphLaunch");
    } else {
      enqueue();
    }
    wait();
    for (size_t i = 0; i < outputs.size(); ++i) {
      const Buffer &buffer = at(outputs[i], false);
      std::memcpy(outputs[i].data(), buffer.host(), buffer.bytes());
    }
  }

 private:
  const Buffer &at(const edgegen::Tensor &tensor, bool input) const {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const IoTensor &t = tensors_[i];
      if (t.input != input || t.name != tensor.name()) continue;
      if (t.dtype != tensor.dtype() || buffers_[i]->bytes() != tensor.bytes()) {
        throw Failure(EG_INCONSISTENT, "tensor '" + t.name + "' has " + std::to_string(buffers_[i]->bytes()) + " bytes of " + edgegen::dtype_name(t.dtype) +
                                           " in the engine, found " + std::to_string(tensor.bytes()) + " of " + edgegen::dtype_name(tensor.dtype()));
      }
      return *buffers_[i];
    }
    throw Failure(EG_INCONSISTENT, std::string("the engine has no ") + (input ? "input '" : "output '") + tensor.name() + "'");
  }

  // Copies, where there are any, and the network.
  void enqueue() {
    copy(true);
    if (!context_->enqueueV3(stream_.get())) throw Failure(EG_BACKEND_FAILED, "TensorRT did not run the engine: " + logger_.take_errors());
    copy(false);
  }

  void copy(bool inputs) {
    for (size_t i = 0; i < tensors_.size(); ++i) {
      const Buffer &b = *buffers_[i];
      if (!b.copied() || tensors_[i].input != inputs) continue;
      if (inputs) {
        check(cudaMemcpyAsync(b.device(), b.host(), b.bytes(), cudaMemcpyHostToDevice, stream_.get()), "cudaMemcpyAsync");
      } else {
        check(cudaMemcpyAsync(b.host(), b.device(), b.bytes(), cudaMemcpyDeviceToHost, stream_.get()), "cudaMemcpyAsync");
      }
    }
  }

  void wait() { check(cudaStreamSynchronize(stream_.get()), "cudaStreamSynchronize"); }

  // An engine that cannot be recorded (one with loops over data, say) runs without a graph, and a line says so.
  void record(const Log &log) {
    std::string why;
    cudaGraph_t recorded = nullptr;
    check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    try {
      enqueue();
    } catch (const Failure &failure) {
      why = failure.what();
    }
    cudaError_t error = cudaStreamEndCapture(stream_.get(), &recorded);
    if (error == cudaSuccess && why.empty()) error = cudaGraphInstantiateWithFlags(&graph_, recorded, 0);
    if (recorded != nullptr) cudaGraphDestroy(recorded);
    if (error == cudaSuccess && why.empty()) return;
    graph_ = nullptr;
    cudaGetLastError();
    if (log) log("no CUDA graph, each call is enqueued anew: " + (why.empty() ? std::string(cudaGetErrorString(error)) : why));
  }

  Logger &logger_;
  const std::vector<IoTensor> &tensors_;
  Stream stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  cudaGraphExec_t graph_ = nullptr;
};

struct Network {
  std::vector<IoTensor> tensors;
  std::unique_ptr<nvinfer1::ICudaEngine> engine;
  std::map<int64_t, std::unique_ptr<Call>> calls;  // by rows
  bool batched = false;
};

std::string first_parser_error(const nvonnxparser::IParser &parser, Logger &logger) {
  if (parser.getNbErrors() == 0) return logger.take_errors();
  const nvonnxparser::IParserError *error = parser.getError(0);
  const auto line = [](const char *text) { return text == nullptr ? std::string() : std::string(text).substr(0, std::strcspn(text, "\n")); };
  return "node " + std::to_string(error->node()) + " '" + line(error->nodeName()) + "' (" + line(error->nodeOperator()) + "): " + line(error->desc());
}

}  // namespace

class TensorrtNetworks::Device {
 public:
  explicit Device(TensorrtOptions given) : options(std::move(given)), logger(options.log) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || options.device < 0 || options.device >= count) {
      cudaGetLastError();
      throw Failure(EG_PROVIDER_MISSING, "no NVIDIA GPU number " + std::to_string(options.device) +
                                             " here: " + (error == cudaSuccess ? "there are " + std::to_string(count) : cudaGetErrorString(error)));
    }
    check(cudaSetDevice(options.device), "cudaSetDevice");
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, options.device), "cudaGetDeviceProperties");
    gpu =
        std::string(properties.name) + " " + hex(properties.uuid.bytes, sizeof properties.uuid.bytes) + " SM" + std::to_string(properties.major) + std::to_string(properties.minor);
    const bool shared = properties.integrated != 0 && properties.canMapHostMemory != 0;
    mapped = options.memory == Memory::mapped || (options.memory == Memory::automatic && shared);
    runtime.reset(nvinfer1::createInferRuntime(logger));
    if (!runtime) throw Failure(EG_BACKEND_FAILED, "TensorRT does not start: " + logger.take_errors());
    try {
      cache = std::make_unique<EngineCache>(options.cache_folder.empty() ? default_engine_folder() : options.cache_folder, options.log);
    } catch (const CacheError &e) {
      throw Failure(EG_CANNOT_WRITE, e.what());
    }
  }

  EngineReport add(const edgegen::Component &component, const Bytes &onnx) {
    const auto start = Clock::now();
    check(cudaSetDevice(options.device), "cudaSetDevice");
    Network made;
    BuildFlags flags;
    flags.workspace = options.workspace;
    flags.optimization_level = options.optimization_level;
    for (const edgegen::TensorInfo &t : component.inputs) {
      made.tensors.push_back({t.name, true, t.dtype, t.shape});
      if (!has_batch(t.shape)) continue;
      made.batched = true;
      flags.profiles.push_back({t.name, with_rows(t.shape, 1), with_rows(t.shape, 1), with_rows(t.shape, options.most_rows)});
    }
    for (const edgegen::TensorInfo &t : component.outputs) made.tensors.push_back({t.name, false, t.dtype, t.shape});
    EngineReport report{};
    report.key = engine_key(onnx.data(), onnx.size(), TensorrtNetworks::tensorrt_version(), gpu, flags);
    const auto open = [&](const Bytes &data) {
      made.engine.reset(runtime->deserializeCudaEngine(data.data(), data.size()));
      report.bytes = data.size();
      return made.engine != nullptr;
    };
    try {
      report.built = cache->get_or_build(report.key, [&] { return build(component.name, onnx, flags); }, open);
    } catch (const CacheError &e) {
      throw Failure(EG_BACKEND_FAILED, "component '" + component.name + "': " + e.what() + ": " + logger.take_errors());
    }
    check_tensors(component.name, made);
    const std::lock_guard<std::mutex> lock(guard);
    networks.erase(component.name);  // its contexts go before its engine
    const auto placed = networks.emplace(component.name, std::move(made)).first;
    try {
      call(placed->second, 1);
    } catch (...) {
      networks.erase(placed);
      throw;
    }
    report.seconds = since(start);
    return report;
  }

  void run(const char *component, const edgegen::Tensors &inputs, const edgegen::Tensors &outputs) {
    const std::lock_guard<std::mutex> lock(guard);
    check(cudaSetDevice(options.device), "cudaSetDevice");
    const auto found = networks.find(component);
    if (found == networks.end()) throw Failure(EG_UNKNOWN_NAME, std::string("component '") + component + "' has no network here: give it to add first");
    call(found->second, rows_of(found->second, component, inputs)).run(inputs, outputs);
  }

  TensorrtOptions options;
  Logger logger;
  std::string gpu, last_error;
  bool mapped = false;
  std::unique_ptr<nvinfer1::IRuntime> runtime;
  std::unique_ptr<EngineCache> cache;
  std::mutex guard;
  std::map<std::string, Network, std::less<>> networks;

 private:
  Bytes build(const std::string &name, const Bytes &onnx, const BuildFlags &flags) {
    if (options.log) options.log("component '" + name + "': building an engine, which can take minutes");
#if NV_TENSORRT_MAJOR >= 11
    constexpr uint32_t kind = 0;  // every network is strongly typed
#else
    constexpr uint32_t kind = 1u << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
#endif
    const auto refused = [&](const std::string &why) {
      return Failure(EG_BACKEND_FAILED, "component '" + name + "': TensorRT " + TensorrtNetworks::tensorrt_version() + " " + why);
    };
    const std::unique_ptr<nvinfer1::IBuilder> builder(nvinfer1::createInferBuilder(logger));
    if (!builder) throw refused("makes no builder: " + logger.take_errors());
    const std::unique_ptr<nvinfer1::INetworkDefinition> network(builder->createNetworkV2(kind));
    const std::unique_ptr<nvinfer1::IBuilderConfig> config(builder->createBuilderConfig());
    if (!network || !config) throw refused("makes no network: " + logger.take_errors());
    const std::unique_ptr<nvonnxparser::IParser> parser(nvonnxparser::createParser(*network, logger));
    if (!parser) throw refused("makes no parser: " + logger.take_errors());
    if (!parser->parse(onnx.data(), onnx.size())) throw refused("does not take it: " + first_parser_error(*parser, logger));
    if (flags.workspace) config->setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE, static_cast<size_t>(*flags.workspace));
    if (flags.optimization_level) config->setBuilderOptimizationLevel(*flags.optimization_level);
    config->setProfilingVerbosity(nvinfer1::ProfilingVerbosity::kDETAILED);
    if (!flags.profiles.empty()) {
      nvinfer1::IOptimizationProfile *profile = builder->createOptimizationProfile();  // the builder's
      bool taken = profile != nullptr;
      for (const Profile &p : flags.profiles) {
        taken = taken && profile->setDimensions(p.input.c_str(), nvinfer1::OptProfileSelector::kMIN, dims_of(p.least)) &&
                profile->setDimensions(p.input.c_str(), nvinfer1::OptProfileSelector::kOPT, dims_of(p.usual)) &&
                profile->setDimensions(p.input.c_str(), nvinfer1::OptProfileSelector::kMAX, dims_of(p.most));
      }
      if (!taken || config->addOptimizationProfile(profile) < 0) throw refused("does not take 1 to " + std::to_string(options.most_rows) + " rows: " + logger.take_errors());
    }
    const std::unique_ptr<nvinfer1::IHostMemory> engine(builder->buildSerializedNetwork(*network, *config));
    if (!engine) throw refused("cannot build it: " + logger.take_errors());
    const auto *data = static_cast<const unsigned char *>(engine->data());
    return Bytes(data, data + engine->size());
  }

  // The engine's tensors are the component's.
  void check_tensors(const std::string &name, const Network &network) {
    const auto differs = [&](const std::string &what) { return Failure(EG_INCONSISTENT, "component '" + name + "': " + what); };
    const int32_t count = network.engine->getNbIOTensors();
    if (count != static_cast<int32_t>(network.tensors.size()))
      throw differs("its engine has " + std::to_string(count) + " tensors, expected " + std::to_string(network.tensors.size()));
    for (const IoTensor &t : network.tensors) {
      bool found = false;
      for (int32_t i = 0; i < count; ++i) found = found || t.name == network.engine->getIOTensorName(i);
      if (!found) throw differs("its engine has no tensor '" + t.name + "'");
      const bool input = network.engine->getTensorIOMode(t.name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
      const eg_dtype dtype = dtype_of(network.engine->getTensorDataType(t.name.c_str()));
      if (input != t.input || dtype != t.dtype)
        throw differs("tensor '" + t.name + "' is " + (input ? "an input" : "an output") + " of " + edgegen::dtype_name(dtype) + " in its engine, expected " +
                      edgegen::dtype_name(t.dtype));
      const std::vector<int64_t> shape = shape_of(network.engine->getTensorShape(t.name.c_str()));
      bool fits = shape.size() == t.shape.size();
      for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || shape[i] == t.shape[i];
      if (!fits) throw differs("tensor '" + t.name + "' is " + text_of(shape) + " in its engine, expected " + text_of(t.shape));
    }
  }

  int64_t rows_of(const Network &network, const char *component, const edgegen::Tensors &inputs) const {
    int64_t rows = 1;
    for (size_t i = 0; i < inputs.size(); ++i) {
      const edgegen::Tensor tensor = inputs[i];
      for (const IoTensor &t : network.tensors) {
        if (!t.input || t.name != tensor.name()) continue;
        for (size_t k = 0; k < t.shape.size() && k < tensor.shape().size(); ++k) {
          if (t.shape[k] < 0) rows = tensor.shape()[k];
        }
      }
    }
    if (network.batched && rows > options.most_rows) {
      throw Failure(EG_OUT_OF_RANGE, std::string("component '") + component + "': " + std::to_string(rows) + " rows in one call; its engine is built for at most " +
                                         std::to_string(options.most_rows));
    }
    return rows;
  }

  Call &call(Network &network, int64_t rows) {
    std::unique_ptr<Call> &made = network.calls[network.batched ? rows : 1];
    if (!made) made = std::make_unique<Call>(*network.engine, logger, network.tensors, rows, mapped, options.graphs, options.log);
    return *made;
  }
};

TensorrtNetworks::TensorrtNetworks(TensorrtOptions options) : device_(std::make_unique<Device>(std::move(options))) {}

TensorrtNetworks::~TensorrtNetworks() = default;

EngineReport TensorrtNetworks::add(const edgegen::Component &component, const Bytes &onnx) { return device_->add(component, onnx); }

void TensorrtNetworks::run(const char *component, const edgegen::Tensors &inputs, const edgegen::Tensors &outputs) { device_->run(component, inputs, outputs); }

int32_t TensorrtNetworks::function(void *user, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs, uint32_t output_count) noexcept {
  Device &device = *static_cast<TensorrtNetworks *>(user)->device_;
  try {
    device.last_error.clear();
    device.run(component, edgegen::Tensors(inputs, input_count), edgegen::Tensors(outputs, output_count));
    return 0;
  } catch (const std::exception &error) {
    try {
      device.last_error = error.what();
    } catch (...) {
    }
  } catch (...) {
  }
  return 1;
}

const std::string &TensorrtNetworks::last_error() const { return device_->last_error; }

std::string TensorrtNetworks::gpu() const { return device_->gpu; }

std::string TensorrtNetworks::tensorrt_version() {
  const int32_t number = getInferLibVersion();
  return std::to_string(number / 10000) + "." + std::to_string(number / 100 % 100) + "." + std::to_string(number % 100);
}

std::string TensorrtNetworks::cuda_version() {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  const auto text = [](int number) { return std::to_string(number / 1000) + "." + std::to_string(number / 10 % 100); };
  return text(runtime) + " (driver " + text(driver) + ")";
}

}  // namespace edgegen_jetson
