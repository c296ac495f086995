#include "ort_library.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

namespace eg {

namespace {

using Path = char[PATH_MAX];

#if defined(__APPLE__)
constexpr const char *kNames[] = {"libonnxruntime.dylib"};
constexpr const char *kPrefix = "libonnxruntime.";
#else
constexpr const char *kNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
constexpr const char *kPrefix = "libonnxruntime.so";
#endif

// a + b + c in `out`; false if it is too long.
bool compose(Path &out, const char *a, const char *b, const char *c) {
  const int size = std::snprintf(out, sizeof out, "%s%s%s", a, b, c);
  return size > 0 && static_cast<size_t>(size) < sizeof out;
}

// The first file of a folder whose name begins so; false if there is none.
bool find_file(const char *folder, const char *prefix, Path &found) {
  DIR *list = opendir(folder);
  if (list == nullptr) return false;
  bool any = false;
  while (const dirent *entry = readdir(list)) {
    if (std::strncmp(entry->d_name, prefix, std::strlen(prefix)) == 0 && compose(found, folder, "/", entry->d_name)) {
      any = true;
      break;
    }
  }
  closedir(list);
  return any;
}

// The folder that libedgegen lies in.
bool own_folder(Path &folder) {
  Dl_info about;
  if (dladdr(reinterpret_cast<void *>(&eg_abi_version), &about) == 0 || about.dli_fname == nullptr || !compose(folder, about.dli_fname, "", "")) return false;
  char *slash = std::strrchr(folder, '/');
  if (slash == nullptr) return false;
  *slash = '\0';
  return true;
}

void *open_library(const char *path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }

// The usual places, one after another, until a library loads.
class Search {
 public:
  explicit Search(OrtLibrary *library) : library_(library) {}

  bool run() {
    for (const char *name : kNames) {
      library_->handle = open_library(name);
      if (library_->handle == nullptr) continue;
      compose(library_->path, name, "", "");
      return true;
    }
    Path folder;
    return (own_folder(folder) && in_folder(folder)) || in_pythons();
  }

  // What was found first and did not load, and why; "" if nothing was found.
  char refused[300] = "";

 private:
  bool in_folder(const char *folder) {
    Path file;
    if (!find_file(folder, kPrefix, file)) return false;
    library_->handle = open_library(file);
    if (library_->handle == nullptr) {
      if (refused[0] == '\0') std::snprintf(refused, sizeof refused, "%s", dlerror());
      return false;
    }
    compose(library_->path, file, "", "");
    return true;
  }

  // The package onnxruntime of any Python under PREFIX/lib.
  bool in_prefix(const char *prefix) {
    static const char *const kSites[] = {"site-packages", "dist-packages"};
    Path lib;
    if (!compose(lib, prefix, "/lib", "")) return false;
    DIR *list = opendir(lib);
    if (list == nullptr) return false;
    bool found = false;
    while (const dirent *entry = readdir(list)) {
      if (found || std::strncmp(entry->d_name, "python3", 7) != 0) continue;
      for (const char *site : kSites) {
        Path folder, package;
        found = found || (compose(folder, lib, "/", entry->d_name) && compose(package, folder, "/", site) && compose(folder, package, "/onnxruntime/capi", "") && in_folder(folder));
      }
    }
    closedir(list);
    return found;
  }

  // $VIRTUAL_ENV, the Pythons on PATH, and what is installed for the user.
  bool in_pythons() {
    const char *environment = std::getenv("VIRTUAL_ENV");
    if (environment != nullptr && in_prefix(environment)) return true;
    const char *path = std::getenv("PATH");
    for (const char *at = path == nullptr ? "" : path; *at != '\0';) {
      const size_t size = std::strcspn(at, ":");
      Path folder, python, prefix;
      if (size > 0 && size < sizeof folder) {
        std::memcpy(folder, at, size);
        folder[size] = '\0';
        if (compose(python, folder, "/python3", "") && access(python, X_OK) == 0 && compose(prefix, folder, "/..", "") && in_prefix(prefix)) return true;
      }
      at += size + (at[size] == ':' ? 1 : 0);
    }
    const char *home = std::getenv("HOME");
    Path local;
    return home != nullptr && compose(local, home, "/.local", "") && in_prefix(local);
  }

  OrtLibrary *library_;
};

}  // namespace

OrtLibrary load_onnxruntime(const char *path) {
  OrtLibrary library{};
  if (path != nullptr) {
    library.handle = open_library(path);
    if (library.handle == nullptr) fail(EG_BACKEND_MISSING, "ONNX Runtime cannot be loaded from the path given: %.300s", dlerror());
    compose(library.path, path, "", "");
  } else {
    Search search(&library);
    if (!search.run()) {
      if (search.refused[0] != '\0') fail(EG_BACKEND_MISSING, "ONNX Runtime was found and cannot be loaded: %s. Install another (pip install onnxruntime), or give its path", search.refused);
      fail(EG_BACKEND_MISSING,
           "ONNX Runtime was not found: no %s where the system looks, beside libedgegen, or in a Python's onnxruntime package. "
           "Install it (pip install onnxruntime), or give its path",
           kNames[0]);
    }
  }
  const auto base = reinterpret_cast<const OrtApiBase *(*)()>(dlsym(library.handle, "OrtGetApiBase"));
  if (base == nullptr) fail(EG_BACKEND_MISSING, "%s is not ONNX Runtime: it has no OrtGetApiBase", library.path);
  library.version = base()->GetVersionString();
  library.api = base()->GetApi(kOrtApi);
  if (library.api == nullptr) fail(EG_BACKEND_TOO_OLD, "ONNX Runtime %s (%s) is too old: 1.%u or newer is needed", library.version, library.path, kOrtApi);
  return library;  // never unloaded: threads of it may outlive what uses it
}

}  // namespace eg
