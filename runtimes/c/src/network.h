// What an ONNX network must be before any engine sees it (FORMAT.md, section 3.1): read here, field by field, from its protobuf encoding.
#pragma once

#include "manifest.h"

namespace eg {

// A constant that lies in the weights' member.
struct OutsideConstant {
  View name;
  int32_t onnx_type;
  uint32_t first_dim, dims;  // in Network::dims
  uint64_t offset, size;
};

struct Network {
  explicit Network(Memory &memory) : outside(&memory), dims(&memory) {}
  Vec<OutsideConstant> outside;
  Vec<int64_t> dims;
};

// Throws INCONSISTENT unless `model` is a self-contained network with the component's signature. weights_name: the member that holds its large
// constants, empty if there is none; weights_size: its bytes. network: receives the constants that lie there.
void check_network(Memory &memory, View model, const Manifest &manifest, const Component &component, View weights_name, uint64_t weights_size, Network *network);

}  // namespace eg
