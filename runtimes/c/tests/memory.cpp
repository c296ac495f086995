// T5: how much memory opening costs, whatever the bytes are. T13: every allocation fails once, and every allocation fails from some point on. And: the
// second and later runs allocate nothing.
//
//   test-memory peak CORPUS                  every record: at most its size and 1 MiB
//   test-memory failing BUNDLE [LIBRARY]     open, session, set, run, stream, self-test, destroy; with ONNX Runtime if its path is given
//   test-memory steady BUNDLE RUNS [LIBRARY] no allocation after the first run, resident memory flat
//   test-memory openings BUNDLE N [LIBRARY]  open, session, run, destroy, N times: memory, descriptors and threads as they were after half
#include <cstring>
#include <dirent.h>

#include "kit.h"

namespace {

constexpr uint64_t kMiB = 1 << 20;

void peak(const char *corpus) {
  uint64_t worst = 0;
  std::string worst_name;
  const std::vector<Record> records = read_corpus(corpus);
  for (const Record &r : records) {
    Counter counter;
    const eg_allocator allocator = counter.allocator();
    eg_open_options options = EG_OPEN_OPTIONS_INIT;
    options.allocator = &allocator;
    eg_model *model = nullptr;
    const double began = processor_seconds();
    eg_open_memory(r.bytes.empty() ? "" : r.bytes.data(), r.bytes.size(), &options, &model, nullptr);
    const double took = processor_seconds() - began;
    eg_close(model);
    const uint64_t size = r.bytes.size(), beyond = counter.peak_bytes > size ? counter.peak_bytes - size : 0;
    REQUIRE(counter.live == 0, "%s: %llu blocks left", r.name.c_str(), static_cast<unsigned long long>(counter.live));
    REQUIRE(beyond <= kMiB, "%s: %llu bytes for a file of %llu", r.name.c_str(), static_cast<unsigned long long>(counter.peak_bytes), static_cast<unsigned long long>(size));
    REQUIRE(counter.largest <= (size > 65536 ? size : 65536), "%s: one request of %llu bytes", r.name.c_str(), static_cast<unsigned long long>(counter.largest));
    REQUIRE(took < 1.0, "%s took %.2f s", r.name.c_str(), took);
    if (r.name.find("claims") != std::string::npos) REQUIRE(counter.peak_bytes < 65536 && took < 0.01, "%s: %llu bytes, %.4f s", r.name.c_str(), static_cast<unsigned long long>(counter.peak_bytes), took);
    if (beyond >= worst) {
      worst = beyond;
      worst_name = r.name;
    }
  }
  std::printf("%zu records, at most %llu bytes beyond the file (%s)\n", records.size(), static_cast<unsigned long long>(worst), worst_name.c_str());
}

struct Walk {
  uint64_t refused = 0;  // calls that said EG_NO_MEMORY
  void operator()(eg_status status, const char *what) {
    REQUIRE(status == EG_OK || status == EG_NO_MEMORY, "%s: status %d", what, status);
    refused += status == EG_NO_MEMORY;
  }
};

// Everything that a program does with a bundle; calls after one that failed are made too.
void walk(const char *path, const char *library, const eg_allocator &allocator, Walk &check) {
  eg_open_options open_options = EG_OPEN_OPTIONS_INIT;
  open_options.allocator = &allocator;
  eg_model *model = nullptr;
  eg_message why;
  check(eg_open(path, &open_options, &model, &why), "eg_open");
  if (model == nullptr) return;
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  uint64_t bytes = 0;
  check(eg_session_memory(model, nullptr, nullptr, &bytes, nullptr), "eg_session_memory");
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.batch = 2;
  options.threads = 1;
  if (library == nullptr) options.component = surrogate;
  options.onnxruntime = library;
  eg_session *session = nullptr;
  check(eg_session_create(model, &options, &session, &why), "eg_session_create");
  for (uint32_t p = 0; session != nullptr && p < info.programs; ++p) {
    eg_program_info program = EG_PROGRAM_INFO_INIT;
    eg_program_describe(model, p, &program);
    for (uint32_t i = 0; i < info.conditions; ++i) {
      eg_condition_info c = EG_CONDITION_INFO_INIT;
      eg_condition_describe(model, i, &c);
      check(eg_set_number(session, c.name, (c.has & EG_HAS_MINIMUM) != 0 ? c.minimum : 0.0), "eg_set_number");
    }
    std::vector<float> sample(static_cast<size_t>(info.elements) * 2, 7.0f);
    eg_run_options run = EG_RUN_OPTIONS_INIT;
    run.program = program.name;
    run.batch = 2;
    const eg_status status = program.states > 0 ? eg_stream_step(session, &run, sample.data(), sample.size()) : eg_generate(session, &run, sample.data(), sample.size());
    check(status, "eg_generate");
    for (const float x : sample) REQUIRE(status == EG_OK || x == 7.0f, "a run that failed wrote into the caller's buffer");
  }
  eg_golden golden = EG_GOLDEN_INIT;
  eg_variant_info variant = EG_VARIANT_INFO_INIT;
  eg_variant_describe(model, 0, &variant);
  if (session != nullptr && variant.golden > 0) check(eg_self_test(session, 0, &golden), "eg_self_test");
  eg_session_destroy(session);
  eg_close(model);
}

void failing(const char *path, const char *library) {
  for (const bool forever : {false, true}) {
    uint64_t n = 1;
    for (;; ++n) {
      Counter counter;
      counter.fail_at = n;
      counter.fail_forever = forever;
      Walk check;
      walk(path, library, counter.allocator(), check);
      REQUIRE(counter.live == 0, "allocation %llu: %llu blocks left", static_cast<unsigned long long>(n), static_cast<unsigned long long>(counter.live));
      if (counter.calls < n) {
        REQUIRE(check.refused == 0, "nothing failed, yet a call said that memory ran out");
        break;
      }
      REQUIRE(check.refused > 0, "allocation %llu failed and no call said so", static_cast<unsigned long long>(n));
    }
    std::printf("%llu allocations, each failing %s\n", static_cast<unsigned long long>(n - 1), forever ? "and all behind it" : "once");
  }
}

uint64_t of_process(const char *key) {
  const std::string status = read_file("/proc/self/status");
  return std::stoull(status.substr(status.find(key) + std::strlen(key)));
}

uint64_t resident_kib() { return of_process("VmRSS:"); }

void steady(const char *path, uint64_t runs, const char *library) {
  Counter counter;
  const eg_allocator allocator = counter.allocator();
  eg_open_options open_options = EG_OPEN_OPTIONS_INIT;
  open_options.allocator = &allocator;
  eg_model *model = nullptr;
  eg_message why;
  REQUIRE(eg_open(path, &open_options, &model, &why) == EG_OK, "%s", why.text);
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.threads = 1;
  options.onnxruntime = library;
  if (library == nullptr) options.component = surrogate;
  eg_session *session = nullptr;
  REQUIRE(eg_session_create(model, &options, &session, &why) == EG_OK, "%s", why.text);
  set_missing_conditions(model, session);
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  uint64_t planned = 0;
  REQUIRE(eg_session_memory(model, &options, nullptr, &planned, nullptr) == EG_OK, "eg_session_memory");
  std::vector<float> sample(static_cast<size_t>(info.elements)), first(sample.size());
  eg_run_options run = EG_RUN_OPTIONS_INIT;
  run.seed = 5;
  REQUIRE(eg_generate(session, &run, first.data(), first.size()) == EG_OK, "%s", eg_last_error(session));
  const uint64_t calls = counter.calls, warm = runs < 2000 ? runs / 2 : 1000;
  uint64_t begin = 0, most = 0;
  for (uint64_t i = 0; i < runs; ++i) {
    run.seed = i % 16;
    REQUIRE(eg_generate(session, &run, sample.data(), sample.size()) == EG_OK, "%s", eg_last_error(session));
    if (i % 16 == 5) REQUIRE(std::memcmp(sample.data(), first.data(), sample.size() * sizeof(float)) == 0, "run %llu differs", static_cast<unsigned long long>(i));
    if (i == warm) begin = resident_kib();
    if (i > warm && i % 64 == 0) most = resident_kib() > most ? resident_kib() : most;
  }
  REQUIRE(counter.calls == calls, "%llu allocations in later runs", static_cast<unsigned long long>(counter.calls - calls));
  REQUIRE(most <= begin + 1024, "resident memory grew from %llu to %llu KiB", static_cast<unsigned long long>(begin), static_cast<unsigned long long>(most));
  std::printf("%llu runs, 0 allocations, resident memory %llu then at most %llu KiB, tensors %llu bytes\n", static_cast<unsigned long long>(runs), static_cast<unsigned long long>(begin),
              static_cast<unsigned long long>(most), static_cast<unsigned long long>(planned));
  eg_session_destroy(session);
  eg_close(model);
  REQUIRE(counter.live == 0, "%llu blocks left", static_cast<unsigned long long>(counter.live));
}

uint64_t descriptors() {
  uint64_t count = 0;
  DIR *list = opendir("/proc/self/fd");
  while (readdir(list) != nullptr) ++count;
  closedir(list);
  return count;
}

void openings(const char *path, uint64_t times, const char *library) {
  uint64_t begin = 0, files = 0, threads = 0, most = 0;
  for (uint64_t i = 0; i < times; ++i) {
    eg_model *model = nullptr;
    eg_message why;
    REQUIRE(eg_open(path, nullptr, &model, &why) == EG_OK, "%s", why.text);
    eg_session_options options = EG_SESSION_OPTIONS_INIT;
    options.threads = 1;
    options.onnxruntime = library;
    if (library == nullptr) options.component = surrogate;
    eg_session *session = nullptr;
    REQUIRE(eg_session_create(model, &options, &session, &why) == EG_OK, "%s", why.text);
    set_missing_conditions(model, session);
    REQUIRE(eg_generate(session, nullptr, nullptr, 0) == EG_OK, "%s", eg_last_error(session));
    eg_session_destroy(session);
    eg_close(model);
    if (i == times / 2) {
      begin = resident_kib();
      files = descriptors();
      threads = of_process("Threads:");
    }
    if (i > times / 2 && i % 64 == 0) most = resident_kib() > most ? resident_kib() : most;
  }
  REQUIRE(descriptors() == files, "%llu descriptors, then %llu", static_cast<unsigned long long>(files), static_cast<unsigned long long>(descriptors()));
  REQUIRE(of_process("Threads:") == threads, "%llu threads, then %llu", static_cast<unsigned long long>(threads), static_cast<unsigned long long>(of_process("Threads:")));
  std::printf("%llu openings, resident memory %llu then at most %llu KiB, %llu descriptors\n", static_cast<unsigned long long>(times), static_cast<unsigned long long>(begin),
              static_cast<unsigned long long>(most), static_cast<unsigned long long>(files));
  // a bare loop of CreateSession and ReleaseSession in ONNX Runtime 1.32 leaves 40 to 60 bytes each time
  const uint64_t of_engine = library == nullptr ? 0 : times / 2 * 128 / 1024;
  REQUIRE(most <= begin + 1024 + of_engine, "resident memory grew");
}

}  // namespace

int main(int count, char **words) {
  const std::string what = count > 1 ? words[1] : "";
  if (what == "peak" && count == 3) {
    peak(words[2]);
  } else if (what == "failing" && (count == 3 || count == 4)) {
    failing(words[2], count == 4 ? words[3] : nullptr);
  } else if (what == "steady" && (count == 4 || count == 5)) {
    steady(words[2], std::stoull(words[3]), count == 5 ? words[4] : nullptr);
  } else if (what == "openings" && (count == 4 || count == 5)) {
    openings(words[2], std::stoull(words[3]), count == 5 ? words[4] : nullptr);
  } else {
    REQUIRE(false, "see the top of memory.cpp");
  }
}
