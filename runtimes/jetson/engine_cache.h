// A device's own cache of TensorRT engines. An engine is native code: what comes out of here is what this user put in on this device, or nothing.
//
// The same folder, files and keys as edgegen/targets/tensorrt/cache.py, which may share it: a folder that only its owner may enter (0700) holds a key
// made once (0600) and one file per engine, KEY.engine: 16 bytes of magic, an HMAC-SHA256 over magic, key's name and engine, the engine. Anything that
// does not agree (a flipped bit, another engine's file, another owner or mode, a link) is deleted and built again; it never reaches TensorRT.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgegen_jetson {

using Bytes = std::vector<unsigned char>;

// Receives a line that a person should know.
using Log = std::function<void(const std::string &line)>;

class CacheError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Least, usual and most shape of an input that has a dimension of any size.
struct Profile {
  std::string input;
  std::vector<int64_t> least, usual, most;
};

// What decides an engine's bytes beside the model: BuildOptions of edgegen/targets/tensorrt/build.py, as far as TensorRT on a Jetson takes them.
struct BuildFlags {
  std::optional<uint64_t> workspace;          // bytes of scratch memory that a kernel may use; TensorRT's own limit if empty
  std::optional<int32_t> optimization_level;  // 0 .. 5
  std::vector<Profile> profiles;              // in any order
};

// The name of an engine: 64 hex digits over all that it depends on. version: of TensorRT. gpu: name, UUID and compute capability, as
// "Orin 00112233445566778899aabbccddeeff SM87". All texts are ASCII; with other bytes the name is a good one, and not the one that Python gives.
std::string engine_key(const void *model, size_t size, const std::string &version, const std::string &gpu, const BuildFlags &flags);

// $EDGEGEN_CACHE, or edgegen in the user's cache folder, with "engines" behind it: where Python keeps them too.
std::string default_engine_folder();

class EngineCache {
 public:
  // Makes the folder if it is not there. Several processes of one user may share it. Throws CacheError for a folder that is a link, another user's, or
  // that cannot be made.
  explicit EngineCache(std::string folder, Log log = {});

  const std::string &folder() const { return folder_; }

  // The engine stored under a key; empty: not there, or not as this device wrote it, and then it is deleted.
  std::optional<Bytes> load(const std::string &key);

  // Keep an engine. Throws CacheError.
  void store(const std::string &key, const void *data, size_t size);

  // Opens the stored engine, or a new one, which is then stored. open: false for an engine that TensorRT turns down; it is then built once more. A cache that
  // cannot be written costs a line in the log, not the engine. Returns whether it was built. Throws what the two throw, and CacheError if the new engine is
  // turned down too.
  bool get_or_build(const std::string &key, const std::function<Bytes()> &build, const std::function<bool(const Bytes &)> &open);

 private:
  void secure();
  Bytes secret();
  std::string path(const std::string &key) const;
  Bytes mac(const std::string &key, const unsigned char *data, size_t size);
  void say(const std::string &line) const;

  std::string folder_;
  Log log_;
};

// RFC 2104 with SHA-256.
Bytes hmac_sha256(const Bytes &secret, const void *data, size_t size);

std::string hex(const void *data, size_t size);

}  // namespace edgegen_jetson
