#include "program.h"

#include <algorithm>
#include <cstring>

#include "bundle.h"
#include "checked.h"

namespace eg {

namespace {

using Kind = Json::Kind;

constexpr size_t kMaxInstructions = 65536, kMaxRegisters = 4096, kMaxInputs = 64, kMaxOutputs = 64, kMaxStates = 64, kMaxComponents = 64;
constexpr size_t kMaxTerms = 16, kMaxBranches = 16, kMaxOperands = 1024, kMaxChannels = 65536;
constexpr uint64_t kMaxElements = uint64_t{1} << 28;

const char *const kOps[] = {"EVAL", "LINCOMB", "NOISE", "CLAMP", "THRESHOLD", "MULADD", "CONCAT", "SLICE", "SELECT", "REDUCE", "SCALAR", "SLINCOMB"};
const char *const kReductions[] = {"mean", "std", "norm", "quantile"};
const char *const kArithmetic[] = {"add", "sub", "mul", "div", "min", "max", "sqrt"};

template <size_t N>
int find_word(const char *const (&words)[N], View word) {
  for (size_t i = 0; i < N; ++i) {
    if (word == words[i]) return static_cast<int>(i);
  }
  return -1;
}

// Registers by name; found by binary search, so that no choice of names makes it slow.
class Registers {
 public:
  explicit Registers(Memory &memory) : list(&memory), sorted_(&memory) {}

  Reg find(View name) const {
    const size_t at = place(name);
    return at < sorted_.size() && list[sorted_[at]].name == name ? sorted_[at] : kNoReg;
  }

  Reg add(View name) {
    const Reg made = static_cast<Reg>(list.size());
    sorted_.insert(sorted_.begin() + static_cast<ptrdiff_t>(place(name)), made);
    list.emplace_back();
    list.back().name = name;
    return made;
  }

  Vec<Register> list;

 private:
  // Where the name is or would be.
  size_t place(View name) const {
    return static_cast<size_t>(std::lower_bound(sorted_.begin(), sorted_.end(), name, [this](Reg reg, View wanted) { return list[reg].name < wanted; }) - sorted_.begin());
  }

  Vec<Reg> sorted_;
};

// Reads a program twice: first its own rules, then whether it fits the manifest. Instructions are decoded one at a time, in place of the one
// before unless they are kept.
class Reader {
 public:
  Reader(Memory &memory, View text, const Manifest &manifest, View name, Program *kept)
      : manifest_(manifest), name_(name), kept_(kept), registers_(memory), scratch_(memory), pools_(kept != nullptr ? kept->pools : scratch_), tensor_places_(&memory) {
    check_json(text);
    read_top(Json(text));
  }

  ProgramFacts run() {
    facts_.instructions = static_cast<uint32_t>(instructions_.count());
    facts_.states = static_cast<uint32_t>(states_.exists() ? states_.count() : 0);
    check_limits();
    read_inputs();
    read_states();
    walk();
    read_ends();
    fitting_ = true;
    fit_ends();
    walk();
    fit_result();
    return facts_;
  }

 private:
  struct First {  // EVAL of a component
    Json inputs, outputs;
    uint16_t component = 0;
    uint32_t places = 0;  // of its inputs and then its outputs, as the EVAL names them, in tensor_places_
  };

  void read_top(Json program) {
    Json version, name;
    read_fields(program, EG_BAD_PROGRAM, "program",
                {{"inputs", Kind::array, &inputs_}, {"instructions", Kind::array, &instructions_}, {"name", Kind::string, &name}, {"nfe", Kind::object, &nfe_},
                 {"outputs", Kind::object, &outputs_}, {"states", Kind::array, &states_, true}, {"steps", Kind::array, &steps_}, {"version", Kind::integer, &version}});
    EG_CHECK(version.integer() == 1, EG_BAD_PROGRAM, "program '%.*s': version %lld, this library reads version 1", EG_SHOW(name_), static_cast<long long>(version.integer()));
    EG_CHECK(!states_.exists() || states_.count() > 0, EG_BAD_PROGRAM, "program '%.*s': an empty list of states", EG_SHOW(name_));
  }

#define CHECK_RULE(condition, rule, what)                                                                                                          \
  EG_CHECK(condition, EG_BAD_PROGRAM, "program '%.*s', instruction %u (%s), rule %s: %s", EG_SHOW(name_), index_, kOps[static_cast<size_t>(i_.op)], rule, what)
#define CHECK_PART(condition, rule, what) EG_CHECK(condition, EG_BAD_PROGRAM, "program '%.*s', rule %s: %s", EG_SHOW(name_), rule, what)
#define CHECK_FIT(condition, what) \
  EG_CHECK(condition, EG_INCONSISTENT, "program '%.*s', instruction %u (%s): %s", EG_SHOW(name_), index_, kOps[static_cast<size_t>(i_.op)], what)
#define CHECK_WHOLE(condition, what) EG_CHECK(condition, EG_INCONSISTENT, "program '%.*s': %s", EG_SHOW(name_), what)

  void check_limits() {
    CHECK_PART(facts_.instructions >= 1 && facts_.instructions <= kMaxInstructions, "P0", "expected 1 .. 65536 instructions");
    CHECK_PART(inputs_.count() <= kMaxInputs, "P0", "more than 64 inputs");
    CHECK_PART(facts_.states <= kMaxStates, "P0", "more than 64 states");
    CHECK_PART(nfe_.count() <= kMaxComponents, "P0", "more than 64 components");
    CHECK_PART(outputs_.count() >= 1 && outputs_.count() <= kMaxOutputs, "P0", "expected 1 .. 64 outputs");
  }

  double parse(Json text) {
    double value = 0.0;
    EG_CHECK(parse_hex_float(text.string(), &value), EG_BAD_PROGRAM, "program '%.*s': '%.*s' is not a float64 in its hexadecimal form", EG_SHOW(name_), EG_SHOW(text.string()));
    return value;
  }

  // A number that is rounded to float32 when the program runs.
  float number(Json text) {
    const double value = parse(text);
    if (!fitting_) return 0.0f;
    CHECK_WHOLE(fits(value, EG_FLOAT32), "a number does not fit float32");
    return static_cast<float>(value);
  }

  void read_inputs() {
    for (Items i(inputs_); i.next();) {
      Json kind, name, scale;
      read_fields(i.value, EG_BAD_PROGRAM, "input", {{"kind", Kind::string, &kind}, {"name", Kind::string, &name}, {"scale", Kind::string, &scale}});
      CHECK_PART(is_name(name.string()), "P1", "an input's name is none");
      CHECK_PART(registers_.find(name.string()) == kNoReg, "P1", "an input is declared twice");
      CHECK_PART(kind.string() == "noise" || kind.string() == "condition", "P1", "an input is of an unknown kind");
      parse(scale);
      registers_.list[registers_.add(name.string())].given = true;
    }
  }

  void read_states() {
    if (!states_.exists()) return;
    for (Items i(states_); i.next();) {
      Json initial, name, next, shape;
      read_fields(i.value, EG_BAD_PROGRAM, "state", {{"initial", Kind::string, &initial}, {"name", Kind::string, &name}, {"next", Kind::string, &next}, {"shape", Kind::array, &shape}});
      CHECK_PART(is_name(name.string()), "P1", "a state's name is none");
      CHECK_PART(registers_.find(name.string()) == kNoReg, "P19", "a state is also an input, or declared twice");
      parse(initial);
      Register &made = registers_.list[registers_.add(name.string())];
      made.given = true;
      CHECK_PART(read_sizes(shape, &made.shape), "P19", "a state's shape is not 0 .. 5 sizes from 1 to 2^31 - 1");
    }
  }

  // Sizes of a tensor without the batch, at most five; false if they are none.
  bool read_sizes(Json array, Shape *shape) {
    *shape = Shape();
    for (Items i(array); i.next();) {
      const int64_t size = i.value.kind() == Kind::integer ? i.value.integer() : 0;
      if (shape->rank == kMaxSizes - 1 || size < 1 || size > INT32_MAX) return false;
      shape->size[shape->rank++] = static_cast<int32_t>(size);
    }
    return true;
  }

  // One pass over the instructions.
  void walk() {
    last_draw_ = 0;
    index_ = 0;
    std::memset(counted_, 0, sizeof counted_);
    for (Items i(instructions_); i.next(); ++index_) {
      if (kept_ == nullptr || !fitting_) {
        pools_.terms.clear(), pools_.constants.clear(), pools_.operands.clear(), pools_.output_index.clear(), pools_.target_registers.clear();
      }
      decode(i.value);
      if (fitting_) fit();
    }
  }

  void decode(Json value) {
    EG_CHECK(value.kind() == Kind::object, EG_BAD_PROGRAM, "program '%.*s': instruction %u is not an object", EG_SHOW(name_), index_);
    Json op;
    for (Items i(value); i.next();) {
      if (i.key == "op") op = i.value;
    }
    const int known = op.exists() && op.kind() == Kind::string ? find_word(kOps, op.string()) : -1;
    EG_CHECK(known >= 0, EG_BAD_PROGRAM, "program '%.*s': instruction %u has an unknown op", EG_SHOW(name_), index_);
    i_ = Instruction();
    i_.op = static_cast<Op>(known);
    switch (i_.op) {
      case Op::eval: return eval(value);
      case Op::lincomb: return lincomb(value);
      case Op::noise: return noise(value);
      case Op::clamp: return clamp(value);
      case Op::threshold: return threshold(value);
      case Op::muladd: return muladd(value);
      case Op::concat: return concat(value);
      case Op::slice: return slice(value);
      case Op::select: return select(value);
      case Op::reduce: return reduce(value);
      case Op::scalar: return scalar(value);
      case Op::slincomb: return slincomb(value);
    }
  }

  void fields(Json value, std::initializer_list<Field> list) { read_fields(value, EG_BAD_PROGRAM, kOps[static_cast<size_t>(i_.op)], list); }

  Reg read(View name, bool scalar) {
    const Reg found = registers_.find(name);
    CHECK_RULE(found != kNoReg, "P2", "it reads a register before anything writes it");
    CHECK_RULE(registers_.list[found].scalar == scalar, "P18", scalar ? "it reads a tensor as a scalar" : "it reads a scalar as a tensor");
    return found;
  }
  Reg read(Json name) { return read(name.string(), false); }

  Reg write(View name, bool scalar) {
    Reg found = registers_.find(name);
    if (found == kNoReg) {
      CHECK_RULE(is_name(name), "P1", "a register's name is none");
      CHECK_PART(registers_.list.size() < kMaxRegisters, "P0", "more than 4096 registers");
      found = registers_.add(name);
      registers_.list[found].scalar = scalar;
      registers_.list[found].ready = index_ + 1;
    }
    CHECK_RULE(!registers_.list[found].given, "P19", "it writes an input or a state");
    CHECK_RULE(registers_.list[found].scalar == scalar, "P18", "it writes a register that holds the other kind elsewhere");
    return found;
  }
  Reg write(Json name) { return write(name.string(), false); }

  void eval(Json value) {
    Json component, inputs, outputs, op;
    fields(value, {{"component", Kind::string, &component}, {"inputs", Kind::object, &inputs}, {"op", Kind::string, &op}, {"outputs", Kind::object, &outputs}});
    CHECK_RULE(is_name(component.string()), "P1", "the component's name is none");
    int slot = -1;
    size_t at = 0;
    for (Items i(nfe_); i.next(); ++at) {
      if (i.key == component.string()) slot = static_cast<int>(at);
    }
    CHECK_RULE(slot >= 0, "P10", "nfe does not count the component");
    First &first = first_[slot];
    if (counted_[slot] == 0) meet(first, inputs, outputs, component.string());
    CHECK_RULE(same_keys(first.inputs, inputs) && same_keys(first.outputs, outputs), "P5", "the component was used with other inputs or outputs before");

    size_t branches = 0, registers = 0;
    for (Items i(outputs); i.next();) {
      const size_t targets = list_size(i.value);
      if (branches == 0) branches = targets;
      CHECK_RULE(is_name(i.key), "P1", "a component tensor's name is none");
      CHECK_RULE(branches >= 1 && branches <= kMaxBranches, "P4", "expected 1 .. 16 branches");
      CHECK_RULE(targets == branches, "P4", "an output has another number of registers than there are branches");
      registers += branches;
      CHECK_RULE(registers <= kMaxOperands, "P4", "more than 1024 registers");
    }
    i_.branches = static_cast<uint16_t>(branches);
    counted_[slot] += i_.branches;

    const Component *declared = nullptr;
    if (fitting_) {
      i_.component = first.component;
      declared = &manifest_.components[i_.component];
      i_.count = declared->inputs;
    }
    i_.first = static_cast<uint32_t>(pools_.operands.size());
    if (declared != nullptr) pools_.operands.resize(pools_.operands.size() + i_.count * branches);
    size_t operands = 0, key = 0;
    bool reads = false;
    for (Items i(inputs); i.next(); ++key) {
      CHECK_RULE(is_name(i.key), "P1", "a component tensor's name is none");
      CHECK_RULE(list_size(i.value) == branches, "P4", "an input has another number of operands than there are branches");
      operands += branches;
      CHECK_RULE(operands <= kMaxOperands, "P4", "more than 1024 operands");
      const TensorSpec *input = nullptr;
      Operand *place = nullptr, *begin = nullptr;
      if (declared != nullptr) {
        const size_t index = tensor_places_[first.places + key];
        input = &manifest_.tensors[declared->first + index];
        place = begin = &pools_.operands[i_.first + index * branches];
      }
      for (Items o(i.value); o.next();) {
        const Operand operand = read_operand(o.value, input);
        reads = reads || operand.reg != kNoReg;
        if (place != nullptr) *place++ = operand;
      }
      if (input != nullptr) CHECK_FIT(one_number_per_row(*input) || !different_immediates(begin, branches), "different immediates for an input need one number per row");
    }
    CHECK_RULE(reads, "P4", "it reads no register, so its batch is unknown");

    i_.targets = static_cast<uint32_t>(pools_.target_registers.size());
    ++stamp_;
    for (Items i(outputs); i.next(); ++i_.outputs, ++key) {
      const TensorSpec *output = nullptr;
      if (declared != nullptr) {
        const size_t index = tensor_places_[first.places + key];
        output = &manifest_.tensors[declared->first + index];
        pools_.output_index.push_back(static_cast<uint16_t>(index - declared->inputs));
      }
      for (Items r(i.value); r.next();) {
        const Reg target = write(r.value);
        Register &reg = registers_.list[target];
        CHECK_RULE(reg.stamp != stamp_, "P4", "it writes one register twice");
        reg.stamp = stamp_;
        if (output != nullptr) reg.shape = tail(*output);
        pools_.target_registers.push_back(target);
      }
    }
  }

  static bool one_number_per_row(const TensorSpec &input) { return input.shape.rank == 1 && input.shape.size[0] == kBatch; }

  static bool different_immediates(const Operand *operands, size_t count) {
    bool different = false;
    for (size_t i = 0; i < count; ++i) {
      if (operands[i].reg != kNoReg) return false;
      different = different || operands[i].value != operands[0].value;
    }
    return different;
  }

  // The first EVAL of a component in a pass: which tensors it names, and, to fit them, where the component has these.
  void meet(First &first, Json inputs, Json outputs, View name) {
    first.inputs = inputs;
    first.outputs = outputs;
    if (!fitting_) return;
    first.component = static_cast<uint16_t>(manifest_.find_component(name));
    first.places = static_cast<uint32_t>(tensor_places_.size());
    const Component &component = manifest_.components[first.component];
    CHECK_FIT(inputs.count() == component.inputs, "it gives the component other inputs than it has");
    for (Items i(inputs); i.next();) {
      const int place = manifest_.find_tensor(component, i.key, false);
      CHECK_FIT(place >= 0, "it gives the component other inputs than it has");
      tensor_places_.push_back(static_cast<uint16_t>(place));
    }
    for (Items i(outputs); i.next();) {
      const int place = manifest_.find_tensor(component, i.key, true);
      CHECK_FIT(place >= 0, "it takes outputs from the component that it does not have");
      CHECK_FIT(by_rows(manifest_.tensors[component.first + static_cast<size_t>(place)]), "an output does not have the batch as its first size, and only there");
      tensor_places_.push_back(static_cast<uint16_t>(place));
    }
  }

  // How many items a list has; 0 for what is none, as for an empty one.
  static size_t list_size(Json value) { return value.kind() == Kind::array ? value.count() : 0; }

  static bool same_keys(Json a, Json b) {
    Items i(a), k(b);
    for (;;) {
      const bool more = i.next();
      if (k.next() != more) return false;
      if (!more) return true;
      if (i.key != k.key) return false;
    }
  }

  // input: to fit the operand to; NULL in the first pass.
  Operand read_operand(Json value, const TensorSpec *input) {
    Operand operand{0.0f, kNoReg};
    bool immediate = false;
    if (value.kind() == Kind::object) {
      for (Items i(value); i.next();) immediate = immediate || i.key == "imm";
    }
    if (immediate) {
      Json imm;
      fields(value, {{"imm", Kind::string, &imm}});
      operand.value = number(imm);
      if (input != nullptr) CHECK_FIT(fits(parse(imm), input->dtype), "an input cannot take the immediate in its dtype (for whole numbers use a grid of whole times)");
    } else {
      Json reg, scale;
      fields(value, {{"reg", Kind::string, &reg}, {"scale", Kind::string, &scale}});
      operand.reg = read(reg);
      operand.value = number(scale);
      if (input != nullptr) fit_input(*input, registers_.list[operand.reg], parse(scale) == 1.0);
    }
    return operand;
  }

  // A component's input takes a register: in dtype, shape and layout.
  void fit_input(const TensorSpec &input, const Register &reg, bool unscaled) {
    const eg_dtype dtype = dtype_of(reg);
    const bool floats = dtype == EG_FLOAT32;
    CHECK_FIT(input.dtype == dtype || (floats && (input.dtype == EG_FLOAT16 || input.dtype == EG_FLOAT64)), "an input cannot take a register of this dtype");
    CHECK_FIT(floats || unscaled, "a condition that is not float32 cannot be scaled");
    CHECK_FIT(by_rows(input), "an input that reads registers does not have the batch as its first size, and only there");
    CHECK_FIT(reg.shape == tail(input), "an input takes another shape than its register has");
  }

  eg_dtype dtype_of(const Register &reg) const { return reg.condition >= 0 ? manifest_.conditions[static_cast<size_t>(reg.condition)].dtype : EG_FLOAT32; }

  static bool by_rows(const TensorSpec &tensor) {
    if (tensor.shape.rank == 0 || tensor.shape.size[0] != kBatch) return false;
    for (uint32_t i = 1; i < tensor.shape.rank; ++i) {
      if (tensor.shape.size[i] == kBatch) return false;
    }
    return true;
  }

  static Shape tail(const TensorSpec &tensor) {
    Shape shape;
    for (uint32_t i = 1; i < tensor.shape.rank; ++i) shape.size[shape.rank++] = tensor.shape.size[i];
    return shape;
  }

  // Terms [number, register] or, with scalars, also [number, register, scalar].
  void read_terms(Json terms, bool scalars) {
    i_.first = static_cast<uint32_t>(pools_.terms.size());
    for (Items i(terms); i.next(); ++i_.count) {
      const size_t parts = i.value.kind() == Kind::array ? i.value.count() : 0;
      EG_CHECK(parts == 2 || (scalars && parts == 3), EG_BAD_PROGRAM, "%s: a term has other parts than expected", kOps[static_cast<size_t>(i_.op)]);
      Json part[3];
      size_t at = 0;
      for (Items p(i.value); p.next(); ++at) {
        part[at] = p.value;
      }
      CHECK_RULE(i_.count < kMaxTerms, scalars ? "P17" : "P6", "more than 16 terms");
      const Term term = {number(part[0]), read(part[1]), parts == 3 ? read(part[2].string(), true) : kNoReg};
      pools_.terms.push_back(term);
    }
    CHECK_RULE(i_.count >= 1, scalars ? "P17" : "P6", "no terms");
  }

  void lincomb(Json value) {
    Json bias, op, out, terms;
    fields(value, {{"bias", Kind::string, &bias}, {"op", Kind::string, &op}, {"out", Kind::string, &out}, {"terms", Kind::array, &terms}});
    read_terms(terms, false);
    i_.low = number(bias);
    i_.kind = parse(bias) != 0.0;
    i_.out = write(out);
  }

  void slincomb(Json value) {
    Json op, out, terms;
    fields(value, {{"op", Kind::string, &op}, {"out", Kind::string, &out}, {"terms", Kind::array, &terms}});
    read_terms(terms, true);
    i_.out = write(out);
  }

  void noise(Json value) {
    Json draw, like, op, out, shape;
    fields(value, {{"draw", Kind::integer, &draw}, {"like", Kind::string, &like}, {"op", Kind::string, &op}, {"out", Kind::string, &out}, {"shape", Kind::array, &shape, true}});
    CHECK_RULE(draw.integer() > last_draw_ && draw.integer() <= UINT32_MAX, "P7", "draws are numbered upwards, from 1 to 2^32 - 1");
    last_draw_ = draw.integer();
    i_.draw = static_cast<uint32_t>(draw.integer());
    drawn_ = Shape();
    if (shape.exists()) {
      CHECK_RULE(read_sizes(shape, &drawn_) && drawn_.rank >= 1 && drawn_.elements() <= INT32_MAX, "P7", "expected 1 .. 5 sizes of at least 1, fewer than 2^31 elements");
    }
    i_.kind = shape.exists();
    i_.x = read(like);
    i_.out = write(out);
  }

  void clamp(Json value) {
    Json high, low, op, out, x;
    fields(value, {{"high", Kind::string, &high}, {"low", Kind::string, &low}, {"op", Kind::string, &op}, {"out", Kind::string, &out}, {"x", Kind::string, &x}});
    CHECK_RULE(parse(low) <= parse(high), "P8", "low is above high");
    i_.low = number(low);
    i_.high = number(high);
    i_.x = read(x);
    i_.out = write(out);
  }

  void threshold(Json value) {
    Json ceiling, floor, op, out, quantile, x;
    fields(value, {{"ceiling", Kind::string, &ceiling}, {"floor", Kind::string, &floor}, {"op", Kind::string, &op}, {"out", Kind::string, &out}, {"quantile", Kind::string, &quantile}, {"x", Kind::string, &x}});
    i_.quantile = parse(quantile);
    CHECK_RULE(i_.quantile >= 0.0 && i_.quantile <= 1.0, "P9", "the quantile is not in 0 .. 1");
    CHECK_RULE(parse(floor) > 0.0 && parse(floor) <= parse(ceiling), "P9", "expected 0 < floor <= ceiling");
    i_.low = number(floor);
    i_.high = number(ceiling);
    i_.x = read(x);
    i_.out = write(out);
  }

  void muladd(Json value) {
    Json op, out, scale, shift, x;
    fields(value, {{"op", Kind::string, &op}, {"out", Kind::string, &out}, {"scale", Kind::array, &scale}, {"shift", Kind::array, &shift}, {"x", Kind::string, &x}});
    i_.count = static_cast<uint32_t>(scale.count());
    CHECK_RULE(i_.count >= 1 && i_.count <= kMaxChannels, "P12", "expected 1 .. 65536 scales");
    CHECK_RULE(shift.count() == i_.count, "P12", "as many shifts as scales are expected");
    i_.first = static_cast<uint32_t>(pools_.constants.size());
    for (const Json list : {scale, shift}) {
      for (Items c(list); c.next();) {
        const float constant = number(c.value);
        if (kept_ != nullptr && fitting_) pools_.constants.push_back(constant);
      }
    }
    i_.x = read(x);
    i_.out = write(out);
  }

  void concat(Json value) {
    Json op, out, parts;
    fields(value, {{"op", Kind::string, &op}, {"out", Kind::string, &out}, {"parts", Kind::array, &parts}});
    i_.first = static_cast<uint32_t>(pools_.terms.size());
    for (Items i(parts); i.next(); ++i_.count) {
      CHECK_RULE(i_.count < kMaxTerms, "P13", "more than 16 parts");
      pools_.terms.push_back({0.0f, read(i.value), kNoReg});
    }
    CHECK_RULE(i_.count >= 2, "P13", "fewer than two parts");
    i_.out = write(out);
  }

  void slice(Json value) {
    Json op, out, start, stop, x;
    fields(value, {{"op", Kind::string, &op}, {"out", Kind::string, &out}, {"start", Kind::integer, &start}, {"stop", Kind::integer, &stop}, {"x", Kind::string, &x}});
    CHECK_RULE(start.integer() >= 0 && start.integer() < stop.integer() && stop.integer() <= INT32_MAX, "P14", "expected 0 <= start < stop < 2^31");
    i_.start = static_cast<int32_t>(start.integer());
    i_.stop = static_cast<int32_t>(stop.integer());
    i_.x = read(x);
    i_.out = write(out);
  }

  void select(Json value) {
    Json a, b, mask, op, out;
    fields(value, {{"a", Kind::string, &a}, {"b", Kind::string, &b}, {"mask", Kind::string, &mask}, {"op", Kind::string, &op}, {"out", Kind::string, &out}});
    i_.mask = read(mask);
    i_.a = read(a);
    i_.b = read(b);
    i_.out = write(out);
  }

  void reduce(Json value) {
    Json kind, mask, op, out, quantile, x;
    fields(value, {{"kind", Kind::string, &kind}, {"mask", Kind::string, &mask, true}, {"op", Kind::string, &op}, {"out", Kind::string, &out}, {"quantile", Kind::string, &quantile}, {"x", Kind::string, &x}});
    const int known = find_word(kReductions, kind.string());
    CHECK_RULE(known >= 0, "P15", "the kind is unknown");
    i_.kind = static_cast<uint8_t>(known);
    i_.quantile = parse(quantile);
    CHECK_RULE(i_.quantile >= 0.0 && i_.quantile <= 1.0, "P15", "the quantile is not in 0 .. 1");
    CHECK_RULE(i_.quantile == 0.0 || static_cast<Reduction>(known) == Reduction::quantile, "P15", "a quantile of another kind than 'quantile'");
    i_.x = read(x);
    if (mask.exists()) i_.mask = read(mask);
    i_.out = write(out.string(), true);
  }

  // A scalar register, whose number is left alone, or kNoReg and its number.
  Reg read_scalar_operand(Json value, float *imm, bool *zero) {
    Json first;
    for (Items i(value); i.next();) {
      if (i.key == "imm") first = i.value;
    }
    if (first.exists()) {
      fields(value, {{"imm", Kind::string, &first}});
      *zero = parse(first) == 0.0;
      *imm = number(first);
      return kNoReg;
    }
    fields(value, {{"reg", Kind::string, &first}});
    return read(first.string(), true);
  }

  void scalar(Json value) {
    Json a, b, kind, op, out;
    fields(value, {{"a", Kind::object, &a}, {"b", Kind::object, &b}, {"kind", Kind::string, &kind}, {"op", Kind::string, &op}, {"out", Kind::string, &out}});
    const int known = find_word(kArithmetic, kind.string());
    CHECK_RULE(known >= 0, "P16", "the kind is unknown");
    i_.kind = static_cast<uint8_t>(known);
    bool zero_a = false, zero_b = false;
    i_.a = read_scalar_operand(a, &i_.low, &zero_a);
    i_.b = read_scalar_operand(b, &i_.high, &zero_b);
    CHECK_RULE(i_.a != kNoReg || i_.b != kNoReg, "P16", "it reads no scalar, so its number of samples is unknown");
    if (static_cast<Arithmetic>(known) == Arithmetic::sqrt) CHECK_RULE(i_.a != kNoReg && zero_b, "P16", "sqrt takes the scalar a alone; b is the number 0");
    i_.out = write(out.string(), true);
  }

  void read_ends() {
    for (Items i(outputs_); i.next();) {
      CHECK_PART(is_name(i.key), "P1", "an output's name is none");
      CHECK_PART(tensor(i.value.string()) != kNoReg, "P2", "an output reads a tensor that nothing writes");
    }
    if (states_.exists()) {
      for (Items i(states_); i.next();) CHECK_PART(tensor(member_of(i.value, "next")) != kNoReg, "P19", "a state continues as a tensor that nothing writes");
    }
    size_t slot = 0;
    for (Items i(nfe_); i.next(); ++slot) {
      CHECK_PART(i.value.kind() == Kind::integer && i.value.integer() >= 1 && static_cast<uint64_t>(i.value.integer()) == counted_[slot], "P10", "nfe is not what the instructions evaluate");
      facts_.evaluations += static_cast<uint32_t>(counted_[slot]);
    }
    int64_t last = 0;
    for (Items i(steps_); i.next();) {
      Json after, state, time;
      read_fields(i.value, EG_BAD_PROGRAM, "step", {{"after", Kind::integer, &after}, {"state", Kind::string, &state}, {"time", Kind::string, &time}});
      CHECK_PART(after.integer() > last && after.integer() <= facts_.instructions, "P11", "steps must advance and stay inside the program");
      last = after.integer();
      const Reg reg = tensor(state.string());
      CHECK_PART(reg != kNoReg && registers_.list[reg].ready <= after.integer(), "P11", "a step names a tensor that is not written by then");
      parse(time);
    }
  }

  // The register of a name if it is a tensor.
  Reg tensor(View name) const {
    const Reg found = registers_.find(name);
    return found != kNoReg && !registers_.list[found].scalar ? found : kNoReg;
  }

  // What stands at the ends of a program fits the manifest: components, conditions, noise, states, outputs.
  void fit_ends() {
    for (Items i(nfe_); i.next();) CHECK_WHOLE(manifest_.find_component(i.key) >= 0, "it evaluates a component that the bundle does not hold");
    size_t draws = 0;
    for (Items i(inputs_); i.next();) {
      Json kind, name, scale;
      read_fields(i.value, EG_BAD_PROGRAM, "input", {{"kind", Kind::string, &kind}, {"name", Kind::string, &name}, {"scale", Kind::string, &scale}});
      Register &reg = registers_.list[registers_.find(name.string())];
      const float rounded = number(scale);
      const bool is_noise = kind.string() == "noise";
      if (is_noise) {
        ++draws;
        reg.shape = manifest_.sample;
      } else {
        const int condition = manifest_.find_condition(name.string());
        CHECK_WHOLE(condition >= 0, "it reads a condition that the bundle does not have");
        reg.condition = static_cast<int16_t>(condition);
        reg.shape = manifest_.conditions[static_cast<size_t>(condition)].shape;
        facts_.conditions |= uint64_t{1} << condition;
      }
      CHECK_WHOLE(reg.shape.elements() <= kMaxElements, "an input has more than 2^28 elements per sample");
      if (kept_ != nullptr) kept_->inputs.push_back({registers_.find(name.string()), is_noise, rounded});
    }
    CHECK_WHOLE(draws == 1 || (draws == 0 && states_.exists()), "expected one noise input (none is needed with states)");
    bool sample = false;
    for (Items i(outputs_); i.next();) {
      sample = sample || i.key == "sample";
      const Reg reg = registers_.find(i.value.string());
      CHECK_WHOLE(dtype_of(registers_.list[reg]) == EG_FLOAT32, "an output is not float32");
      if (kept_ != nullptr) kept_->outputs.push_back({i.key, reg, Shape(), kept_->texts.keep(i.key)});
    }
    CHECK_WHOLE(sample, "it has no output 'sample'");
    if (states_.exists()) {
      for (Items i(states_); i.next();) {
        Json initial, name, next, shape;
        read_fields(i.value, EG_BAD_PROGRAM, "state", {{"initial", Kind::string, &initial}, {"name", Kind::string, &name}, {"next", Kind::string, &next}, {"shape", Kind::array, &shape}});
        const Reg reg = registers_.find(name.string()), following = registers_.find(next.string());
        CHECK_WHOLE(registers_.list[reg].shape.elements() <= kMaxElements, "a state has more than 2^28 elements per sample");
        CHECK_WHOLE(dtype_of(registers_.list[following]) == EG_FLOAT32, "a state continues as a register that is not float32");
        const float rounded = number(initial);
        if (kept_ != nullptr) kept_->states.push_back({reg, following, rounded});
      }
    }
    for (Items i(steps_); i.next();) {
      Json after, state, time;
      read_fields(i.value, EG_BAD_PROGRAM, "step", {{"after", Kind::integer, &after}, {"state", Kind::string, &state}, {"time", Kind::string, &time}});
      const Reg reg = registers_.find(state.string());
      CHECK_WHOLE(dtype_of(registers_.list[reg]) == EG_FLOAT32, "a step's state is not float32");
      if (kept_ != nullptr) kept_->steps.push_back({static_cast<uint32_t>(after.integer()), reg});
    }
  }

  // The shape of a register that an instruction other than EVAL reads.
  const Shape &seen(Reg reg) {
    const Register &r = registers_.list[reg];
    CHECK_FIT(dtype_of(r) == EG_FLOAT32, "only EVAL reads conditions that are not float32");
    return r.shape;
  }

  // The mask covers x: it has its shape, or one channel of it.
  bool covers(Shape mask, const Shape &x) const {
    if (mask == x) return true;
    if (x.rank == 0 || mask.rank != x.rank || mask.size[0] != 1) return false;
    mask.size[0] = x.size[0];
    return mask == x;
  }

  // Infer what the instruction writes, and check that its operands fit (FORMAT.md, 4.4).
  void fit() {
    Shape made;
    switch (i_.op) {
      case Op::eval: break;  // done while it was read
      case Op::lincomb:
      case Op::slincomb:
        made = seen(pools_.terms[i_.first].reg);
        for (uint32_t k = 1; k < i_.count; ++k) CHECK_FIT(seen(pools_.terms[i_.first + k].reg) == made, "its terms have different shapes");
        break;
      case Op::noise: {
        const Shape &like = seen(i_.x);
        made = i_.kind != 0 ? drawn_ : like;
        break;
      }
      case Op::clamp:
      case Op::threshold: made = seen(i_.x); break;
      case Op::muladd:
        made = seen(i_.x);
        CHECK_FIT(i_.count == 1 || (made.rank > 0 && made.size[0] == static_cast<int64_t>(i_.count)), "it has constants for another number of channels");
        break;
      case Op::concat: {
        made = seen(pools_.terms[i_.first].reg);
        int64_t channels = 0;
        for (uint32_t k = 0; k < i_.count; ++k) {
          Shape part = seen(pools_.terms[i_.first + k].reg);
          CHECK_FIT(part.rank > 0, "a part has no axis to be joined along");
          channels += part.size[0];
          part.size[0] = made.size[0];
          CHECK_FIT(part == made, "its parts differ in more than the axis that they are joined along");
        }
        CHECK_FIT(channels <= INT32_MAX, "it would have more than 2^28 elements per sample");
        made.size[0] = static_cast<int32_t>(channels);
        break;
      }
      case Op::slice:
        made = seen(i_.x);
        CHECK_FIT(made.rank > 0 && made.size[0] >= i_.stop, "it cuts behind the end");
        made.size[0] = i_.stop - i_.start;
        break;
      case Op::select:
        made = seen(i_.a);
        CHECK_FIT(covers(seen(i_.mask), made), "its mask has another shape");
        CHECK_FIT(seen(i_.b) == made, "its two choices have different shapes");
        break;
      case Op::reduce:
        if (i_.mask != kNoReg) CHECK_FIT(covers(seen(i_.mask), seen(i_.x)), "its mask has another shape");
        seen(i_.x);
        break;
      case Op::scalar: break;
    }
    if (i_.op != Op::eval) {
      CHECK_FIT(made.elements() <= kMaxElements, "it would have more than 2^28 elements per sample");
      registers_.list[i_.out].shape = made;
    }
    if (kept_ != nullptr) {
      kept_->instructions.push_back(i_);
      kept_->shapes.push_back(made);
    }
  }

  void fit_result() {
    if (states_.exists()) {
      for (Items i(states_); i.next();) {
        const Register &state = registers_.list[registers_.find(member_of(i.value, "name"))], &next = registers_.list[registers_.find(member_of(i.value, "next"))];
        CHECK_WHOLE(next.shape == state.shape, "a state continues as a register of another shape");
      }
    }
    const Register &sample = registers_.list[registers_.find(member_of(outputs_, "sample"))];
    CHECK_WHOLE(sample.shape == manifest_.sample, "it makes a sample of another shape than the manifest says");
    if (kept_ == nullptr) return;
    kept_->registers.assign(registers_.list.begin(), registers_.list.end());
    for (ProgramOutput &output : kept_->outputs) output.shape = registers_.list[output.reg].shape;
  }

  const Manifest &manifest_;
  View name_;
  Program *kept_;
  Registers registers_;
  Pools scratch_;
  Pools &pools_;
  Json inputs_, instructions_, nfe_, outputs_, states_, steps_;
  ProgramFacts facts_;
  bool fitting_ = false;

  Instruction i_{};  // the one being read
  Shape drawn_;      // of a NOISE with a shape of its own
  uint32_t index_ = 0;
  int64_t last_draw_ = 0;
  uint32_t stamp_ = 0;
  uint64_t counted_[kMaxComponents] = {};
  First first_[kMaxComponents];
  Vec<uint16_t> tensor_places_;
};

}  // namespace

ProgramFacts check_program(Memory &memory, View text, const Manifest &manifest, View name) { return Reader(memory, text, manifest, name, nullptr).run(); }

void load_program(Memory &memory, View text, const Manifest &manifest, View name, Program *program) { Reader(memory, text, manifest, name, program).run(); }

}  // namespace eg
