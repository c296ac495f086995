// Networks of a bundle on TensorRT: engines are built on this device from ONNX, kept in its own cache (engine_cache.h), and run as one CUDA graph per number
// of rows. An eg_component_fn for eg_session_options.component:
//
//     edgegen_jetson::TensorrtNetworks networks({});
//     networks.add(component, onnx);                                    // of edgegen::Model::components(), once per component
//     options.component = edgegen_jetson::TensorrtNetworks::function;   // eg_session_options
//     options.component_user = &networks;
//
// Needs TensorRT 10 or newer and CUDA 11.4 or newer; this header needs neither. The ONNX must be from a bundle that was checked (runtimes/FORMAT.md, section
// 3.1) or from yourself: TensorRT's parser is not meant for files of strangers.
//
// Threads: calls from several threads run one after the other. Errors: add and run throw Failure; `function` returns 1, and last_error() says why.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "edgegen.hpp"
#include "engine_cache.h"

namespace edgegen_jetson {

class Failure : public edgegen::Error {
 public:
  using edgegen::Error::Error;
};

// Where inputs and outputs lie while the GPU works on them.
enum class Memory {
  automatic,  // mapped where CPU and GPU share their memory, as on every Jetson; else copied
  mapped,     // in the host's memory, which the GPU reads and writes
  copied      // in pinned host memory, with copies to the GPU's and back
};

struct TensorrtOptions {
  std::string cache_folder = {};  // "": default_engine_folder()
  int device = 0;
  int64_t most_rows = 16;                          // engines take 1 to this many rows per call: the batch times guidance's branches
  std::optional<uint64_t> workspace = {};          // as of BuildFlags
  std::optional<int32_t> optimization_level = {};  // as of BuildFlags
  Memory memory = Memory::automatic;
  bool graphs = true;  // record a call as a CUDA graph, where the engine can be
  Log log = {};
};

// What was done for a network before its first call.
struct EngineReport {
  bool built;       // false: it came from the cache
  double seconds;   // of building, or of loading
  size_t bytes;     // of the engine
  std::string key;  // its name in the cache
};

class TensorrtNetworks {
 public:
  // Opens the GPU and the cache. Throws Failure: EG_PROVIDER_MISSING without a GPU, EG_CANNOT_WRITE for a folder that cannot be a cache.
  explicit TensorrtNetworks(TensorrtOptions options);
  ~TensorrtNetworks();
  TensorrtNetworks(const TensorrtNetworks &) = delete;
  TensorrtNetworks &operator=(const TensorrtNetworks &) = delete;

  // Builds or loads the engine of a component and runs it once on zeros. onnx: a model with its weights inside. Throws Failure: EG_BACKEND_FAILED with
  // TensorRT's own words, EG_INCONSISTENT for an engine whose tensors are not the component's, EG_NO_MEMORY.
  EngineReport add(const edgegen::Component &component, const Bytes &onnx);

  // One evaluation. Throws Failure: EG_OUT_OF_RANGE for more rows than most_rows, and as add.
  void run(const char *component, const edgegen::Tensors &inputs, const edgegen::Tensors &outputs);

  // An eg_component_fn, whose user is a TensorrtNetworks.
  static int32_t function(void *user, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs, uint32_t output_count) noexcept;

  // Why `function` last failed; "" if it did not.
  const std::string &last_error() const;

  std::string gpu() const;                // as engine_key takes it
  static std::string tensorrt_version();  // of the library that is loaded, as "10.3.0"
  static std::string cuda_version();      // of the runtime, and of what the driver can do, as "12.6 (driver 12.6)"

 private:
  class Device;
  std::unique_ptr<Device> device_;
};

}  // namespace edgegen_jetson
