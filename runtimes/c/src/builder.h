// Lays out a program's tensors and writes its plan's actions.
#pragma once

#include "plan.h"

namespace eg {

// Run twice: first with no memory, to find out how much is needed, then with it; both times it makes the same choices.
class Plan::Builder {
 public:
  // base: the plan's memory, or NULL.
  Builder(Plan &plan, const ConditionValues &conditions, unsigned char *base);

  // Returns how many bytes the plan needs.
  size_t run();

 private:
  // A result of an instruction, or one output of an EVAL for all branches together.
  struct Result {
    uint32_t last = 0;  // the instruction after which nobody needs it
    size_t offset = 0, bytes = 0;
  };
  // What a register holds now: a place in a result, or in memory that stays (conditions, states).
  struct Where {
    uint32_t result;
    size_t offset;
    unsigned char *fixed;
  };
  struct Hole {
    size_t offset, bytes;
  };
  // The place of an input that is joined from conditions and immediates alone: filled once per run, for all steps that join the same.
  struct Joined {
    const Operand *operands = nullptr;
    size_t branches = 0;
    unsigned char *data = nullptr;
  };

  void find_lifetimes();
  void begin();
  void instruction(const Instruction &in);
  void evaluate(const Instruction &in);
  void mark();
  void ends();

  Action action_of(const Instruction &in);
  void join(const Instruction &in, const Action &whole);
  void channels_of(Reg reg, Action &a) const;
  void mask_of(Reg mask, Reg x, Action &a) const;

  Tensor tensor(const TensorSpec &spec) const;
  Tensor input(const TensorSpec &spec, size_t index, const Operand *operands);
  Tensor output(const TensorSpec &spec, size_t index, const Reg *targets);
  void parts(Vec<Action> &list, bool kept, const TensorSpec &spec, const Operand *operands, unsigned char *out, size_t part);

  // Memory for as long as the plan lives; until a result is no longer needed; until the instruction is done.
  unsigned char *keep(size_t bytes);
  unsigned char *define(Reg reg, size_t bytes);
  unsigned char *borrow(size_t bytes);
  Hole take(size_t bytes);
  void place(Result &result, size_t bytes);
  void release();
  void grow(size_t bytes);

  unsigned char *at(size_t offset) const { return base_ == nullptr ? nullptr : base_ + offset; }
  unsigned char *data(Reg reg) const;
  eg_dtype dtype_of(Reg reg) const;
  size_t rows() const { return plan_.batch_; }
  size_t per_row(Reg reg) const { return static_cast<size_t>(shapes_[reg].elements()); }

  Plan &plan_;
  const Program &program_;
  const Manifest &manifest_;
  const Pools &pools_;
  const ConditionValues &conditions_;
  unsigned char *base_;

  Vec<Result> results_;
  Vec<uint32_t> live_;  // results that have a place
  Vec<Where> where_;    // by register
  Vec<Shape> shapes_;   // by register, as it is now
  Vec<Hole> free_, borrowed_;
  Vec<Joined> joined_;  // by the manifest's tensors
  Vec<Tensor> inputs_, outputs_;
  size_t end_ = 0;
  uint32_t index_ = 0;     // of the instruction
  uint32_t next_ = 0;      // of the result that is placed next
  uint32_t calls_ = 0, marks_ = 0, output_indices_ = 0;
  size_t branches_ = 1;    // of the EVAL
};

}  // namespace eg
