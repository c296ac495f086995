// ONNX Runtime behind its C API, loaded when it is needed.
#pragma once

#include "engine.h"
#include "network.h"

namespace eg {

// The networks of a manifest's components, in their order, and where they and their weights lie.
struct Networks {
  Networks(Memory &memory, const Manifest &manifest) : manifest(manifest), models(&memory), weights(&memory) {}
  const Manifest &manifest;
  const char *kind = "component";  // for messages
  uint32_t batch = 0;              // as of check_network
  Vec<View> models;
  Vec<Vec<Weights>> weights;
};

// Opens networks. providers: the variant's. path: of libonnxruntime, or NULL to look for it. Throws BACKEND_MISSING, BACKEND_TOO_OLD, PROVIDER_MISSING,
// BACKEND_FAILED, INCONSISTENT (a network that is not what the manifest says). The manifest outlives the engine.
Engine *open_onnxruntime(Memory &memory, const Networks &networks, Json providers, uint32_t threads, const char *path);

}  // namespace eg
