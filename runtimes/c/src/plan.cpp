#include "plan.h"

#include <cstring>
#include <ctime>

namespace eg {

namespace {

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

float *floats(unsigned char *bytes) { return reinterpret_cast<float *>(bytes); }
const float *floats(const unsigned char *bytes) { return reinterpret_cast<const float *>(bytes); }

}  // namespace

Plan::~Plan() {
  if (calls_ != nullptr) calls_->destroy();
}

void Plan::start(const float *noise, const RunContext &context) {
  for (const NoiseAt &n : noises_) {
    if (noise == nullptr) {
      normals(context.seed, 0, context.call, n.out, n.elements);
    } else {
      std::memcpy(n.out, noise, n.elements * sizeof(float));
    }
    if (n.scale != 1.0f) {
      for (size_t i = 0; i < n.elements; ++i) n.out[i] = n.out[i] * n.scale;
    }
  }
}

void Plan::run(const RunContext &context) {
  for (double &s : seconds_) s = 0.0;
  walk(prologue_, context);
  walk(actions_, context);
  if (context.nonfinite_allowed) return;
  const auto look = [&](const float *data, size_t elements, const char *what, View name) {
    const size_t index = first_nonfinite(data, elements);
    if (index < elements) fail(EG_NONFINITE, "%s '%.*s' is NaN or infinite at element %zu although the networks' outputs are not; float32 overflows", what, EG_SHOW(name), index);
  };
  for (size_t i = 0; i < outputs_.size(); ++i) look(outputs_[i].data, outputs_[i].elements, "output", program_.outputs[i].name);
  for (size_t i = 0; i < states_.size(); ++i) look(floats(states_[i].next), states_[i].elements, "state", program_.registers[program_.states[i].reg].name);
}

void Plan::walk(const Vec<Action> &actions, const RunContext &context) {
  for (const Action &action : actions) {
    if (context.cancelled != nullptr && context.cancelled->load(std::memory_order_relaxed) != 0) fail(EG_CANCELLED, "cancelled by eg_cancel");
    act(action, context);
  }
}

void Plan::act(const Action &a, const RunContext &context) {
  using Kind = Action::Kind;
  const size_t rows = batch_;
  switch (a.kind) {
    case Kind::copy: std::memcpy(a.out, a.x, a.n); break;
    case Kind::convert: convert(a.out, a.to, a.x, a.from, a.n); break;
    case Kind::scale: scaled(floats(a.out), floats(a.x), a.low, a.n); break;
    case Kind::fill: fill(a.out, a.to, a.low, a.n); break;
    case Kind::call: {
      const double began = now();
      calls_->run(a.first);
      seconds_[a.count] += now() - began;
      break;
    }
    case Kind::check:
      if (!context.nonfinite_allowed) check(a);
      break;
    case Kind::lincomb: lincomb(floats(a.out), addends_.data() + a.first, a.count, a.low, a.sub != 0, a.n); break;
    case Kind::slincomb: slincomb(floats(a.out), addends_.data() + a.first, a.count, rows, a.inner); break;
    case Kind::noise: normals(context.seed, a.draw, context.call, floats(a.out), a.n); break;
    case Kind::clamp: clamp(floats(a.out), floats(a.x), a.low, a.high, a.n); break;
    case Kind::threshold: threshold(floats(a.out), floats(a.x), a.quantile, a.low, a.high, rows, a.inner, floats(a.scratch)); break;
    case Kind::muladd: {
      const float *constants = program_.pools.constants.data() + a.first;
      muladd(floats(a.out), floats(a.x), constants, constants + a.count, a.count, rows, a.channels, a.inner);
      break;
    }
    case Kind::join:
      for (size_t row = 0; row < rows; ++row) std::memcpy(floats(a.out) + row * a.channels + a.offset, floats(a.x) + row * a.inner, a.inner * sizeof(float));
      break;
    case Kind::slice:
      for (size_t row = 0; row < rows; ++row) std::memcpy(floats(a.out) + row * a.inner, floats(a.x) + row * a.channels + a.offset, a.inner * sizeof(float));
      break;
    case Kind::select: select(floats(a.out), floats(a.mask), floats(a.x), floats(a.y), rows, a.channels, a.inner, a.mask_channels); break;
    case Kind::reduce:
      reduce(floats(a.out), static_cast<Reduction>(a.sub), floats(a.x), floats(a.mask), a.quantile, rows, a.channels, a.inner, a.mask_channels, floats(a.scratch));
      break;
    case Kind::scalar: scalar(floats(a.out), static_cast<Arithmetic>(a.sub), floats(a.x), a.low, floats(a.y), a.high, rows); break;
    case Kind::mark:
      if (context.on_step != nullptr) {
        const uint32_t total = static_cast<uint32_t>(marks_.size());
        const Piece &state = marks_[a.first];
        if (context.on_step(context.user, a.first + 1, total, state.data, state.elements) != EG_CONTINUE) fail(EG_CANCELLED, "cancelled by the step function after step %u of %u", a.first + 1, total);
      }
      break;
  }
}

void Plan::check(const Action &a) const {
  const size_t index = first_nonfinite(floats(a.x), a.n);
  if (index == a.n) return;
  fail(EG_NONFINITE, "component '%.*s' returned NaN or infinity in '%.*s' at element %zu, instruction %u", EG_SHOW(manifest_.components[a.first].name), EG_SHOW(manifest_.tensors[a.count].name), index, a.draw);
}

void Plan::reset_states() {
  for (const StateAt &s : states_) fill(s.value, EG_FLOAT32, s.initial, s.elements);
}

void Plan::commit_states() {
  for (const StateAt &s : states_) {
    if (s.pending != nullptr) std::memcpy(s.pending, s.next, s.elements * sizeof(float));
  }
  for (const StateAt &s : states_) std::memcpy(s.value, s.pending != nullptr ? s.pending : s.next, s.elements * sizeof(float));
}

const float *Plan::output(View name, size_t *elements) const {
  for (size_t i = 0; i < outputs_.size(); ++i) {
    if (program_.outputs[i].name != name) continue;
    *elements = outputs_[i].elements;
    return outputs_[i].data;
  }
  return nullptr;
}

}  // namespace eg
