#include "fused.h"

#include <cstdio>

#include "checked.h"

namespace eg {

namespace {

constexpr size_t kMaxTensors = 2048;

// Writes the network's tensors and the program's registers side by side: the k-th tensor is register k.
class Maker {
 public:
  Maker(const Program &original, View name, Fused *made) : original_(original), name_(name), made_(*made) {}

  void run() {
    EG_CHECK(original_.states.empty(), EG_INCONSISTENT, "the fused program '%.*s' has states", EG_SHOW(name_));
    Program &program = made_.program;
    Reg noise = 0;
    for (const ProgramInput &input : original_.inputs) {
      const Register &r = original_.registers[input.reg];
      const eg_dtype dtype = r.condition < 0 ? EG_FLOAT32 : made_.manifest.conditions[static_cast<size_t>(r.condition)].dtype;
      const Reg reg = add(made_.texts.keep(r.name), dtype, r.shape);
      program.registers[reg].condition = r.condition;
      program.registers[reg].given = true;
      program.inputs.push_back({reg, input.noise, input.scale});
      if (input.noise) noise = reg;
    }
    for (size_t i = 0; i < original_.instructions.size(); ++i) {
      const Instruction &in = original_.instructions[i];
      if (in.op == Op::eval) made_.evaluations[in.component] += in.branches;
      if (in.op == Op::noise) draw(in.draw, original_.shapes[i], noise);
    }
    const size_t inputs = program.registers.size();
    for (const ProgramOutput &output : original_.outputs) {
      char name[80];
      std::snprintf(name, sizeof name, "out.%.*s", EG_SHOW(output.name));
      const Reg reg = add(made_.texts.keep(name), EG_FLOAT32, output.shape);
      program.outputs.push_back({output.name, reg, output.shape, made_.texts.keep(output.name)});
    }
    evaluate(inputs);
  }

 private:
  Reg add(const char *name, eg_dtype dtype, const Shape &shape) {
    Manifest &m = made_.manifest;
    EG_CHECK(m.tensors.size() < kMaxTensors, EG_INCONSISTENT, "the fused program '%.*s' has more than %zu inputs, draws and outputs", EG_SHOW(name_), kMaxTensors);
    EG_CHECK(View(name).size() <= 64, EG_INCONSISTENT, "the fused program '%.*s' has a name that is too long", EG_SHOW(name_));
    EG_CHECK(shape.rank < kMaxSizes, EG_INCONSISTENT, "the fused program '%.*s' has a tensor of rank 6, which the batch makes 7", EG_SHOW(name_));
    Shape with_batch;
    with_batch.size[with_batch.rank++] = kBatch;
    for (uint32_t i = 0; i < shape.rank; ++i) with_batch.size[with_batch.rank++] = shape.size[i];
    m.tensors.push_back({name, dtype, with_batch});
    Register r;
    r.name = name;
    r.shape = shape;
    made_.program.registers.push_back(r);
    return static_cast<Reg>(made_.program.registers.size() - 1);
  }

  void draw(uint32_t number, const Shape &shape, Reg like) {
    char name[24];
    std::snprintf(name, sizeof name, "draw.%u", static_cast<unsigned>(number));
    Instruction in{};
    in.op = Op::noise;
    in.kind = 1;  // a shape of its own
    in.x = like;
    in.out = add(made_.texts.keep(name), EG_FLOAT32, shape);
    in.draw = number;
    made_.program.instructions.push_back(in);
    made_.program.shapes.push_back(shape);
  }

  void evaluate(size_t inputs) {
    Program &program = made_.program;
    Instruction in{};
    in.op = Op::eval;
    in.branches = 1;
    in.count = static_cast<uint32_t>(inputs);
    in.outputs = static_cast<uint32_t>(program.registers.size() - inputs);
    for (size_t i = 0; i < inputs; ++i) program.pools.operands.push_back({1.0f, static_cast<Reg>(i)});
    for (uint32_t i = 0; i < in.outputs; ++i) {
      program.pools.output_index.push_back(static_cast<uint16_t>(i));
      program.pools.target_registers.push_back(static_cast<Reg>(inputs + i));
    }
    program.instructions.push_back(in);
    program.shapes.emplace_back();
    made_.manifest.components.push_back({name_, 0, in.count, in.outputs});
  }

  const Program &original_;
  View name_;
  Fused &made_;
};

}  // namespace

void make_fused(Memory &memory, const Bundle &bundle, const FusedEntry &entry, Fused *fused) {
  const Manifest &m = bundle.manifest();
  const ProgramEntry &program = m.programs[static_cast<size_t>(m.find_program(entry.program))];
  Program original(memory);
  load_program(memory, bundle.member(program.member), m, program.name, &original);
  fused->manifest.sample = m.sample;
  fused->manifest.conditions.assign(m.conditions.begin(), m.conditions.end());
  fused->evaluations.assign(m.components.size(), 0);
  Maker(original, program.name, fused).run();
}

int find_fused(const Variant &variant, View program, uint32_t batch) {
  const size_t count = variant.fused.count();
  for (size_t i = 0; i < count; ++i) {
    const FusedEntry entry = fused_of(variant, i);
    if (entry.program == program && entry.batch == batch) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace eg
