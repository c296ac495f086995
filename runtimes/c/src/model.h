// What the handles of the C interface point to.
#pragma once

#include <atomic>
#include <mutex>

#include "bundle.h"
#include "fused.h"
#include "plan.h"

namespace eg {

// An engine that sessions with equal options share: of a variant's components, or of one of its fused programs.
struct SharedEngine {
  uint32_t variant, threads;
  int fused;         // its index in the variant, or -1
  const char *path;  // of libonnxruntime, as it was given; NULL if it was not
  uint32_t users;
  Engine *engine;
  Fused *program;    // of a fused one
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

  // The engine for a variant's components (fused: -1) or for one of its fused programs, opened or shared; give it back with `return_engine`.
  eg::SharedEngine take_engine(uint32_t variant, int fused, uint32_t threads, const char *path);
  void return_engine(eg::Engine *engine) noexcept;

  eg::Memory memory;
  eg::Bundle bundle;
  eg::ModelTexts texts;

 private:
  void keep_texts();
  const char *measured(eg::View variant);
  eg::Engine *open_engine(const eg::Variant &variant, int fused, eg::Fused *program, uint32_t threads, const char *path);

  std::atomic<uint32_t> references{1};
  std::mutex mutex;
  eg::Vec<eg::SharedEngine> engines;
};
