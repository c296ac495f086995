// All memory of a model and its sessions: the caller's allocator behind std::pmr, so that containers use it and running out is std::bad_alloc.
#pragma once

#include <memory>
#include <memory_resource>
#include <new>
#include <utility>
#include <vector>

#include "fault.h"

namespace eg {

template <class T>
using Vec = std::pmr::vector<T>;

class Memory final : public std::pmr::memory_resource {
 public:
  // NULL: malloc and free. The allocator is copied; it must have been checked.
  explicit Memory(const eg_allocator *allocator);

  template <class T, class... Arguments>
  T *make(Arguments &&...arguments) {
    void *block = allocate(sizeof(T), alignof(T));
    try {
      return new (block) T(std::forward<Arguments>(arguments)...);
    } catch (...) {
      deallocate(block, sizeof(T), alignof(T));
      throw;
    }
  }

  template <class T>
  void destroy(T *object) noexcept {
    if (object == nullptr) return;
    object->~T();
    deallocate(object, sizeof(T), alignof(T));
  }

 private:
  void *do_allocate(size_t size, size_t alignment) override;
  void do_deallocate(void *block, size_t size, size_t alignment) override;
  bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override { return this == &other; }

  eg_allocator allocator_;
};

// An uninitialised block of bytes aligned to 64, released with its owner.
class Block {
 public:
  explicit Block(Memory &memory) : memory_(&memory) {}
  Block(Memory &memory, size_t size) : memory_(&memory), data_(static_cast<unsigned char *>(size ? memory.allocate(size, 64) : nullptr)), size_(size) {}
  Block(Block &&other) noexcept : memory_(other.memory_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Block &operator=(Block &&other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Block(const Block &) = delete;
  Block &operator=(const Block &) = delete;
  ~Block() {
    if (data_ != nullptr) memory_->deallocate(data_, size_, 64);
  }

  unsigned char *data() const { return data_; }
  size_t size() const { return size_; }

 private:
  Memory *memory_;
  unsigned char *data_ = nullptr;
  size_t size_ = 0;
};

// Strings that end in NUL and live as long as their owner.
class Texts {
 public:
  explicit Texts(Memory &memory) : chunks_(&memory), memory_(&memory) {}
  const char *keep(View text);

 private:
  Vec<Block> chunks_;
  Memory *memory_;
  size_t used_ = 0;
};

}  // namespace eg
