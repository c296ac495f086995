// What an ONNX network must be before any engine sees it (FORMAT.md, section 3.1): read here, field by field, from its protobuf encoding.
#pragma once

#include "manifest.h"

namespace eg {

// A member that may hold large constants.
struct Weights {
  View name, bytes;
};

// A constant that lies in one of the weights' members.
struct OutsideConstant {
  View name;
  uint32_t member;  // its index
  int32_t onnx_type;
  uint32_t first_dim, dims;  // in Network::dims
  uint64_t offset, size;
};

struct Network {
  explicit Network(Memory &memory) : outside(&memory), dims(&memory) {}
  Vec<OutsideConstant> outside;
  Vec<int64_t> dims;
};

// Throws INCONSISTENT unless `model` is a self-contained network with the component's signature. batch: which fixed size its first dimensions may have; 0
// for none. network: receives the constants that lie in `weights`.
void check_network(Memory &memory, View model, const Manifest &manifest, const Component &component, uint32_t batch, const Vec<Weights> &weights, Network *network);

}  // namespace eg
