// The manifest: what a bundle holds and how its parts belong together (FORMAT.md, section 3). Views into the manifest's text.
#pragma once

#include "json.h"
#include "memory.h"

namespace eg {

constexpr size_t kMaxSizes = 6;

// Sizes of a tensor. Without the batch, where it is a register's.
struct Shape {
  int32_t size[kMaxSizes] = {};
  uint32_t rank = 0;

  uint64_t elements() const;
  bool operator==(const Shape &other) const;
  bool operator!=(const Shape &other) const { return !(*this == other); }
};

struct Number {  // that may be absent
  double value = 0.0;
  bool exists = false;
};

constexpr int32_t kBatch = -1;  // in a TensorSpec's shape

struct TensorSpec {
  View name;
  eg_dtype dtype;
  Shape shape;
};

struct Condition {
  View name, summary;
  eg_dtype dtype;
  Shape shape;
  Number minimum, maximum, fallback, null;
};

struct Component {
  View name;
  uint32_t first;  // its inputs, then its outputs, in Manifest::tensors
  uint32_t inputs, outputs;
};

struct ProgramEntry {
  View name, member;
  uint32_t steps;
};

struct Golden {
  View program, member;
  double tolerance;
};

struct FusedEntry {
  View program, member;
  uint32_t batch;
};

struct Variant {
  View name, engine;
  Json providers, components, weights, golden, fused;
  uint32_t threads;
};

struct Manifest {
  explicit Manifest(Memory &memory) : conditions(&memory), tensors(&memory), components(&memory), programs(&memory), variants(&memory) {}

  View name, summary, licence, producer;  // as written
  bool trusted_pickle = false;
  Shape sample;
  bool image = false;
  double low = 0.0, high = 0.0;
  Vec<Condition> conditions;
  Vec<TensorSpec> tensors;
  Vec<Component> components;
  Vec<ProgramEntry> programs;
  Vec<Variant> variants;
  Json documents;

  // The index of what has a name, or -1.
  int find_condition(View name) const;
  int find_component(View name) const;
  int find_program(View name) const;
  int find_variant(View name) const;
  int find_tensor(const Component &component, View name, bool output) const;  // behind component.first
};

// The manifest in a checked text, whose member table was read. Throws BAD_MANIFEST, BAD_VERSION, LIMIT, INCONSISTENT.
void read_manifest(Json text, Manifest *manifest);

// The member under a key of an object of strings; an empty view if there is none.
View member_of(Json object, View key);

// Golden vector `index` of a variant that was checked.
Golden golden_of(const Variant &variant, size_t index);

// Fused program `index` of a variant that was checked.
FusedEntry fused_of(const Variant &variant, size_t index);

size_t bytes_of(eg_dtype dtype);
const char *dtype_name(eg_dtype dtype);
bool is_float(eg_dtype dtype);

// Whether a number of a program, once rounded to float32, can be given to an input of a dtype: as an integer if it is whole, in range and was not
// changed by rounding, as a bool if it is 0 or 1, as a float if it stays finite.
bool fits(double value, eg_dtype dtype);

}  // namespace eg
