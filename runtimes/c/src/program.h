// Programs (FORMAT.md, section 4): checked against their rules and against the manifest, and decoded for the planner.
#pragma once

#include "manifest.h"

namespace eg {

struct ProgramFacts;

using Reg = uint16_t;
constexpr Reg kNoReg = 0xFFFF;

enum class Op : uint8_t { eval, lincomb, noise, clamp, threshold, muladd, concat, slice, select, reduce, scalar, slincomb };
enum class Reduction : uint8_t { mean, std, norm, quantile };
enum class Arithmetic : uint8_t { add, sub, mul, div, min, max, sqrt };

struct Register {
  View name;
  Shape shape;             // without the batch, as it was written last
  int16_t condition = -1;  // the index of the condition that it holds
  bool scalar = false;
  bool given = false;  // an input or a state, which nothing writes
  uint32_t ready = 0;  // instructions after which it is first there
  uint32_t stamp = 0;  // of the EVAL that wrote it last
};

struct Term {  // of LINCOMB and SLINCOMB; CONCAT's parts use reg only
  float c;
  Reg reg, scalar;
};

struct Operand {  // of EVAL
  float value;    // the immediate, or the register's scale
  Reg reg;        // kNoReg: an immediate
};

struct Instruction {
  Op op;
  uint8_t kind = 0;  // a Reduction or Arithmetic; LINCOMB: 1 if it has a bias; NOISE: 1 if it has a shape of its own
  uint16_t branches = 0;
  Reg out = kNoReg;
  Reg x = kNoReg;     // NOISE: like
  Reg mask = kNoReg;  // SELECT, REDUCE
  Reg a = kNoReg, b = kNoReg;
  float low = 0.0f, high = 0.0f;  // CLAMP; THRESHOLD's floor and ceiling; SCALAR's immediates a and b; LINCOMB's bias
  double quantile = 0.0;
  uint32_t draw = 0;
  int32_t start = 0, stop = 0;
  uint16_t component = 0;
  uint32_t first = 0, count = 0;    // terms; constants, count scales and then as many shifts; operands, count inputs with `branches` each
  uint32_t targets = 0, outputs = 0;  // EVAL: `outputs` used outputs, each an index below the component's outputs in `output_index` and `branches` registers
};

// The lists that instructions refer to.
struct Pools {
  explicit Pools(Memory &memory) : terms(&memory), constants(&memory), operands(&memory), output_index(&memory), target_registers(&memory) {}
  Vec<Term> terms;
  Vec<float> constants;
  Vec<Operand> operands;
  Vec<uint16_t> output_index;
  Vec<Reg> target_registers;
};

struct ProgramInput {
  Reg reg;
  bool noise;
  float scale;
};
struct ProgramState {
  Reg reg, next;
  float initial;
};
struct StepMark {
  uint32_t after;
  Reg state;
};
struct ProgramOutput {
  View name;
  Reg reg;
  Shape shape;       // without the batch
  const char *text;  // the name, for C
};

struct Program {
  explicit Program(Memory &memory)
      : registers(&memory), instructions(&memory), shapes(&memory), pools(memory), inputs(&memory), states(&memory), outputs(&memory), steps(&memory), texts(memory) {}

  Vec<Register> registers;
  Vec<Instruction> instructions;
  Vec<Shape> shapes;  // of what each instruction writes
  Pools pools;
  Vec<ProgramInput> inputs;
  Vec<ProgramState> states;
  Vec<ProgramOutput> outputs;
  Vec<StepMark> steps;
  Texts texts;
};

// Check a program's text: JSON (as check_json), keys and rules (BAD_PROGRAM), and that it fits the manifest (INCONSISTENT).
ProgramFacts check_program(Memory &memory, View text, const Manifest &manifest, View name);

// The same, and keep what it says.
void load_program(Memory &memory, View text, const Manifest &manifest, View name, Program *program);

}  // namespace eg
