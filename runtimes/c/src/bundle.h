// A bundle whose every byte was checked (FORMAT.md, section 6). Immutable.
#pragma once

#include "manifest.h"
#include "program.h"

namespace eg {

// Bytes that a bundle lies in: owned, mapped, or the caller's.
class Bytes {
 public:
  // Reads or maps the regular file at a path whose first 64 bytes may begin a bundle. Throws CANNOT_OPEN, or what the header is worth.
  static Bytes of_file(Memory &memory, const char *path, bool mapped);
  static Bytes of_memory(Memory &memory, const void *data, size_t size, bool borrowed);

  Bytes(Bytes &&other) noexcept;
  Bytes &operator=(Bytes &&) = delete;
  Bytes(const Bytes &) = delete;
  ~Bytes();

  View view() const { return {reinterpret_cast<const char *>(data_), size_}; }

 private:
  explicit Bytes(Memory &memory) : owned_(memory) {}

  const unsigned char *data_ = nullptr;
  size_t size_ = 0;
  Block owned_;
  bool mapped_ = false;
};

struct Member {
  View name;
  uint64_t offset, size;
};

// What a program comes to, found when it was checked.
struct ProgramFacts {
  uint32_t instructions = 0, evaluations = 0, states = 0;
  uint64_t conditions = 0;  // bit i: it reads condition i
};

class Bundle {
 public:
  Bundle(Memory &memory, Bytes bytes);

  const Manifest &manifest() const { return manifest_; }
  const ProgramFacts &facts(size_t program) const { return facts_[program]; }
  uint64_t size() const { return bytes_.view().size(); }

  // The bytes of a member that the manifest names.
  View member(View name) const;

 private:
  View read_header(uint32_t *members) const;
  void read_table(Json entries, uint32_t count, uint64_t begin);
  void check_hashes(Json entries) const;
  void check_references() const;
  void check_programs(Memory &memory);
  const Member *find(View name) const;

  Bytes bytes_;
  Vec<Member> table_;
  Manifest manifest_;
  Vec<ProgramFacts> facts_;
};

// The header's own checks on the first bytes of a file (checks 2 to 6), for a file of `size` bytes. Returns what `total bytes` says.
uint64_t check_header(View head, uint64_t size);

constexpr size_t kHeader = 64;

}  // namespace eg
