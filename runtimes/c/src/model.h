// What the handles of the C interface point to.
#pragma once

#include <atomic>
#include <mutex>

#include "bundle.h"
#include "plan.h"

namespace eg {

// An engine that sessions with equal options share.
struct SharedEngine {
  uint32_t variant, threads;
  const char *path;  // of libonnxruntime, as it was given; NULL if it was not
  uint32_t users;
  Engine *engine;
};

// Strings of the manifest for C: they end in NUL.
struct ModelTexts {
  explicit ModelTexts(Memory &memory) : kept(memory), conditions(&memory), components(&memory), tensors(&memory), programs(&memory), variants(&memory) {}

  struct Condition {
    const char *name, *summary;
  };
  struct Variant {
    const char *name, *engine, *providers, *milliseconds;
  };
  Texts kept;
  const char *name = nullptr, *summary = nullptr, *licence = nullptr, *producer = nullptr;
  Vec<Condition> conditions;
  Vec<const char *> components, tensors, programs;
  Vec<Variant> variants;
};

}  // namespace eg

// Immutable but for the count of its users and the engines that they share.
struct eg_model {
  eg_model(const eg_allocator *allocator, const char *path, bool mapped);
  eg_model(const eg_allocator *allocator, const void *bytes, size_t size, bool borrowed);
  ~eg_model() = default;
  eg_model(const eg_model &) = delete;
  eg_model &operator=(const eg_model &) = delete;

  void retain() { references.fetch_add(1, std::memory_order_relaxed); }
  void release();

  // The engine for a variant, opened or shared; give it back with `return_engine`.
  eg::Engine *take_engine(uint32_t variant, uint32_t threads, const char *path);
  void return_engine(eg::Engine *engine) noexcept;

  eg::Memory memory;
  eg::Bundle bundle;
  eg::ModelTexts texts;

 private:
  void keep_texts();
  const char *measured(eg::View variant);

  std::atomic<uint32_t> references{1};
  std::mutex mutex;
  eg::Vec<eg::SharedEngine> engines;
};
