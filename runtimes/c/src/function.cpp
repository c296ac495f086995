// The caller's function in place of an engine.
#include "engine.h"

namespace eg {

size_t Tensor::count() const {
  size_t total = 1;
  for (uint32_t i = 0; i < rank; ++i) total *= static_cast<size_t>(shape[i]);
  return total;
}

namespace {

class FunctionEngine;

class FunctionCalls final : public Calls {
 public:
  FunctionCalls(Memory &memory, const FunctionEngine &engine) : memory_(memory), engine_(engine), calls_(&memory), tensors_(&memory) {}
  void destroy() noexcept override { memory_.destroy(this); }
  void bind(uint16_t component, const Tensor *inputs, const Tensor *outputs, const uint16_t *output_index, size_t count) override;
  void run(uint32_t call) override;
  void stop() noexcept override {}
  void go() override {}

 private:
  struct Call {
    uint16_t component;
    uint32_t inputs, outputs;
    size_t first;
  };

  Memory &memory_;
  const FunctionEngine &engine_;
  Vec<Call> calls_;
  Vec<eg_tensor> tensors_;
};

class FunctionEngine final : public Engine {
 public:
  FunctionEngine(Memory &memory, const Manifest &manifest, eg_component_fn function, void *user)
      : memory(memory), manifest(manifest), names(memory), component_names(&memory), tensor_names(&memory), function(function), user(user) {
    for (const Component &c : manifest.components) component_names.push_back(names.keep(c.name));
    for (const TensorSpec &t : manifest.tensors) tensor_names.push_back(names.keep(t.name));
  }
  void destroy() noexcept override { memory.destroy(this); }
  Calls *make_calls() override { return memory.make<FunctionCalls>(memory, *this); }
  const char *description() const override { return "the caller's function"; }

  Memory &memory;
  const Manifest &manifest;
  Texts names;
  Vec<const char *> component_names, tensor_names;
  eg_component_fn function;
  void *user;
};

eg_tensor as_argument(const Tensor &tensor, const char *name) {
  eg_tensor made = EG_TENSOR_INIT;
  made.dtype = tensor.dtype;
  made.name = name;
  made.data = tensor.data;
  made.bytes = tensor.bytes();
  made.rank = tensor.rank;
  for (uint32_t i = 0; i < tensor.rank; ++i) made.shape[i] = tensor.shape[i];
  return made;
}

void FunctionCalls::bind(uint16_t component, const Tensor *inputs, const Tensor *outputs, const uint16_t *output_index, size_t count) {
  const Component &c = engine_.manifest.components[component];
  calls_.push_back({component, c.inputs, static_cast<uint32_t>(count), tensors_.size()});
  for (uint32_t i = 0; i < c.inputs; ++i) tensors_.push_back(as_argument(inputs[i], engine_.tensor_names[c.first + i]));
  for (uint32_t i = 0; i < c.outputs; ++i) {  // programs may list them in another order than the manifest
    for (size_t k = 0; k < count; ++k) {
      if (output_index[k] == i) tensors_.push_back(as_argument(outputs[k], engine_.tensor_names[c.first + c.inputs + i]));
    }
  }
}

void FunctionCalls::run(uint32_t call) {
  const Call &c = calls_[call];
  const char *name = engine_.component_names[c.component];
  const eg_tensor *first = tensors_.data() + c.first;
  const int32_t status = engine_.function(engine_.user, name, first, c.inputs, first + c.inputs, c.outputs);
  if (status != 0) fail(EG_BACKEND_FAILED, "component '%s': the caller's function returned %d", name, status);
}

}  // namespace

Engine *open_function(Memory &memory, const Manifest &manifest, eg_component_fn function, void *user) {
  return memory.make<FunctionEngine>(memory, manifest, function, user);
}

}  // namespace eg
