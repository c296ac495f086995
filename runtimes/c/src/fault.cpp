#include "fault.h"

#include <cstdarg>
#include <cstdio>

namespace eg {

void fail(eg_status status, const char *format, ...) {
  Fault fault{};
  fault.status = status;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(fault.text, sizeof fault.text, format, arguments);
  va_end(arguments);
  throw fault;
}

}  // namespace eg

extern "C" const char *eg_status_str(eg_status status) {
  switch (status) {
    case EG_OK: return "ok";
    case EG_BAD_ARGUMENT: return "bad argument";
    case EG_BAD_SHAPE: return "a tensor of other sizes than expected";
    case EG_BAD_DTYPE: return "a tensor of another dtype than expected";
    case EG_OUT_OF_RANGE: return "a number out of range";
    case EG_UNKNOWN_NAME: return "unknown name, or a condition that is missing";
    case EG_NONFINITE: return "NaN or infinity";
    case EG_BAD_RECIPE: return "bad recipe";
    case EG_CANNOT_OPEN: return "the file cannot be opened";
    case EG_TRUNCATED: return "truncated: the file is shorter than it says";
    case EG_NOT_A_BUNDLE: return "not an edgegen bundle";
    case EG_BAD_VERSION: return "another version of the format";
    case EG_BAD_HEADER: return "bad header";
    case EG_LIMIT: return "above a limit of the format";
    case EG_CORRUPT: return "corrupt: a hash differs";
    case EG_BAD_MANIFEST: return "bad manifest";
    case EG_NOT_CANONICAL: return "not in canonical form";
    case EG_BAD_TABLE: return "bad member table";
    case EG_INCONSISTENT: return "inconsistent: parts that do not fit each other";
    case EG_BAD_PROGRAM: return "bad program";
    case EG_CANNOT_WRITE: return "cannot write";
    case EG_NO_MEMORY: return "out of memory";
    case EG_NO_SPACE: return "no space left";
    case EG_BACKEND_MISSING: return "the engine is not installed";
    case EG_BACKEND_FAILED: return "the engine failed";
    case EG_NO_VARIANT: return "no variant runs here";
    case EG_EXPORT_FAILED: return "export failed";
    case EG_BACKEND_TOO_OLD: return "the engine is too old";
    case EG_PROVIDER_MISSING: return "an execution provider is missing";
    case EG_BAD_STATE: return "not possible now";
    case EG_BUSY: return "this session is in a call already";
    case EG_GATE_FAILED: return "quality gate failed";
    case EG_CANCELLED: return "cancelled";
    default: return "unknown status";
  }
}
