#include "kit.h"

#include <cstring>
#include <ctime>

#include "sha256.h"

size_t number(const std::string &text) { return static_cast<size_t>(std::stoull(text)); }

std::string read_file(const std::string &path) {
  FILE *file = std::fopen(path.c_str(), "rb");
  REQUIRE(file != nullptr, "%s", path.c_str());
  std::string bytes;
  char block[65536];
  for (size_t size; (size = std::fread(block, 1, sizeof block, file)) > 0;) bytes.append(block, size);
  std::fclose(file);
  return bytes;
}

namespace {

template <class T>
T take(const std::string &bytes, size_t &at) {
  T value;
  REQUIRE(at + sizeof value <= bytes.size(), "a corpus that is cut");
  std::memcpy(&value, bytes.data() + at, sizeof value);
  at += sizeof value;
  return value;
}

std::string take_text(const std::string &bytes, size_t &at, size_t size) {
  REQUIRE(at + size <= bytes.size(), "a corpus that is cut");
  at += size;
  return bytes.substr(at - size, size);
}

std::string hex(const std::string &bytes) {
  char text[65];
  hex_digest(bytes.data(), bytes.size(), text);
  return text;
}

size_t aligned(size_t size) { return (size + 63) / 64 * 64; }

// The text behind "key": in the table of a sound manifest, from `at`.
std::string value_of(const std::string &text, const char *key, size_t &at) {
  at = text.find(std::string("\"") + key + "\":", at);
  REQUIRE(at != std::string::npos, "no key %s", key);
  at += std::strlen(key) + 3;
  const size_t begin = at;
  at = text.find_first_of(",}", at);
  return text.substr(begin, at - begin);
}

void *allocate(void *context, size_t size, size_t alignment) {
  Counter &c = *static_cast<Counter *>(context);
  ++c.calls;
  if (c.fail_at != 0 && (c.calls == c.fail_at || (c.fail_forever && c.calls > c.fail_at))) return nullptr;
  void *block = nullptr;
  if (posix_memalign(&block, alignment < sizeof(void *) ? sizeof(void *) : alignment, size == 0 ? 1 : size) != 0) return nullptr;
  ++c.live;
  c.live_bytes += size;
  if (c.live_bytes > c.peak_bytes) c.peak_bytes = c.live_bytes;
  if (size > c.largest) c.largest = size;
  return block;
}

void release(void *context, void *block, size_t size, size_t alignment) {
  (void)alignment;
  Counter &c = *static_cast<Counter *>(context);
  REQUIRE(block != nullptr && c.live > 0 && c.live_bytes >= size, "a release that does not fit what was allocated");
  --c.live;
  c.live_bytes -= size;
  std::free(block);
}

}  // namespace

std::vector<Record> read_corpus(const std::string &path) {
  const std::string bytes = read_file(path);
  std::vector<Record> records;
  for (size_t at = 0; at < bytes.size();) {
    const uint32_t name_size = take<uint32_t>(bytes, at);
    const int32_t expected = take<int32_t>(bytes, at);
    const uint64_t size = take<uint64_t>(bytes, at);
    std::string name = take_text(bytes, at, name_size);
    records.push_back({std::move(name), expected, take_text(bytes, at, static_cast<size_t>(size))});
  }
  return records;
}

Parts take_apart(const std::string &bundle) {
  Parts parts;
  uint32_t size;
  std::memcpy(&size, bundle.data() + 16, sizeof size);
  parts.manifest = bundle.substr(64, size);
  size_t at = parts.manifest.find("\"members\":[");
  REQUIRE(at != std::string::npos, "no member table");
  const size_t end = parts.manifest.find(']', at);
  for (at = parts.manifest.find('{', at); at < end && at != std::string::npos; at = parts.manifest.find('{', at)) {
    std::string name = value_of(parts.manifest, "name", at);
    const size_t bytes = number(value_of(parts.manifest, "nbytes", at)), offset = number(value_of(parts.manifest, "offset", at));
    parts.members.emplace_back(name.substr(1, name.size() - 2), bundle.substr(offset, bytes));
  }
  return parts;
}

std::string with_header(const std::string &manifest, const std::string &body, size_t members) {
  std::string file(64, '\0');
  std::memcpy(&file[0], "\x89" "EGN\r\n\x1a\n\x01\x00\x00\x00\x00\x00\x40\x00", 16);
  const uint32_t size = static_cast<uint32_t>(manifest.size()), count = static_cast<uint32_t>(members);
  const uint64_t total = 64 + manifest.size() + body.size();
  std::memcpy(&file[16], &size, sizeof size);
  std::memcpy(&file[20], &count, sizeof count);
  std::memcpy(&file[24], &total, sizeof total);
  const eg::Digest digest = eg::sha256(manifest.data(), manifest.size());
  std::memcpy(&file[32], digest.data(), digest.size());
  return file + manifest + body;
}

std::string put_together(const Parts &parts) {
  const size_t begin = parts.manifest.find("\"members\":[");
  const size_t end = begin == std::string::npos ? begin : parts.manifest.find(']', begin);
  std::string head = parts.manifest, tail;
  if (end != std::string::npos) {
    head = parts.manifest.substr(0, begin + 11);
    tail = parts.manifest.substr(end);
  }
  std::string manifest, body;
  for (size_t guess = parts.manifest.size();;) {  // offsets depend on the manifest's size
    std::string table;
    size_t offset = aligned(64 + guess);
    body.assign(offset - 64 - guess, '\0');
    for (const auto &[name, bytes] : parts.members) {
      body.resize(offset - 64 - guess, '\0');
      table += (table.empty() ? "" : ",") + std::string("{\"name\":\"") + name + "\",\"nbytes\":" + std::to_string(bytes.size()) + ",\"offset\":" + std::to_string(offset) + ",\"sha256\":\"" + hex(bytes) + "\"}";
      body += bytes;
      offset = aligned(64 + guess + body.size());
    }
    manifest = end == std::string::npos ? head : head + table + tail;
    if (manifest.size() == guess) break;
    guess = manifest.size();
  }
  return with_header(manifest, body, parts.members.size());
}

eg_allocator Counter::allocator() { return {sizeof(eg_allocator), 0, this, allocate, release}; }

namespace {

double seconds_of(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

double seconds_now() { return seconds_of(CLOCK_MONOTONIC); }
double processor_seconds() { return seconds_of(CLOCK_PROCESS_CPUTIME_ID); }

void set_missing_conditions(const eg_model *model, eg_session *session) {
  for (uint32_t i = 0;; ++i) {
    eg_condition_info info = EG_CONDITION_INFO_INIT;
    if (eg_condition_describe(model, i, &info) != EG_OK) return;
    if ((info.has & EG_HAS_DEFAULT) != 0) continue;
    const double value = (info.has & EG_HAS_MINIMUM) != 0 ? info.minimum : 0.0;
    REQUIRE(eg_set_number(session, info.name, value) == EG_OK, "%s", eg_last_error(session));
  }
}

eg_session *surrogate_session(eg_model *model, uint32_t batch) {
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.component = surrogate;
  options.batch = batch;
  eg_session *session = nullptr;
  eg_message why;
  REQUIRE(eg_session_create(model, &options, &session, &why) == EG_OK, "%s", why.text);
  set_missing_conditions(model, session);
  return session;
}
