// A program ready to run at one batch: every tensor has its place in one block of memory, every network call is bound, and a run is a walk over
// a list of actions that allocates nothing.
#pragma once

#include <atomic>

#include "engine.h"
#include "laws.h"
#include "noise.h"
#include "program.h"

namespace eg {

// Where a session keeps the values of its conditions: by the condition's index, [batch, shape] in its dtype.
using ConditionValues = Vec<unsigned char *>;

struct Action {
  enum class Kind : uint8_t { copy, convert, scale, fill, call, check, lincomb, noise, clamp, threshold, muladd, join, slice, select, reduce, scalar, slincomb, mark };
  Kind kind;
  uint8_t sub = 0;  // a Reduction or Arithmetic; 1 for a bias
  eg_dtype from = 0, to = 0;
  float low = 0.0f, high = 0.0f;  // bounds, bias, scale, immediates
  double quantile = 0.0;
  unsigned char *out = nullptr, *scratch = nullptr;
  const unsigned char *x = nullptr, *y = nullptr, *mask = nullptr;
  size_t n = 0;  // elements of the result; bytes of a copy
  // A row (one sample) is `channels` times `inner` numbers. SLICE and one part of CONCAT: `inner` numbers of rows of `channels`, from `offset`.
  size_t channels = 1, inner = 0, mask_channels = 1, offset = 0;
  uint32_t first = 0, count = 0;  // addends, constants; a call's number and component; a mark's step; a checked output's component and tensor
  uint32_t draw = 0;
};

struct RunContext {
  uint64_t seed = 0;
  uint32_t call = 0;  // of a stream
  bool nonfinite_allowed = false;
  eg_step_fn on_step = nullptr;
  void *user = nullptr;
  const std::atomic<int> *cancelled = nullptr;
};

class Plan {
 public:
  // engine: NULL to find out `bytes` only; nothing else may be called then. program: outlives the plan.
  Plan(Memory &memory, const Manifest &manifest, const Program &program, uint32_t batch, const ConditionValues &conditions, Engine *engine);
  ~Plan();
  Plan(const Plan &) = delete;
  Plan &operator=(const Plan &) = delete;

  size_t bytes() const { return bytes_; }
  uint32_t batch() const { return batch_; }
  const Program &program() const { return program_; }

  // Fill the noise inputs from the caller's normals, or the seed's where it is NULL.
  void start(const float *noise, const RunContext &context);

  // Walk over the actions, and look at the outputs and what states continue as. Throws NONFINITE, CANCELLED, BACKEND_FAILED; states are as before.
  void run(const RunContext &context);

  // States to their beginning, or on to what a run that succeeded has left for them.
  void reset_states();
  void commit_states();

  // An output after a run, [batch, shape]; NULL for an unknown name.
  const float *output(View name, size_t *elements) const;

  Calls &calls() { return *calls_; }
  uint32_t evaluations(size_t component) const { return evaluations_[component]; }
  double seconds(size_t component) const { return seconds_[component]; }

 private:
  class Builder;

  struct Piece {
    const float *data;
    size_t elements;
  };
  struct StateAt {
    unsigned char *value;
    const unsigned char *next;
    unsigned char *pending;  // where `next` is itself a state: room for its value while states change
    size_t elements;
    float initial;
  };
  struct NoiseAt {
    float *out;
    size_t elements;
    float scale;
  };

  void act(const Action &action, const RunContext &context);
  void walk(const Vec<Action> &actions, const RunContext &context);
  void check(const Action &action) const;

  Memory &memory_;
  const Manifest &manifest_;
  const Program &program_;
  uint32_t batch_;
  size_t bytes_ = 0;
  Block block_;
  Calls *calls_ = nullptr;
  Vec<Action> once_;      // when the plan is made: constants
  Vec<Action> prologue_;  // when a run begins: what depends on conditions alone
  Vec<Action> actions_;
  Vec<Addend> addends_;
  Vec<Piece> outputs_, marks_;
  Vec<StateAt> states_;
  Vec<NoiseAt> noises_;
  Vec<uint32_t> evaluations_;  // per component
  Vec<double> seconds_;        // per component, of the last run
};

}  // namespace eg
