// What engine_cache.h promises, without TensorRT: tests/native/test_jetson.py builds this under sanitizers and runs it.
//
//   engine_cache_test vectors FILE FOLDER     keys, codes and files as the Python cache makes them
//   engine_cache_test attack FOLDER           T8: nothing that was tampered with is opened
//   engine_cache_test get FOLDER KEY          the engine under a key in hex, or "none"
//   engine_cache_test put FOLDER KEY HEX
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <sys/stat.h>
#include <unistd.h>

#include "../engine_cache.h"

using namespace edgegen_jetson;

namespace {

int failures = 0;

void expect(bool met, const std::string &what) {
  if (met) return;
  ++failures;
  std::cerr << "not so: " << what << "\n";
}

Bytes unhex(const std::string &text) {
  Bytes out;
  for (size_t i = 0; i + 1 < text.size(); i += 2) out.push_back(static_cast<unsigned char>(std::strtoul(text.substr(i, 2).c_str(), nullptr, 16)));
  return out;
}

Bytes read_all(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// In place, with a mode: as someone who tampers with the file does.
void overwrite(const std::string &path, const Bytes &data, mode_t mode = 0600) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (file < 0 || ::write(file, data.data(), data.size()) != static_cast<ssize_t>(data.size())) std::abort();
  ::fchmod(file, mode);
  ::close(file);
}

bool exists(const std::string &path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0;
}

mode_t mode_of(const std::string &path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
}

std::vector<int64_t> shape_of(const std::string &text) {
  std::vector<int64_t> shape;
  std::istringstream sizes(text);
  for (std::string size; std::getline(sizes, size, ',');) shape.push_back(std::strtoll(size.c_str(), nullptr, 10));
  return shape;
}

struct Case {
  std::map<std::string, std::string> texts;
  BuildFlags flags;
};

std::vector<Case> read_cases(const std::string &path) {
  std::vector<Case> cases;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    const size_t space = line.find(' ');
    const std::string word = line.substr(0, space), rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (word == "case") {
      cases.push_back({});
    } else if (word == "workspace") {
      cases.back().flags.workspace = std::strtoull(rest.c_str(), nullptr, 10);
    } else if (word == "optimization_level") {
      cases.back().flags.optimization_level = std::atoi(rest.c_str());
    } else if (word == "profile") {
      std::istringstream words(rest);
      std::string input, least, usual, most;
      words >> input >> least >> usual >> most;
      cases.back().flags.profiles.push_back({input, shape_of(least), shape_of(usual), shape_of(most)});
    } else {
      cases.back().texts[word] = rest;
    }
  }
  return cases;
}

void check_vectors(const std::string &path, const std::string &folder) {
  const std::vector<Case> cases = read_cases(path);
  expect(cases.size() >= 8, "there are at least 8 cases in " + path);
  for (size_t i = 0; i < cases.size(); ++i) {
    std::map<std::string, std::string> t = cases[i].texts;
    const std::string where = "case " + std::to_string(i), own = folder + "/" + std::to_string(i);
    const Bytes model = unhex(t["model"]), engine = unhex(t["engine"]), file = unhex(t["file"]);
    const std::string key = engine_key(model.data(), model.size(), t["version"], t["gpu"], cases[i].flags);
    expect(key == t["key"], where + ": the key is Python's, " + t["key"] + ", found " + key);
    EngineCache cache(own);
    overwrite(own + "/key", unhex(t["secret"]));
    overwrite(own + "/" + key + ".engine", file);
    expect(cache.load(key) == engine, where + ": Python's file is opened");
    ::unlink((own + "/" + key + ".engine").c_str());
    cache.store(key, engine.data(), engine.size());
    expect(read_all(own + "/" + key + ".engine") == file, where + ": the file is Python's, byte for byte");
  }
  std::cout << cases.size() << " cases\n";
}

// Stands in for TensorRT: counts, and would see what must never come here.
struct Spy {
  explicit Spy(Bytes engine) : good(std::move(engine)) {}
  bool run(EngineCache &cache, const std::string &key) {
    return cache.get_or_build(
        key,
        [this] {
          ++builds;
          return good;
        },
        [this](const Bytes &data) {
          ++opens;
          if (data != good) ++tampered;
          return true;
        });
  }
  Bytes good;
  int builds = 0, opens = 0, tampered = 0;
};

struct Attacked {
  EngineCache &cache;
  std::string key, path, folder;
  Bytes engine, file;
};

// After an attack: nothing is loaded, what lay there is gone, and it is built again.
void expect_rebuilt(Attacked &a, const std::string &what, bool gone = true) {
  expect(!a.cache.load(a.key), what + " is not loaded");
  if (gone) expect(!exists(a.path), what + " is deleted");
}

void bit_flips(Attacked &a) {
  size_t flips = 0, rebuilt = 0;
  Spy spy(a.engine);
  for (size_t bit = 0; bit < a.file.size() * 8; bit += 3, ++flips) {  // 3: the places are spread over every byte
    Bytes data = a.file;
    data[bit / 8] = static_cast<unsigned char>(data[bit / 8] ^ (1u << (bit % 8)));
    overwrite(a.path, data);
    if (flips % 8 == 0) {  // building writes to the disk and waits for it
      rebuilt += spy.run(a.cache, a.key) ? 1 : 0;
    } else {
      rebuilt += a.cache.load(a.key) || exists(a.path) ? 0 : 1;
    }
  }
  expect(flips >= 1000 && rebuilt == flips, "all of " + std::to_string(flips) + " flipped files are built again: " + std::to_string(rebuilt));
  expect(spy.tampered == 0 && spy.opens == spy.builds, "no flipped file is opened");
  std::cout << flips << " bit flips, " << spy.tampered << " opened\n";
}

void sizes_and_modes(Attacked &a) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{47}, size_t{48}, size_t{49}, a.file.size() - 1}) {
    overwrite(a.path, Bytes(a.file.begin(), a.file.begin() + static_cast<std::ptrdiff_t>(size)));
    expect_rebuilt(a, "a file cut to " + std::to_string(size) + " bytes");
  }
  Bytes longer = a.file;
  longer.push_back(0);
  overwrite(a.path, longer);
  expect_rebuilt(a, "a file with a byte more");
  for (const mode_t mode : {0644, 0660, 0666, 0700, 0400, 04600}) {
    overwrite(a.path, a.file, mode);
    expect_rebuilt(a, "a file of mode " + std::to_string(mode));
  }
}

void swapped_and_foreign(Attacked &a) {
  const char model[] = "a model";
  const std::string gpu = "Orin 00112233445566778899aabbccddeeff SM87";
  BuildFlags flags;
  flags.profiles.push_back({"x", {1, 4}, {1, 4}, {16, 4}});
  BuildFlags other = flags;
  other.workspace = 1 << 20;
  const std::vector<std::string> keys = {engine_key(model, 6, "10.3.0", gpu, flags), engine_key(model, 7, "10.4.0", gpu, flags),
                                         engine_key(model, 7, "10.3.0", "Orin 01112233445566778899aabbccddeeff SM87", flags), engine_key(model, 7, "10.3.0", gpu, other),
                                         engine_key(model, 7, "10.3.0", gpu, {})};
  for (const std::string &key : keys) {
    expect(key != a.key, "other models, versions, GPUs and flags have other keys");
    const std::string path = a.folder + "/" + key + ".engine";
    overwrite(path, a.file);  // a good engine under another's name
    expect(!a.cache.load(key) && !exists(path), "a swapped file is not loaded, and deleted");
  }
  overwrite(a.path, a.file);
  expect(a.cache.load(a.key) == a.engine, "the engine under its own name still is");
  for (const char *bad : {"", "key", "../key", "AA"}) {
    bool refused = false;
    try {
      a.cache.load(bad);
    } catch (const CacheError &) {
      refused = true;
    }
    expect(refused, std::string("'") + bad + "' is no key");
  }
}

void links_and_others(Attacked &a) {
  const std::string elsewhere = a.folder + "/../elsewhere.engine";
  overwrite(elsewhere, a.file);
  ::unlink(a.path.c_str());
  expect(::symlink(elsewhere.c_str(), a.path.c_str()) == 0, "a link can be made");
  expect_rebuilt(a, "a link");
  expect(exists(elsewhere), "what a link points to stays");
  expect(::mkfifo(a.path.c_str(), 0600) == 0, "a pipe can be made");
  expect_rebuilt(a, "a pipe");
  expect(::mkdir(a.path.c_str(), 0700) == 0, "a folder can be made");
  expect_rebuilt(a, "a folder", false);
  ::rmdir(a.path.c_str());
  const std::string link = a.folder + "/../link";
  expect(::symlink(a.folder.c_str(), link.c_str()) == 0, "a link can be made");
  for (const std::string &folder : {link, elsewhere, elsewhere + "/below"}) {
    bool refused = false;
    try {
      EngineCache cache(folder);
    } catch (const CacheError &) {
      refused = true;
    }
    expect(refused, folder + " is refused as a cache");
  }
  if (::geteuid() != 0) {
    std::cout << "not root: files of other owners were not tried\n";
    return;
  }
  overwrite(a.path, a.file);
  expect(::chown(a.path.c_str(), 12345, static_cast<gid_t>(-1)) == 0, "root gives files away");
  expect_rebuilt(a, "another owner's file");
  overwrite(a.path, a.file);
  expect(::chown(a.folder.c_str(), 12345, static_cast<gid_t>(-1)) == 0, "root gives folders away");
  expect_rebuilt(a, "a file in another owner's folder", false);
  Spy spy(a.engine);
  expect(spy.run(a.cache, a.key) && spy.builds == 1, "in another owner's folder engines are built and not kept");
  expect(::chown(a.folder.c_str(), 0, static_cast<gid_t>(-1)) == 0, "root takes folders back");
  expect(a.cache.load(a.key) == a.engine, "and what was in it is as it was");
}

void keys(Attacked &a) {
  const std::string secret = a.folder + "/key";
  const Bytes before = read_all(secret);
  expect(before.size() == 32 && mode_of(secret) == 0600, "the key has 32 bytes and is the owner's alone");
  const auto attack = [&](const std::string &what, const std::function<void()> &change) {
    overwrite(secret, before);
    overwrite(a.path, a.file);
    expect(a.cache.load(a.key) == a.engine, "with its key the engine is opened");
    change();
    expect_rebuilt(a, "an engine whose key " + what);
  };
  attack("is lost", [&] { ::unlink(secret.c_str()); });
  attack("is short", [&] { overwrite(secret, Bytes(31, 1)); });
  attack("is another", [&] { overwrite(secret, Bytes(32, 1)); });
  attack("others can read", [&] { overwrite(secret, before, 0644); });
  overwrite(secret, before);
  overwrite(a.path, a.file);
  ::chmod(a.folder.c_str(), 0777);
  expect_rebuilt(a, "an engine in a folder that others could enter");
  expect(mode_of(a.folder) == 0700, "the folder is closed again");
  expect(!exists(secret), "and its key is thrown away, for it could have been read");
  for (const mode_t mask : {0, 0777}) {
    ::unlink(secret.c_str());
    const mode_t usual = ::umask(mask);
    Spy spy(a.engine);
    spy.run(a.cache, a.key);
    ::umask(usual);
    expect(spy.builds == 1 && read_all(secret) != before, "a new key is made");
    expect(mode_of(a.path) == 0600 && mode_of(secret) == 0600, "what is written is the owner's alone, whatever the umask");
  }
}

void turned_down(Attacked &a) {
  int builds = 0, opens = 0;
  const auto build = [&] {
    ++builds;
    return a.engine;
  };
  a.cache.store(a.key, a.engine.data(), a.engine.size());
  expect(a.cache.get_or_build(a.key, build, [&](const Bytes &) { return ++opens == 2; }) && builds == 1, "an engine that TensorRT turns down is built once more");
  bool refused = false;
  try {
    a.cache.get_or_build(a.key, build, [](const Bytes &) { return false; });
  } catch (const CacheError &) {
    refused = true;
  }
  expect(refused, "one that it turns down again is an error");
  a.cache.store(a.key, nullptr, 0);
  expect(!a.cache.load(a.key), "nothing is no engine");
  Spy spy(a.engine);
  a.cache.store(a.key, a.engine.data(), a.engine.size());
  for (int i = 0; i < 3; ++i) spy.run(a.cache, a.key);
  expect(spy.builds == 0 && spy.opens == 3, "an engine is built once");
}

void attack(const std::string &base) {
  const std::string folder = base + "/a/engines/";
  EngineCache cache(folder);
  const char model[] = "a model";
  BuildFlags flags;
  flags.profiles.push_back({"x", {1, 4}, {1, 4}, {16, 4}});
  Attacked a{cache, engine_key(model, 7, "10.3.0", "Orin 00112233445566778899aabbccddeeff SM87", flags), "", cache.folder(), {}, {}};
  uint32_t state = 1;
  for (int i = 0; i < 700; ++i) {
    state = state * 1664525u + 1013904223u;
    a.engine.push_back(static_cast<unsigned char>(state >> 24));
  }
  a.path = a.folder + "/" + a.key + ".engine";
  expect(!cache.load(a.key), "an empty cache has nothing");
  cache.store(a.key, a.engine.data(), a.engine.size());
  a.file = read_all(a.path);
  expect(cache.load(a.key) == a.engine && a.file.size() == a.engine.size() + 48, "what was stored is loaded");
  bit_flips(a);
  sizes_and_modes(a);
  swapped_and_foreign(a);
  links_and_others(a);
  keys(a);
  turned_down(a);
}

}  // namespace

int main(int count, char **words) {
  const std::string command = count > 1 ? words[1] : "";
  try {
    if (command == "vectors" && count == 4) {
      check_vectors(words[2], words[3]);
    } else if (command == "attack" && count == 3) {
      attack(words[2]);
    } else if (command == "get" && count == 4) {
      const std::optional<Bytes> found = EngineCache(words[2]).load(words[3]);
      std::cout << (found ? hex(found->data(), found->size()) : "none") << "\n";
    } else if (command == "put" && count == 5) {
      const Bytes data = unhex(words[4]);
      EngineCache(words[2]).store(words[3], data.data(), data.size());
    } else {
      std::cerr << "usage: engine_cache_test vectors FILE FOLDER | attack FOLDER | get FOLDER KEY | put FOLDER KEY HEX\n";
      return 2;
    }
  } catch (const std::exception &error) {
    std::cerr << "engine_cache_test: " << error.what() << "\n";
    return 1;
  }
  if (failures == 0) std::cout << "ok\n";
  return failures == 0 ? 0 : 1;
}
