// T25: switches off every check of the library, one at a time, and opens the corpus: a check whose deletion changes no status (and crashes nothing: built
// with the address sanitizer) is not needed, or not tested. Prints those.
//
//   test-deleted_checks CORPUS
#include <cstring>
#include <sys/wait.h>
#include <unistd.h>

#include "fault.h"
#include "kit.h"

extern eg::Check __start_eg_checks[], __stop_eg_checks[];

namespace {

eg_status status_of(const Record &r) {
  std::vector<char> block(r.bytes.begin(), r.bytes.end());  // no byte more, so that reads behind the end are seen
  const char none = 0;
  eg_open_options options = EG_OPEN_OPTIONS_INIT;
  options.flags = EG_OPEN_BORROWED;
  eg_model *model = nullptr;
  eg_status status = eg_open_memory(block.empty() ? &none : block.data(), r.bytes.size(), &options, &model, nullptr);
  if (status == EG_OK) {
    eg_session_options session_options = EG_SESSION_OPTIONS_INIT;
    session_options.onnxruntime = "/nowhere/libonnxruntime.so";
    eg_session *session = nullptr;
    status = eg_session_create(model, &session_options, &session, nullptr);
    if (r.expected == EG_OK && (status == EG_BACKEND_MISSING || status == EG_NO_VARIANT)) status = EG_OK;  // sound, and nothing here runs it
  }
  eg_close(model);
  return status;
}

// Whether the corpus notices, in a process of its own: a crash or a hang is a notice too.
bool noticed(const std::vector<Record> &corpus) {
  const pid_t child = fork();
  REQUIRE(child >= 0, "fork");
  if (child == 0) {
    alarm(10);
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
    for (const Record &r : corpus) {
      if (status_of(r) != r.expected) _exit(1);
    }
    _exit(0);
  }
  int result = 0;
  REQUIRE(waitpid(child, &result, 0) == child, "waitpid");
  return !(WIFEXITED(result) && WEXITSTATUS(result) == 0);
}

}  // namespace

int main(int count, char **words) {
  REQUIRE(count == 2, "usage: test-deleted_checks CORPUS");
  const std::vector<Record> corpus = read_corpus(words[1]);
  REQUIRE(!noticed(corpus), "the corpus is wrong with every check in place");
  int total = 0, missed = 0;
  for (eg::Check *check = __start_eg_checks; check != __stop_eg_checks; ++check, ++total) {
    check->deleted = true;
    if (!noticed(corpus)) {
      ++missed;
      const char *file = std::strrchr(check->file, '/');
      std::printf("%s:%d: %s\n", file == nullptr ? check->file : file + 1, check->line, check->text);
    }
    check->deleted = false;
  }
  std::printf("%d of %d deletions noticed\n", total - missed, total);
  return missed == 0 ? 0 : 1;
}
