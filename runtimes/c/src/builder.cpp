#include "builder.h"

#include <algorithm>

#include "checked.h"

namespace eg {

namespace {

constexpr size_t kAligned = 64;
constexpr size_t kSmallConstant = 4096;  // bytes up to which an immediate keeps a place of its own
constexpr uint32_t kNone = UINT32_MAX, kAlways = UINT32_MAX;

// a * b * c, refused where it is larger than memory can be: sizes are at most 2^28 per sample, but a batch and branches multiply them.
size_t sized(uint64_t a, uint64_t b, uint64_t c = 1) {
  uint64_t total = 0;
  if (!multiply(a, b, &total) || !multiply(total, c, &total) || total > SIZE_MAX / 4) fail(EG_NO_MEMORY, "a tensor of this batch is larger than the address space");
  return static_cast<size_t>(total);
}

size_t rounded(size_t bytes) { return (std::max<size_t>(bytes, 1) + kAligned - 1) / kAligned * kAligned; }

bool same(const Operand *a, const Operand *b, size_t count) {
  return std::equal(a, a + count, b, [](const Operand &x, const Operand &y) { return x.reg == y.reg && x.value == y.value; });
}

float *floats(unsigned char *bytes) { return reinterpret_cast<float *>(bytes); }

}  // namespace

Plan::Plan(Memory &memory, const Manifest &manifest, const Program &program, uint32_t batch, const ConditionValues &conditions, Engine *engine)
    : memory_(memory), manifest_(manifest), program_(program), batch_(batch), block_(memory), once_(&memory), prologue_(&memory), actions_(&memory), addends_(&memory),
      outputs_(&memory), marks_(&memory), states_(&memory), noises_(&memory), evaluations_(&memory), seconds_(&memory) {
  const auto lay_out = [&](unsigned char *base) {
    once_.clear(), prologue_.clear(), actions_.clear(), addends_.clear(), outputs_.clear(), marks_.clear(), states_.clear(), noises_.clear();
    evaluations_.assign(manifest.components.size(), 0);
    return Builder(*this, conditions, base).run();
  };
  bytes_ = lay_out(nullptr);
  if (engine == nullptr) return;
  block_ = Block(memory, bytes_);
  calls_ = engine->make_calls();
  try {
    lay_out(block_.data());
    seconds_.assign(manifest.components.size(), 0.0);
    walk(once_, RunContext());
    reset_states();
  } catch (...) {
    calls_->destroy();
    throw;
  }
}

Plan::Builder::Builder(Plan &plan, const ConditionValues &conditions, unsigned char *base)
    : plan_(plan), program_(plan.program_), manifest_(plan.manifest_), pools_(plan.program_.pools), conditions_(conditions), base_(base), results_(&plan.memory_), live_(&plan.memory_),
      where_(plan.program_.registers.size(), Where{kNone, 0, nullptr}, &plan.memory_), shapes_(&plan.memory_), free_(&plan.memory_), borrowed_(&plan.memory_),
      joined_(plan.manifest_.tensors.size(), Joined(), &plan.memory_), inputs_(&plan.memory_), outputs_(&plan.memory_) {
  for (const Register &r : program_.registers) shapes_.push_back(r.given ? r.shape : Shape());
}

size_t Plan::Builder::run() {
  find_lifetimes();
  begin();
  for (index_ = 0; index_ < program_.instructions.size(); ++index_) {
    instruction(program_.instructions[index_]);
    if (marks_ < program_.steps.size() && program_.steps[marks_].after == index_ + 1) mark();
    release();
  }
  ends();
  return std::max<size_t>(end_, 1);
}

// Which instruction is the last to need each result. Results are numbered in the order in which they are made.
void Plan::Builder::find_lifetimes() {
  Vec<uint32_t> current(program_.registers.size(), kNone, &plan_.memory_);
  const auto make = [&](uint32_t when) {
    results_.emplace_back();
    results_.back().last = when;
    return static_cast<uint32_t>(results_.size() - 1);
  };
  const auto use = [&](Reg reg, uint32_t when) {
    if (reg != kNoReg && current[reg] != kNone) results_[current[reg]].last = std::max(results_[current[reg]].last, when);
  };
  for (const ProgramInput &input : program_.inputs) {
    if (input.noise) current[input.reg] = make(0);
  }
  size_t step = 0;
  for (uint32_t i = 0; i < program_.instructions.size(); ++i) {
    const Instruction &in = program_.instructions[i];
    for (const Reg reg : {in.x, in.mask, in.a, in.b}) use(reg, i);
    if (in.op == Op::lincomb || in.op == Op::slincomb || in.op == Op::concat) {
      for (uint32_t k = 0; k < in.count; ++k) {
        use(pools_.terms[in.first + k].reg, i);
        use(pools_.terms[in.first + k].scalar, i);
      }
    }
    if (in.op == Op::eval) {
      for (size_t k = 0; k < size_t{in.count} * in.branches; ++k) use(pools_.operands[in.first + k].reg, i);
      for (uint32_t k = 0; k < in.outputs; ++k) {
        const uint32_t made = make(i);
        for (size_t b = 0; b < in.branches; ++b) current[pools_.target_registers[in.targets + size_t{k} * in.branches + b]] = made;
      }
    } else {
      current[in.out] = make(i);
    }
    if (step < program_.steps.size() && program_.steps[step].after == i + 1) use(program_.steps[step++].state, i);
  }
  for (const ProgramOutput &output : program_.outputs) use(output.reg, kAlways);
  for (const ProgramState &state : program_.states) use(state.next, kAlways);
}

void Plan::Builder::begin() {
  for (const ProgramInput &input : program_.inputs) {
    if (!input.noise) {
      where_[input.reg].fixed = conditions_.empty() ? nullptr : conditions_[static_cast<size_t>(program_.registers[input.reg].condition)];
      continue;
    }
    const size_t elements = sized(per_row(input.reg), rows());
    plan_.noises_.push_back({floats(define(input.reg, sized(elements, sizeof(float)))), elements, input.scale});
  }
  for (const ProgramState &state : program_.states) where_[state.reg].fixed = keep(sized(per_row(state.reg), rows(), sizeof(float)));
}

void Plan::Builder::instruction(const Instruction &in) {
  if (in.op == Op::eval) {
    evaluate(in);
  } else {
    Action a = action_of(in);  // looks at the operands before the result has its place: it may be a register that is read
    const bool scalars = in.op == Op::reduce || in.op == Op::scalar;
    const Shape made = program_.shapes[index_];
    a.n = scalars ? rows() : sized(made.elements(), rows());
    if (in.op == Op::concat) {
      join(in, a);
    } else {
      a.out = define(in.out, sized(a.n, sizeof(float)));
      plan_.actions_.push_back(a);
    }
    shapes_[in.out] = made;
  }
  free_.insert(free_.end(), borrowed_.begin(), borrowed_.end());
  borrowed_.clear();
}

Action Plan::Builder::action_of(const Instruction &in) {
  using Kind = Action::Kind;
  Action a{};
  a.sub = in.kind;
  a.low = in.low;
  a.high = in.high;
  a.quantile = in.quantile;
  a.draw = in.draw;
  a.first = in.first;
  a.count = in.count;
  if (in.x != kNoReg) a.x = data(in.x);
  switch (in.op) {
    case Op::lincomb:
    case Op::slincomb:
      a.kind = in.op == Op::lincomb ? Kind::lincomb : Kind::slincomb;
      a.inner = per_row(pools_.terms[in.first].reg);
      a.first = static_cast<uint32_t>(plan_.addends_.size());
      for (uint32_t k = 0; k < in.count; ++k) {
        const Term &term = pools_.terms[in.first + k];
        plan_.addends_.push_back({floats(data(term.reg)), term.scalar == kNoReg ? nullptr : floats(data(term.scalar)), term.c});
      }
      break;
    case Op::noise: a.kind = Kind::noise; break;
    case Op::clamp: a.kind = Kind::clamp; break;
    case Op::threshold:
      a.kind = Kind::threshold;
      a.inner = per_row(in.x);
      a.scratch = borrow(sized(a.inner, sizeof(float)));
      break;
    case Op::muladd:
      a.kind = Kind::muladd;
      channels_of(in.x, a);
      break;
    case Op::slice:
      a.kind = Kind::slice;
      channels_of(in.x, a);
      a.offset = static_cast<size_t>(in.start) * a.inner;
      a.channels = a.channels * a.inner;  // of a row
      a.inner = static_cast<size_t>(in.stop - in.start) * a.inner;
      break;
    case Op::select:
      a.kind = Kind::select;
      channels_of(in.a, a);
      mask_of(in.mask, in.a, a);
      a.x = data(in.a);
      a.y = data(in.b);
      break;
    case Op::reduce:
      a.kind = Kind::reduce;
      channels_of(in.x, a);
      if (in.mask != kNoReg) mask_of(in.mask, in.x, a);
      a.scratch = borrow(sized(per_row(in.x), sizeof(float)));
      break;
    case Op::scalar:
      a.kind = Kind::scalar;
      a.x = in.a == kNoReg ? nullptr : data(in.a);
      a.y = in.b == kNoReg ? nullptr : data(in.b);
      break;
    case Op::concat:
    case Op::eval: break;
  }
  return a;
}

// CONCAT: one strided copy per part.
void Plan::Builder::join(const Instruction &in, const Action &whole) {
  const size_t first = plan_.actions_.size();
  size_t offset = 0;
  for (uint32_t k = 0; k < in.count; ++k) {
    const Reg part = pools_.terms[in.first + k].reg;
    Action a = whole;
    a.kind = Action::Kind::join;
    a.x = data(part);
    a.inner = per_row(part);
    a.offset = offset;
    offset += a.inner;
    plan_.actions_.push_back(a);
  }
  unsigned char *out = define(in.out, sized(whole.n, sizeof(float)));
  for (size_t i = first; i < plan_.actions_.size(); ++i) {
    plan_.actions_[i].out = out;
    plan_.actions_[i].channels = offset;
  }
}

void Plan::Builder::channels_of(Reg reg, Action &a) const {
  a.channels = shapes_[reg].rank > 0 ? static_cast<size_t>(shapes_[reg].size[0]) : 1;
  a.inner = per_row(reg) / a.channels;
}

void Plan::Builder::mask_of(Reg mask, Reg x, Action &a) const {
  a.mask = data(mask);
  a.mask_channels = shapes_[mask] == shapes_[x] ? a.channels : 1;
}

void Plan::Builder::evaluate(const Instruction &in) {
  const Component &component = manifest_.components[in.component];
  branches_ = in.branches;
  inputs_.clear();
  outputs_.clear();
  for (uint32_t k = 0; k < component.inputs; ++k) {
    inputs_.push_back(input(manifest_.tensors[component.first + k], component.first + k, &pools_.operands[in.first + size_t{k} * branches_]));
  }
  Action call{};
  call.kind = Action::Kind::call;
  call.first = calls_++;
  call.count = in.component;
  plan_.actions_.push_back(call);
  const uint16_t *indices = pools_.output_index.data() + output_indices_;
  for (uint32_t k = 0; k < in.outputs; ++k) {
    const size_t index = component.first + component.inputs + indices[k];
    outputs_.push_back(output(manifest_.tensors[index], index, &pools_.target_registers[in.targets + size_t{k} * branches_]));
    plan_.actions_.back().first = in.component;
  }
  output_indices_ += in.outputs;
  plan_.evaluations_[in.component] += in.branches;
  if (base_ != nullptr) plan_.calls_->bind(in.component, inputs_.data(), outputs_.data(), indices, in.outputs);
}

// A component's tensor at this EVAL's number of rows, its data not yet known.
Tensor Plan::Builder::tensor(const TensorSpec &spec) const {
  Tensor t{};
  t.dtype = spec.dtype;
  t.rank = spec.shape.rank;
  for (uint32_t i = 0; i < t.rank; ++i) t.shape[i] = spec.shape.size[i] == kBatch ? static_cast<int64_t>(rows() * branches_) : spec.shape.size[i];
  return t;
}

Tensor Plan::Builder::input(const TensorSpec &spec, size_t index, const Operand *operands) {
  Tensor t = tensor(spec);
  const size_t elements = sized(product(t.shape, t.rank), 1), bytes = sized(elements, bytes_of(t.dtype));
  const auto is_immediate = [](const Operand &o) { return o.reg == kNoReg; };
  const auto is_constant = [&](const Operand &o) { return o.reg == kNoReg || program_.registers[o.reg].condition >= 0; };
  if (std::all_of(operands, operands + branches_, is_immediate)) {
    const bool kept = bytes <= kSmallConstant;
    t.data = kept ? keep(bytes) : borrow(bytes);
    const bool one = std::all_of(operands, operands + branches_, [&](const Operand &o) { return o.value == operands[0].value; });
    const size_t runs = one ? 1 : branches_;
    for (size_t b = 0; b < runs; ++b) {
      Action a{};
      a.kind = Action::Kind::fill;
      a.to = t.dtype;
      a.low = operands[b].value;
      a.n = elements / runs;
      if (base_ != nullptr) a.out = static_cast<unsigned char *>(t.data) + b * a.n * bytes_of(t.dtype);
      (kept ? plan_.once_ : plan_.actions_).push_back(a);
    }
    return t;
  }
  if (branches_ == 1 && operands[0].value == 1.0f && dtype_of(operands[0].reg) == t.dtype) {
    t.data = data(operands[0].reg);  // the register itself
    return t;
  }
  const size_t part = elements / branches_;
  if (std::all_of(operands, operands + branches_, is_constant)) {
    Joined &joined = joined_[index];
    if (joined.branches == 0) {
      joined.operands = operands;
      joined.branches = branches_;
      joined.data = keep(bytes);
      parts(plan_.prologue_, true, spec, operands, joined.data, part);
    }
    if (joined.branches == branches_ && same(joined.operands, operands, branches_)) {
      t.data = joined.data;
      return t;
    }
  }
  unsigned char *out = borrow(bytes);
  parts(plan_.actions_, false, spec, operands, out, part);
  t.data = out;
  return t;
}

// Write the operands one behind the other, `part` elements each. kept: into a list that runs before others, so no borrowed memory may be used.
void Plan::Builder::parts(Vec<Action> &list, bool kept, const TensorSpec &spec, const Operand *operands, unsigned char *out, size_t part) {
  using Kind = Action::Kind;
  const size_t part_bytes = part * bytes_of(spec.dtype);
  for (size_t b = 0; b < branches_; ++b) {
    const Operand &o = operands[b];
    unsigned char *place = base_ == nullptr ? nullptr : out + b * part_bytes;
    const auto add = [&](Kind kind, unsigned char *to, const unsigned char *x) -> Action & {
      list.emplace_back();
      Action &a = list.back();
      a.kind = kind;
      a.out = to;
      a.x = x;
      a.n = part;
      a.low = o.value;
      a.from = EG_FLOAT32;
      a.to = spec.dtype;
      return a;
    };
    if (o.reg == kNoReg) {
      add(Kind::fill, place, nullptr);
      continue;
    }
    const eg_dtype dtype = dtype_of(o.reg);
    const unsigned char *x = data(o.reg);
    if (o.value != 1.0f) {
      unsigned char *to = dtype == spec.dtype ? place : kept ? keep(part * sizeof(float)) : borrow(part * sizeof(float));
      add(Kind::scale, to, x);
      x = to;
      if (dtype == spec.dtype) continue;
    }
    if (dtype == spec.dtype) {
      add(Kind::copy, place, x).n = part_bytes;
    } else {
      add(Kind::convert, place, x);
    }
  }
}

Tensor Plan::Builder::output(const TensorSpec &spec, size_t index, const Reg *targets) {
  Tensor t = tensor(spec);
  Shape tail;
  for (uint32_t i = 1; i < spec.shape.rank; ++i) tail.size[tail.rank++] = spec.shape.size[i];
  const size_t part = sized(tail.elements(), rows(), sizeof(float)), elements = sized(tail.elements(), rows(), branches_);
  unsigned char *raw = t.dtype == EG_FLOAT32 ? nullptr : borrow(sized(elements, bytes_of(t.dtype)));
  place(results_[next_], sized(part, branches_));
  for (size_t b = 0; b < branches_; ++b) {
    where_[targets[b]] = {next_, b * part, nullptr};
    shapes_[targets[b]] = tail;
  }
  ++next_;
  t.data = t.dtype == EG_FLOAT32 ? data(targets[0]) : raw;
  if (t.dtype != EG_FLOAT32) {
    Action a{};
    a.kind = Action::Kind::convert;
    a.from = t.dtype;
    a.to = EG_FLOAT32;
    a.x = raw;
    a.out = data(targets[0]);
    a.n = elements;
    plan_.actions_.push_back(a);
  }
  Action check{};
  check.kind = Action::Kind::check;
  check.x = data(targets[0]);
  check.n = elements;
  check.count = static_cast<uint32_t>(index);
  check.draw = index_;
  plan_.actions_.push_back(check);
  return t;
}

void Plan::Builder::mark() {
  const Reg reg = program_.steps[marks_].state;
  plan_.marks_.push_back({floats(data(reg)), per_row(reg) * rows()});
  Action a{};
  a.kind = Action::Kind::mark;
  a.first = marks_++;
  plan_.actions_.push_back(a);
}

void Plan::Builder::ends() {
  for (const ProgramOutput &output : program_.outputs) {
    const size_t elements = per_row(output.reg) * rows();
    unsigned char *place = data(output.reg);
    if (where_[output.reg].result == kNone) {  // a condition or a state, which may change while the output is still read
      Action a{};
      a.kind = Action::Kind::copy;
      a.x = place;
      a.n = elements * sizeof(float);
      a.out = place = keep(a.n);
      plan_.actions_.push_back(a);
    }
    plan_.outputs_.push_back({floats(place), elements});
  }
  for (const ProgramState &state : program_.states) {
    const size_t elements = per_row(state.reg) * rows();
    const bool of_state = std::any_of(program_.states.begin(), program_.states.end(), [&](const ProgramState &s) { return s.reg == state.next; });
    plan_.states_.push_back({where_[state.reg].fixed, data(state.next), of_state ? keep(elements * sizeof(float)) : nullptr, elements, state.initial});
  }
}

eg_dtype Plan::Builder::dtype_of(Reg reg) const {
  const int16_t condition = program_.registers[reg].condition;
  return condition < 0 ? EG_FLOAT32 : manifest_.conditions[static_cast<size_t>(condition)].dtype;
}

unsigned char *Plan::Builder::data(Reg reg) const {
  const Where &w = where_[reg];
  return w.result == kNone ? w.fixed : at(results_[w.result].offset + w.offset);
}

void Plan::Builder::grow(size_t bytes) {
  if (bytes > SIZE_MAX / 2 - end_) fail(EG_NO_MEMORY, "the program's tensors are larger than the address space");
  end_ += bytes;
}

unsigned char *Plan::Builder::keep(size_t bytes) {
  const size_t offset = end_;
  grow(rounded(bytes));
  return at(offset);
}

// The smallest hole that is large enough and not more than twice too large, or new memory.
Plan::Builder::Hole Plan::Builder::take(size_t bytes) {
  const size_t wanted = rounded(bytes);
  size_t best = free_.size();
  for (size_t i = 0; i < free_.size(); ++i) {
    if (free_[i].bytes >= wanted && free_[i].bytes <= 2 * wanted && (best == free_.size() || free_[i].bytes < free_[best].bytes)) best = i;
  }
  if (best == free_.size()) {
    const Hole made = {end_, wanted};
    grow(wanted);
    return made;
  }
  const Hole found = free_[best];
  free_[best] = free_.back();
  free_.pop_back();
  return found;
}

void Plan::Builder::place(Result &result, size_t bytes) {
  const Hole hole = take(bytes);
  result.offset = hole.offset;
  result.bytes = hole.bytes;
  live_.push_back(static_cast<uint32_t>(&result - results_.data()));
}

unsigned char *Plan::Builder::define(Reg reg, size_t bytes) {
  place(results_[next_], bytes);
  where_[reg] = {next_++, 0, nullptr};
  return data(reg);
}

unsigned char *Plan::Builder::borrow(size_t bytes) {
  borrowed_.push_back(take(bytes));
  return at(borrowed_.back().offset);
}

// Give back what nobody needs after this instruction.
void Plan::Builder::release() {
  for (size_t i = 0; i < live_.size();) {
    const Result &r = results_[live_[i]];
    if (r.last > index_) {
      ++i;
      continue;
    }
    free_.push_back({r.offset, r.bytes});
    live_[i] = live_.back();
    live_.pop_back();
  }
}

}  // namespace eg
