// What runs networks. An engine is opened for a variant and shared by sessions; each plan binds its tensors to calls once, and runs them.
#pragma once

#include "manifest.h"
#include "memory.h"

namespace eg {

// Memory that a network reads or writes: row-major, aligned to 64.
struct Tensor {
  eg_dtype dtype;
  uint32_t rank;
  int64_t shape[EG_MAX_RANK];
  void *data;

  size_t count() const;
  size_t bytes() const { return count() * bytes_of(dtype); }
};

// The calls of one plan.
class Calls {
 public:
  virtual ~Calls() = default;
  virtual void destroy() noexcept = 0;

  // Bind a call of a component: all of its inputs in the manifest's order, and `count` of its outputs, whose indices are output_index. Calls are
  // numbered from 0.
  virtual void bind(uint16_t component, const Tensor *inputs, const Tensor *outputs, const uint16_t *output_index, size_t count) = 0;

  // Run a call. Throws BACKEND_FAILED.
  virtual void run(uint32_t call) = 0;

  // From any thread: make a running call end soon, or not (before a new run).
  virtual void stop() noexcept = 0;
  virtual void go() = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual void destroy() noexcept = 0;
  virtual Calls *make_calls() = 0;
  virtual const char *description() const = 0;
};

// The caller's function in place of an engine.
Engine *open_function(Memory &memory, const Manifest &manifest, eg_component_fn function, void *user);

}  // namespace eg
