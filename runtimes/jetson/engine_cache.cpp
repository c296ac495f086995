#include "engine_cache.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../c/src/sha256.h"

namespace edgegen_jetson {

namespace {

constexpr char kMagic[] = "edgegen engine 1";
constexpr size_t kMagicBytes = 16, kMacBytes = 32, kKeyBytes = 32, kHead = kMagicBytes + kMacBytes;
constexpr char kSuffix[] = ".engine", kKeyFile[] = "/key";

[[noreturn]] void refuse(const std::string &path, int error) { throw CacheError(path + ": " + std::strerror(error)); }

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor &) = delete;
  Descriptor &operator=(const Descriptor &) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int number() const { return number_; }
  int release() {
    const int number = number_;
    number_ = -1;
    return number;
  }

 private:
  int number_;
};

void random_bytes(unsigned char *out, size_t size) {
  const Descriptor source(::open("/dev/urandom", O_RDONLY | O_CLOEXEC));
  for (size_t have = 0; have < size;) {
    const ssize_t got = source.number() < 0 ? -1 : ::read(source.number(), out + have, size - have);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) refuse("/dev/urandom", errno);
    have += static_cast<size_t>(got);
  }
}

// The bytes of a regular file that is ours, 0600 and no link; nothing for anything else.
std::optional<Bytes> read_file(const std::string &path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  struct stat status;
  if (file.number() < 0 || ::fstat(file.number(), &status) != 0) return std::nullopt;
  if (!S_ISREG(status.st_mode) || status.st_uid != ::geteuid() || (status.st_mode & 07777) != 0600 || status.st_size < 0) return std::nullopt;
  Bytes data(static_cast<size_t>(status.st_size));
  size_t have = 0;
  while (have < data.size()) {
    const ssize_t got = ::read(file.number(), data.data() + have, data.size() - have);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) refuse(path, errno);
    if (got == 0) break;
    have += static_cast<size_t>(got);
  }
  data.resize(have);
  return data;
}

void write_all(int file, const std::string &path, const Bytes &data) {
  for (size_t done = 0; done < data.size();) {
    const ssize_t wrote = ::write(file, data.data() + done, data.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0) refuse(path, errno);
    done += static_cast<size_t>(wrote);
  }
}

// Write a file of mode 0600: `path` holds the old bytes or all of the new ones.
void write_file(const std::string &path, const Bytes &data) {
  unsigned char salt[4];
  random_bytes(salt, sizeof salt);
  const size_t slash = path.rfind('/');
  const std::string temporary = path.substr(0, slash + 1) + "." + path.substr(slash + 1) + "." + std::to_string(::getpid()) + "-" + hex(salt, sizeof salt) + ".tmp";
  Descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (file.number() < 0) refuse(temporary, errno);
  try {
    write_all(file.number(), path, data);
    if (::fchmod(file.number(), 0600) != 0 || ::fsync(file.number()) != 0) refuse(path, errno);  // whatever the umask
    if (::close(file.release()) != 0) refuse(path, errno);
    if (::rename(temporary.c_str(), path.c_str()) != 0) refuse(path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

bool ends_with(const std::string &text, const char *end) {
  const size_t size = std::strlen(end);
  return text.size() > size && text.compare(text.size() - size, size, end) == 0;
}

void make_parents(const std::string &folder) {
  for (size_t slash = folder.find('/', 1); slash != std::string::npos; slash = folder.find('/', slash + 1)) {
    const std::string parent = folder.substr(0, slash);
    if (::mkdir(parent.c_str(), 0777) != 0 && errno != EEXIST) refuse(parent, errno);
  }
}

std::string quoted(const std::string &text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      case '\n': out += "\\n"; break;
      case '\r': out += "\\r"; break;
      case '\t': out += "\\t"; break;
      case '\f': out += "\\f"; break;
      case '\b': out += "\\b"; break;
      default:
        if (byte < 0x20 || byte > 0x7e) {
          out += "\\u00" + hex(&byte, 1);
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

std::string sizes(const std::vector<int64_t> &shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i > 0 ? "," : "") + std::to_string(shape[i]);
  return out + "]";
}

// As json.dumps of BuildOptions.to_json() with sorted keys and no white space.
std::string json_of(const BuildFlags &flags) {
  std::vector<Profile> profiles = flags.profiles;
  std::sort(profiles.begin(), profiles.end(), [](const Profile &a, const Profile &b) { return a.input < b.input; });
  std::string shapes;
  for (const Profile &p : profiles) {
    shapes += (shapes.empty() ? "" : ",") + quoted(p.input) + ":[" + sizes(p.least) + "," + sizes(p.usual) + "," + sizes(p.most) + "]";
  }
  return "{\"capabilities\":[],\"engine\":\"tensorrt\",\"hardware_compatible\":false,\"optimization_level\":" +
         (flags.optimization_level ? std::to_string(*flags.optimization_level) : "null") + ",\"profiles\":{" + shapes +
         "},\"refit\":false,\"strip_weights\":false,\"version_compatible\":false,\"workspace\":" + (flags.workspace ? std::to_string(*flags.workspace) : "null") + "}";
}

}  // namespace

std::string hex(const void *data, size_t size) {
  static const char digits[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < size; ++i) {
    const unsigned char byte = static_cast<const unsigned char *>(data)[i];
    out += digits[byte >> 4];
    out += digits[byte & 15];
  }
  return out;
}

Bytes hmac_sha256(const Bytes &secret, const void *data, size_t size) {
  constexpr size_t block = 64;
  Bytes key(block, 0);
  if (secret.size() > block) {
    const eg::Digest digest = eg::sha256(secret.data(), secret.size());
    std::copy(digest.begin(), digest.end(), key.begin());
  } else {
    std::copy(secret.begin(), secret.end(), key.begin());
  }
  const auto *bytes = static_cast<const unsigned char *>(data);
  Bytes inner(key), outer(key);
  for (unsigned char &b : inner) b ^= 0x36;
  for (unsigned char &b : outer) b ^= 0x5c;
  if (size > 0) inner.insert(inner.end(), bytes, bytes + size);
  const eg::Digest first = eg::sha256(inner.data(), inner.size());
  outer.insert(outer.end(), first.begin(), first.end());
  const eg::Digest second = eg::sha256(outer.data(), outer.size());
  return Bytes(second.begin(), second.end());
}

std::string engine_key(const void *model, size_t size, const std::string &version, const std::string &gpu, const BuildFlags &flags) {
  const eg::Digest digest = eg::sha256(model, size);
  const std::string parts = "[" + quoted(hex(digest.data(), digest.size())) + ",\"tensorrt\"," + quoted(version) + "," + quoted(gpu) + "," + json_of(flags) + "]";
  const eg::Digest name = eg::sha256(parts.data(), parts.size());
  return hex(name.data(), name.size());
}

std::string default_engine_folder() {
  const auto variable = [](const char *name) {
    const char *value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  std::string base = variable("EDGEGEN_CACHE");
  if (base.empty()) {
    base = variable("XDG_CACHE_HOME");
    if (base.empty()) {
      base = variable("HOME");
      const struct passwd *entry = base.empty() ? ::getpwuid(::geteuid()) : nullptr;
      if (entry != nullptr) base = entry->pw_dir;
      base += "/.cache";
    }
    base += "/edgegen";
  }
  return base + "/engines";
}

EngineCache::EngineCache(std::string folder, Log log) : folder_(std::move(folder)), log_(std::move(log)) {
  while (folder_.size() > 1 && folder_.back() == '/') folder_.pop_back();
  if (folder_.empty()) throw CacheError("the engine cache needs a folder");
  make_parents(folder_);
  if (::mkdir(folder_.c_str(), 0700) != 0 && errno != EEXIST) refuse(folder_, errno);
  secure();
}

// Make sure that only we may enter the folder. What others could have written until now is thrown away.
void EngineCache::secure() {
  struct stat status;
  if (::lstat(folder_.c_str(), &status) != 0) refuse(folder_, errno);
  if (!S_ISDIR(status.st_mode)) throw CacheError(folder_ + ": the engine cache must be a folder of its own, not a link or a file");
  if (status.st_uid != ::geteuid()) {
    throw CacheError(folder_ + ": the engine cache belongs to user " + std::to_string(status.st_uid) + ", expected " + std::to_string(::geteuid()) + "; choose a folder of yours");
  }
  if ((status.st_mode & 07777) == 0700) return;
  say(folder_ + ": others could enter the engine cache; emptying it");
  if (::chmod(folder_.c_str(), 0700) != 0) refuse(folder_, errno);
  std::vector<std::string> names;
  DIR *entries = ::opendir(folder_.c_str());
  if (entries == nullptr) refuse(folder_, errno);
  while (const struct dirent *entry = ::readdir(entries)) names.emplace_back(entry->d_name);
  ::closedir(entries);
  for (const std::string &name : names) {
    if (name == kKeyFile + 1 || ends_with(name, kSuffix) || ends_with(name, ".tmp")) ::unlink((folder_ + "/" + name).c_str());
  }
}

// This device's key; made if there is none, or if the one there is not ours alone.
Bytes EngineCache::secret() {
  const std::string path = folder_ + kKeyFile;
  std::optional<Bytes> found = read_file(path);
  if (!found || found->size() != kKeyBytes) {
    ::unlink(path.c_str());
    Bytes fresh(kKeyBytes);
    random_bytes(fresh.data(), fresh.size());
    write_file(path, fresh);
    found = read_file(path);  // another process may have written its own at the same time: the last one counts
  }
  if (!found || found->size() != kKeyBytes) throw CacheError(path + ": the engine cache's key cannot be kept there");
  return *found;
}

std::string EngineCache::path(const std::string &key) const {
  if (key.size() != 64 || key.find_first_not_of("0123456789abcdef") != std::string::npos) {
    throw CacheError("'" + key + "' is no key of the engine cache; expected 64 hex digits, of engine_key");
  }
  return folder_ + "/" + key + kSuffix;
}

Bytes EngineCache::mac(const std::string &key, const unsigned char *data, size_t size) {
  Bytes message(kMagic, kMagic + kMagicBytes);
  message.insert(message.end(), key.begin(), key.end());
  if (size > 0) message.insert(message.end(), data, data + size);
  return hmac_sha256(secret(), message.data(), message.size());
}

std::optional<Bytes> EngineCache::load(const std::string &key) {
  const std::string file = path(key);
  try {
    secure();
    const std::optional<Bytes> found = read_file(file);
    if (found && found->size() > kHead && std::memcmp(found->data(), kMagic, kMagicBytes) == 0) {
      const Bytes expected = mac(key, found->data() + kHead, found->size() - kHead);
      unsigned char difference = 0;
      for (size_t i = 0; i < kMacBytes; ++i) difference = static_cast<unsigned char>(difference | (expected[i] ^ (*found)[kMagicBytes + i]));
      if (difference == 0) return Bytes(found->begin() + kHead, found->end());
    }
  } catch (const CacheError &error) {
    say(folder_ + ": cannot be used as an engine cache: " + error.what());
    return std::nullopt;
  }
  struct stat status;
  if (::lstat(file.c_str(), &status) == 0) {
    say(file + " is not as this device wrote it; building the engine again");
    ::unlink(file.c_str());  // a folder in its place stays, and is never read either
  }
  return std::nullopt;
}

void EngineCache::store(const std::string &key, const void *data, size_t size) {
  const std::string file = path(key);
  const auto *bytes = static_cast<const unsigned char *>(data);
  secure();
  Bytes whole(kMagic, kMagic + kMagicBytes);
  const Bytes code = mac(key, bytes, size);
  whole.insert(whole.end(), code.begin(), code.end());
  if (size > 0) whole.insert(whole.end(), bytes, bytes + size);
  write_file(file, whole);
}

bool EngineCache::get_or_build(const std::string &key, const std::function<Bytes()> &build, const std::function<bool(const Bytes &)> &open) {
  const std::optional<Bytes> stored = load(key);
  if (stored) {
    if (open(*stored)) return false;
    ::unlink(path(key).c_str());
  }
  const Bytes made = build();
  try {
    store(key, made.data(), made.size());
  } catch (const CacheError &error) {
    say(std::string("the engine is used and not kept: ") + error.what());
  }
  if (!open(made)) throw CacheError("TensorRT does not open the engine that it has just built; its log says why");
  return true;
}

void EngineCache::say(const std::string &line) const {
  if (log_) log_(line);
}

}  // namespace edgegen_jetson
