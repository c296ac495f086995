// Finding libonnxruntime on this machine and loading it.
#pragma once

#include <climits>

#include <onnxruntime_c_api.h>

#include "memory.h"

namespace eg {

constexpr uint32_t kOrtApi = 20;  // of ONNX Runtime 1.20, the oldest that is supported

struct OrtLibrary {
  const OrtApi *api;
  const char *version;
  void *handle;  // for what the API has no function for
  char path[PATH_MAX];
};

// path: of the library, or NULL for the usual places: where the system's loader looks, beside libedgegen, and inside the Python package
// onnxruntime of the Python on PATH, of $VIRTUAL_ENV, or of the user. Throws BACKEND_MISSING, BACKEND_TOO_OLD.
OrtLibrary load_onnxruntime(const char *path);

}  // namespace eg
