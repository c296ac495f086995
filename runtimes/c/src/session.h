// A session: the values of conditions, plans that are ready to run, a stream, and what the last run left.
#pragma once

#include "model.h"

namespace eg {

struct SessionOptions {
  uint32_t threads = 0, batch = 1;
  const char *variant = nullptr, *onnxruntime = nullptr;
  eg_component_fn component = nullptr;
  void *component_user = nullptr;
  eg_log_fn log = nullptr;
  void *log_user = nullptr;
};

struct RunOptions {
  RunContext context;
  const char *program = nullptr;
  uint32_t steps = 0, batch = 1;
  bool stepwise = false;  // not fused
  const float *noise = nullptr;
  size_t noise_elements = 0;
};

}  // namespace eg

struct eg_session {
  eg_session(eg_model &model, const eg::SessionOptions &options);
  ~eg_session();
  eg_session(const eg_session &) = delete;
  eg_session &operator=(const eg_session &) = delete;

  void set(const eg_tensor &value);
  void set_number(const char *name, double value);
  void unset(const char *name);
  void generate(const eg::RunOptions &options, float *sample, size_t elements);
  void stream_step(const eg::RunOptions &options, float *sample, size_t elements);
  void stream_reset() { stream_.running = false; }
  void get(const char *name, float *data, size_t elements);
  void need_run() const;  // BAD_STATE if nothing is left of a last run
  void describe_output(uint32_t index, eg_tensor_info *info) const;
  void self_test(uint32_t index, eg_golden *golden);
  void cancel() noexcept;

  eg_model &model;
  uint32_t variant = 0;
  uint32_t batch;
  char error[EG_MESSAGE_SIZE] = "";
  std::atomic<int> busy{0};

  // The last run; NULL if it failed or there was none.
  const eg::Plan *last = nullptr;
  uint32_t last_program = 0;
  double last_seconds = 0.0;

  // Of a component in the last run. The seconds of a fused program are shared out by evaluations.
  uint32_t evaluations(size_t component) const;
  double seconds(size_t component) const;

  const char *engine() const;  // for a person

 private:
  // How a condition was set.
  enum class Setting : uint8_t { missing, fallback, for_all, per_sample };
  struct Value {
    Setting setting = Setting::missing;
    eg_status fault = EG_OK;  // of a default that is none
    uint32_t samples = 0;     // of per_sample
    size_t elements = 0;      // of one sample
  };
  struct Ready {
    uint32_t program, batch;
    const eg::Fused *fused;  // NULL: step by step
    eg::Plan *plan;
  };
  struct Stream {
    bool running = false;
    eg::Plan *plan = nullptr;
    uint32_t program = 0, batch = 1, calls = 0;
    uint64_t seed = 0;
    bool nonfinite_allowed = false;
  };

  void choose_variant(const eg::SessionOptions &options);
  uint32_t condition(const char *name) const;
  void set_default(uint32_t index);
  void check_values(uint32_t index, const unsigned char *data, size_t elements) const;
  void store(uint32_t index, const void *data, size_t elements, size_t samples);
  uint32_t pick(const eg::RunOptions &options) const;
  const eg::SharedEngine &take(int fused);
  eg::Plan &plan_of(uint32_t program, uint32_t batch, bool stepwise);
  const eg::Program &decoded(uint32_t program);
  void check_conditions(uint32_t program, uint32_t batch) const;
  void check_sample(const float *sample, size_t elements, uint32_t batch) const;
  void run(eg::Plan &plan, uint32_t program, eg::RunContext context, const float *noise, float *sample);
  void attach(eg::Calls *calls);

  class Running;
  friend class Running;

  uint32_t threads_ = 0;
  const char *path_ = nullptr;              // of libonnxruntime
  eg::Engine *own_engine_ = nullptr;        // of the caller's function
  eg::Vec<eg::SharedEngine> engines_;       // taken from the model, when they were first needed
  const eg::Fused *last_fused_ = nullptr;   // of the last run
  eg::Texts texts_;
  eg::Block values_block_;
  eg::ConditionValues values_;
  eg::Vec<Value> settings_;
  eg::Vec<eg::Program *> programs_;  // decoded when they are first run
  eg::Vec<Ready> plans_;
  Stream stream_;
  std::atomic<int> cancelled_{0};
  std::mutex cancel_mutex_;  // for the two below
  bool running_ = false;
  eg::Calls *calls_ = nullptr;  // of the run that goes on, once its plan is ready
};

namespace eg {

// Bytes of conditions and of a program's plan for a session with a batch.
uint64_t session_bytes(eg_model &model, uint32_t batch, uint32_t program);

}  // namespace eg
