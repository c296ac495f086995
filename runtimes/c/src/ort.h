// ONNX Runtime behind its C API, loaded when it is needed.
#pragma once

#include "bundle.h"
#include "engine.h"

namespace eg {

// Opens a variant's networks. path: of libonnxruntime, or NULL to look for it. Throws BACKEND_MISSING, BACKEND_TOO_OLD, PROVIDER_MISSING,
// BACKEND_FAILED, INCONSISTENT (a network that is not what the manifest says).
Engine *open_onnxruntime(Memory &memory, const Bundle &bundle, const Variant &variant, uint32_t threads, const char *path);

}  // namespace eg
