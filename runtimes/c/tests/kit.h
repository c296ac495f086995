// What the test programs share: files, corpora, taking bundles apart and putting them together, random numbers, an allocator that counts and fails.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "edgegen.h"
#include "surrogate.h"

// Says what failed, and ends the program.
#define REQUIRE(condition, ...)                                               \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);    \
      std::fprintf(stderr, __VA_ARGS__);                                      \
      std::fprintf(stderr, "\n");                                             \
      std::exit(1);                                                           \
    }                                                                         \
  } while (0)

size_t number(const std::string &text);
std::string read_file(const std::string &path);

// A file of records that tests/native/corpus.py writes: a name, the status that is expected, bytes.
struct Record {
  std::string name;
  int32_t expected;
  std::string bytes;
};
std::vector<Record> read_corpus(const std::string &path);

// A sound bundle's parts.
struct Parts {
  std::string manifest;  // text
  std::vector<std::pair<std::string, std::string>> members;
};
Parts take_apart(const std::string &bundle);

// A file of a manifest's text and bodies: the header fits them.
std::string with_header(const std::string &manifest, const std::string &body, size_t members);

// A file of parts: table, hashes and header are made right, whatever else the manifest says (if it has a member table at all).
std::string put_together(const Parts &parts);

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
  }
  size_t below(size_t count) { return count == 0 ? 0 : static_cast<size_t>(next() % count); }
  bool chance(size_t of) { return below(of) == 0; }

 private:
  uint64_t state_;
};

// Counts what is allocated, and fails the n-th time, or from then on.
struct Counter {
  uint64_t calls = 0, live = 0, live_bytes = 0, peak_bytes = 0, largest = 0;
  uint64_t fail_at = 0;  // 0: never
  bool fail_forever = false;
  eg_allocator allocator();
};

double seconds_now();
double processor_seconds();  // of this process: what a busy machine does not change

// Sets every condition of a session that has no default to its minimum, or 0.
void set_missing_conditions(const eg_model *model, eg_session *session);

// A session whose networks are the exact surrogate.
eg_session *surrogate_session(eg_model *model, uint32_t batch);
