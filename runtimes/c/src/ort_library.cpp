#include "ort_library.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <dlfcn.h>
#include <unistd.h>

namespace eg {

namespace {

using Path = char[256];

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

// The library inside the Python package, of any Python under PREFIX/lib.
bool find_in_prefix(const char *prefix, Path &found) {
  static const char *const kSites[] = {"site-packages", "dist-packages"};
  Path lib;
  if (!compose(lib, prefix, "/lib", "")) return false;
  DIR *list = opendir(lib);
  if (list == nullptr) return false;
  bool any = false;
  while (const dirent *entry = readdir(list)) {
    if (any || std::strncmp(entry->d_name, "python3", 7) != 0) continue;
    for (const char *site : kSites) {
      Path folder, package;
      any = any || (compose(folder, lib, "/", entry->d_name) && compose(package, folder, "/", site) && compose(folder, package, "/onnxruntime/capi", "") && find_file(folder, kPrefix, found));
    }
  }
  closedir(list);
  return any;
}

// The prefixes of the Pythons on PATH, of $VIRTUAL_ENV and of the user.
bool find_in_python(Path &found) {
  const char *environment = std::getenv("VIRTUAL_ENV");
  if (environment != nullptr && find_in_prefix(environment, found)) return true;
  const char *path = std::getenv("PATH");
  for (const char *at = path == nullptr ? "" : path; *at != '\0';) {
    const size_t size = std::strcspn(at, ":");
    Path folder, python;
    if (size > 0 && size < sizeof folder) {
      std::memcpy(folder, at, size);
      folder[size] = '\0';
      Path prefix;
      if (compose(python, folder, "/python3", "") && access(python, X_OK) == 0 && compose(prefix, folder, "/..", "") && find_in_prefix(prefix, found)) return true;
    }
    at += size + (at[size] == ':' ? 1 : 0);
  }
  const char *home = std::getenv("HOME");
  Path local;
  return home != nullptr && compose(local, home, "/.local", "") && find_in_prefix(local, found);
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

void *search(Path &used) {
  for (const char *name : kNames) {
    void *handle = open_library(name);
    if (handle != nullptr) {
      compose(used, name, "", "");
      return handle;
    }
  }
  Path folder;
  if (own_folder(folder) && find_file(folder, kPrefix, used)) {
    void *handle = open_library(used);
    if (handle != nullptr) return handle;
  }
  return find_in_python(used) ? open_library(used) : nullptr;
}

}  // namespace

OrtLibrary load_onnxruntime(const char *path) {
  OrtLibrary library{};
  if (path != nullptr) {
    library.handle = open_library(path);
    if (library.handle == nullptr) fail(EG_BACKEND_MISSING, "ONNX Runtime cannot be loaded from the path given: %.300s", dlerror());
    compose(library.path, path, "", "");
  } else {
    library.handle = search(library.path);
    if (library.handle == nullptr) {
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
