// A fused program (FORMAT.md, section 3.2): the program as one network, and the short program that draws its noise and runs it.
#pragma once

#include "bundle.h"

namespace eg {

struct Fused {
  explicit Fused(Memory &memory) : manifest(memory), program(memory), evaluations(&memory), texts(memory) {}

  Manifest manifest;  // conditions and sample as the bundle's; one component, the network
  Program program;
  Vec<uint32_t> evaluations;  // of the bundle's components, in all steps
  Texts texts;                // names of inputs and outputs
};

// Throws INCONSISTENT for a program that cannot be fused.
void make_fused(Memory &memory, const Bundle &bundle, const FusedEntry &entry, Fused *fused);

// The index of a variant's fused program for a batch, or -1.
int find_fused(const Variant &variant, View program, uint32_t batch);

}  // namespace eg
