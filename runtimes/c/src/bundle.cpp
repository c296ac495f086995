#include "bundle.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "sha256.h"

namespace eg {

namespace {

constexpr char kMagic[] = "\x89"
                          "EGN\r\n\x1a\n";
constexpr uint64_t kAlignment = 64;
constexpr uint32_t kMaxManifest = 1u << 20, kMaxMembers = 4096;
constexpr uint64_t kMaxElements = uint64_t{1} << 28;

uint64_t little_endian(View bytes, size_t at, size_t count) {
  uint64_t value = 0;
  for (size_t i = count; i > 0; --i) value = value << 8 | static_cast<unsigned char>(bytes[at + i - 1]);
  return value;
}

uint64_t aligned(uint64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

bool is_member_name(View text) {
  if (text.empty() || text.size() > 64 || text[0] == '.' || text[0] == '-') return false;
  for (const char c : text) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-')) return false;
  }
  return true;
}

bool is_hash(View text, const Digest &digest) {
  static const char digits[] = "0123456789abcdef";
  if (text.size() != 64) return false;
  for (size_t i = 0; i < 64; ++i) {
    if (text[i] != digits[i % 2 == 0 ? digest[i / 2] >> 4 : digest[i / 2] & 15]) return false;
  }
  return true;
}

bool all_zero(View bytes) {
  for (const char c : bytes) {
    if (c != 0) return false;
  }
  return true;
}

// A file descriptor that closes itself.
struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

void read_fully(int descriptor, unsigned char *data, size_t size, const char *path) {
  size_t done = 0;
  while (done < size) {
    const ssize_t count = ::read(descriptor, data + done, size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(EG_CANNOT_OPEN, "%.200s: cannot be read: %s", path, std::strerror(errno));
    if (count == 0) fail(EG_TRUNCATED, "%.200s: became shorter while it was read", path);
    done += static_cast<size_t>(count);
  }
}

}  // namespace

Bytes Bytes::of_file(Memory &memory, const char *path, bool mapped) {
  const Descriptor file{::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
  if (file.number < 0) fail(EG_CANNOT_OPEN, "%.200s: cannot be opened: %s", path, std::strerror(errno));
  struct stat about;
  if (::fstat(file.number, &about) != 0) fail(EG_CANNOT_OPEN, "%.200s: cannot be opened: %s", path, std::strerror(errno));
  if (!S_ISREG(about.st_mode)) fail(EG_CANNOT_OPEN, "%.200s: not a regular file", path);
  const uint64_t size = static_cast<uint64_t>(about.st_size);
  if (size > SIZE_MAX) fail(EG_NO_MEMORY, "%.200s: larger than the address space", path);

  unsigned char head[kHeader];
  const size_t begin = size < kHeader ? static_cast<size_t>(size) : kHeader;
  read_fully(file.number, head, begin, path);
  check_header({reinterpret_cast<const char *>(head), begin}, size);  // before the file's size of memory is asked for

  Bytes bytes(memory);
  bytes.size_ = static_cast<size_t>(size);
  if (mapped) {
    void *place = ::mmap(nullptr, bytes.size_, PROT_READ, MAP_PRIVATE, file.number, 0);
    if (place == MAP_FAILED) fail(errno == ENOMEM ? EG_NO_MEMORY : EG_CANNOT_OPEN, "%.200s: cannot be mapped: %s", path, std::strerror(errno));
    bytes.data_ = static_cast<const unsigned char *>(place);
    bytes.mapped_ = true;
  } else {
    bytes.owned_ = Block(memory, bytes.size_);
    bytes.data_ = bytes.owned_.data();
    std::memcpy(bytes.owned_.data(), head, kHeader);
    read_fully(file.number, bytes.owned_.data() + kHeader, bytes.size_ - kHeader, path);
  }
  return bytes;
}

Bytes Bytes::of_memory(Memory &memory, const void *data, size_t size, bool borrowed) {
  Bytes bytes(memory);
  bytes.size_ = size;
  bytes.data_ = static_cast<const unsigned char *>(data);
  if (!borrowed) {
    check_header({static_cast<const char *>(data), size < kHeader ? size : kHeader}, size);
    bytes.owned_ = Block(memory, size);
    std::memcpy(bytes.owned_.data(), data, size);
    bytes.data_ = bytes.owned_.data();
  }
  return bytes;
}

Bytes::Bytes(Bytes &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), owned_(std::move(other.owned_)), mapped_(std::exchange(other.mapped_, false)) {}

Bytes::~Bytes() {
  if (mapped_) ::munmap(const_cast<unsigned char *>(data_), size_);
}

uint64_t check_header(View head, uint64_t size) {
  const size_t magic = head.size() < 8 ? head.size() : 8;
  EG_CHECK(std::memcmp(head.data(), kMagic, magic) == 0, EG_NOT_A_BUNDLE, "not an edgegen bundle: its first bytes are not the magic");
  EG_CHECK(size >= kHeader, EG_TRUNCATED, "%llu bytes, a header alone has %zu; copy the file again", static_cast<unsigned long long>(size), kHeader);
  const uint64_t major = little_endian(head, 8, 2), minor = little_endian(head, 10, 2);
  EG_CHECK(major == 1 && minor == 0, EG_BAD_VERSION, "format %u.%u, this library reads 1.0; update it", static_cast<unsigned>(major), static_cast<unsigned>(minor));
  EG_CHECK(little_endian(head, 12, 2) == 0, EG_BAD_HEADER, "flags are set that this format does not have");
  EG_CHECK(little_endian(head, 14, 2) == kHeader, EG_BAD_HEADER, "the manifest's offset is not %zu", kHeader);
  const uint64_t length = little_endian(head, 16, 4), members = little_endian(head, 20, 4), total = little_endian(head, 24, 8);
  EG_CHECK(length >= 2 && length <= kMaxManifest, EG_LIMIT, "a manifest of %llu bytes, expected 2 .. %u", static_cast<unsigned long long>(length), kMaxManifest);
  EG_CHECK(members >= 1 && members <= kMaxMembers, EG_LIMIT, "%llu members, expected 1 .. %u", static_cast<unsigned long long>(members), kMaxMembers);
  EG_CHECK(size >= total, EG_TRUNCATED, "%llu bytes of %llu; copy the file again", static_cast<unsigned long long>(size), static_cast<unsigned long long>(total));
  return total;
}

Bundle::Bundle(Memory &memory, Bytes bytes) : bytes_(std::move(bytes)), table_(&memory), manifest_(memory), facts_(&memory) {
  uint32_t members = 0;
  const View text = read_header(&members);
  check_json(text);
  const Json manifest(text);
  EG_CHECK(manifest.kind() == Json::Kind::object, EG_BAD_MANIFEST, "the manifest is not an object");
  Json entries;
  for (Items i(manifest); i.next();) {
    if (i.key == "members") entries = i.value;
  }
  EG_CHECK(entries.exists(), EG_BAD_MANIFEST, "the manifest has no member table");
  read_table(entries, members, kHeader + text.size());
  check_hashes(entries);
  read_manifest(manifest, &manifest_);
  check_references();
  check_programs(memory);
}

View Bundle::read_header(uint32_t *members) const {
  const View all = bytes_.view();
  const uint64_t total = check_header(all.substr(0, kHeader), all.size());
  EG_CHECK(all.size() <= total, EG_CORRUPT, "%zu bytes, the header says %llu", all.size(), static_cast<unsigned long long>(total));
  const size_t length = static_cast<size_t>(little_endian(all, 16, 4));
  EG_CHECK(kHeader + length <= all.size(), EG_CORRUPT, "a manifest of %zu bytes in a file of %zu", length, all.size());
  const View text = all.substr(kHeader, length);
  const Digest digest = sha256(text.data(), text.size());
  EG_CHECK(std::memcmp(digest.data(), all.data() + 32, digest.size()) == 0, EG_CORRUPT, "the manifest's SHA-256 differs from the header's; the file is damaged");
  *members = static_cast<uint32_t>(little_endian(all, 20, 4));
  return text;
}

void Bundle::read_table(Json entries, uint32_t count, uint64_t begin) {
  using Kind = Json::Kind;
  const View all = bytes_.view();
  EG_CHECK(entries.kind() == Kind::array, EG_BAD_TABLE, "the member table is not an array");
  EG_CHECK(entries.count() == count, EG_BAD_TABLE, "the header says %u members, the table has another number", count);
  table_.reserve(count);
  uint64_t end = begin;
  for (Items i(entries); i.next();) {
    Json name, size, offset, hash;
    read_fields(i.value, EG_BAD_MANIFEST, "member table", {{"name", Kind::string, &name}, {"nbytes", Kind::integer, &size}, {"offset", Kind::integer, &offset}, {"sha256", Kind::string, &hash}});
    const View known = name.string();
    EG_CHECK(is_member_name(known), EG_BAD_TABLE, "'%.*s' is not a member name", EG_SHOW(known));
    EG_CHECK(table_.empty() || table_.back().name < known, EG_BAD_TABLE, "member '%.*s' is not in ascending order", EG_SHOW(known));
    const uint64_t place = aligned(end);
    uint64_t behind = 0;
    EG_CHECK(offset.integer() >= 0 && static_cast<uint64_t>(offset.integer()) == place, EG_BAD_TABLE, "member '%.*s' is at %lld, expected %llu", EG_SHOW(known),
             static_cast<long long>(offset.integer()), static_cast<unsigned long long>(place));
    EG_CHECK(size.integer() >= 1, EG_BAD_TABLE, "member '%.*s' has %lld bytes", EG_SHOW(known), static_cast<long long>(size.integer()));
    EG_CHECK(add(place, static_cast<uint64_t>(size.integer()), &behind) && behind <= all.size(), EG_BAD_TABLE, "member '%.*s' reaches behind the end of the file", EG_SHOW(known));
    EG_CHECK(all_zero(all.substr(static_cast<size_t>(end), static_cast<size_t>(place - end))), EG_CORRUPT, "the padding before member '%.*s' is not zero", EG_SHOW(known));
    table_.push_back({known, place, behind - place});
    end = behind;
  }
  EG_CHECK(end == all.size(), EG_BAD_TABLE, "%llu bytes behind the last member", static_cast<unsigned long long>(all.size() - end));
}

void Bundle::check_hashes(Json entries) const {
  size_t index = 0;
  for (Items i(entries); i.next(); ++index) {
    Json hash;
    for (Items field(i.value); field.next();) {
      if (field.key == "sha256") hash = field.value;
    }
    const View data = bytes_.view().substr(static_cast<size_t>(table_[index].offset), static_cast<size_t>(table_[index].size));
    EG_CHECK(is_hash(hash.string(), sha256(data.data(), data.size())), EG_CORRUPT, "member '%.*s': its SHA-256 differs from the manifest's; the file is damaged", EG_SHOW(table_[index].name));
  }
}

const Member *Bundle::find(View name) const {
  size_t low = 0, high = table_.size();
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (table_[middle].name < name) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < table_.size() && table_[low].name == name ? &table_[low] : nullptr;
}

View Bundle::member(View name) const {
  const Member *found = find(name);
  return found == nullptr ? View() : bytes_.view().substr(static_cast<size_t>(found->offset), static_cast<size_t>(found->size));
}

// The members of the table are exactly those that programs, variants and documents name; components' tensors are within the limit.
void Bundle::check_references() const {
  unsigned char named[kMaxMembers] = {};
  const auto mark = [&](View name) {
    const Member *found = find(name);
    EG_CHECK(found != nullptr, EG_INCONSISTENT, "the manifest names the member '%.*s', which is not there", EG_SHOW(name));
    named[found - table_.data()] = 1;
  };
  for (const ProgramEntry &p : manifest_.programs) mark(p.member);
  for (Items d(manifest_.documents); d.next();) mark(d.value.string());
  for (const Variant &v : manifest_.variants) {
    for (Items c(v.components); c.next();) mark(c.value.string());
    for (Items w(v.weights); w.next();) mark(w.value.string());
    for (Items g(v.golden); g.next();) mark(member_of(g.value, "member"));
    for (Items f(v.fused); f.next();) mark(member_of(f.value, "member"));
  }
  for (size_t i = 0; i < table_.size(); ++i) {
    EG_CHECK(named[i] != 0, EG_INCONSISTENT, "nothing names the member '%.*s'", EG_SHOW(table_[i].name));
  }
  for (const TensorSpec &t : manifest_.tensors) {
    EG_CHECK(t.shape.elements() <= kMaxElements, EG_INCONSISTENT, "tensor '%.*s' has more than %llu elements per sample", EG_SHOW(t.name), static_cast<unsigned long long>(kMaxElements));
  }
}

void Bundle::check_programs(Memory &memory) {
  facts_.resize(manifest_.programs.size());
  for (size_t i = 0; i < manifest_.programs.size(); ++i) {
    const ProgramEntry &entry = manifest_.programs[i];
    facts_[i] = check_program(memory, member(entry.member), manifest_, entry.name);
  }
  uint64_t bytes = 0;
  const bool countable = multiply(manifest_.sample.elements(), sizeof(float), &bytes);
  for (const Variant &v : manifest_.variants) {
    for (Items g(v.golden); g.next();) {
      const View name = member_of(g.value, "member");
      EG_CHECK(countable && member(name).size() == bytes, EG_INCONSISTENT, "golden vector '%.*s' has %zu bytes, expected %llu", EG_SHOW(name), member(name).size(), static_cast<unsigned long long>(bytes));
    }
  }
}

}  // namespace eg
