// Opens every record of a corpus, from a block of exactly its size, and prints a line for each: its status and its name. Records that open also get a
// session for an ONNX Runtime that does not exist, so that their networks are checked: its status is printed then (400 for sound networks).
//
//   test-statuses CORPUS [--odd]      --odd: at an odd address
#include <cstring>

#include "kit.h"

int main(int count, char **words) {
  REQUIRE(count >= 2, "usage: test-statuses CORPUS [--odd]");
  const size_t shift = count > 2 && std::strcmp(words[2], "--odd") == 0 ? 1 : 0;
  int wrong = 0;
  for (const Record &r : read_corpus(words[1])) {
    std::vector<char> block(r.bytes.size() + shift);
    if (!r.bytes.empty()) std::memcpy(block.data() + shift, r.bytes.data(), r.bytes.size());
    eg_open_options options = EG_OPEN_OPTIONS_INIT;
    options.flags = EG_OPEN_BORROWED;
    eg_model *model = nullptr;
    eg_message why;
    char none = 0;  // of an empty vector data() may be NULL
    const double began = processor_seconds();
    eg_status status = eg_open_memory(block.empty() ? &none : block.data() + shift, r.bytes.size(), &options, &model, &why);
    REQUIRE(processor_seconds() - began < 1.0 || shift != 0, "%s took a second", r.name.c_str());
    REQUIRE((status == EG_OK) == (model != nullptr) && (status == EG_OK) == (why.text[0] == '\0'), "%s: status %d with '%s'", r.name.c_str(), status, why.text);
    if (status == EG_OK) {
      eg_session_options session_options = EG_SESSION_OPTIONS_INIT;
      session_options.onnxruntime = "/nowhere/libonnxruntime.so";
      eg_session *session = nullptr;
      status = eg_session_create(model, &session_options, &session, &why);
      REQUIRE(session == nullptr && status != EG_OK, "a session without an engine");
      if (r.expected == EG_OK && (status == EG_BACKEND_MISSING || status == EG_NO_VARIANT)) status = EG_OK;  // sound, and nothing here runs it
    }
    eg_close(model);
    if (status != r.expected) {
      ++wrong;
      std::printf("%d\t%d\t%s\t%s\n", status, r.expected, r.name.c_str(), why.text);
    }
  }
  return wrong == 0 ? 0 : 1;
}
