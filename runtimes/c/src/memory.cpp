#include "memory.h"

#include <cstdlib>
#include <cstring>

namespace eg {

namespace {

void *allocate_aligned(void *, size_t size, size_t alignment) {
  if (alignment <= alignof(std::max_align_t)) return std::malloc(size);
  void *block = nullptr;
  return posix_memalign(&block, alignment, size) == 0 ? block : nullptr;
}

void release_aligned(void *, void *block, size_t, size_t) { std::free(block); }

constexpr size_t kChunk = 2048;

}  // namespace

Memory::Memory(const eg_allocator *allocator) : allocator_{sizeof(eg_allocator), 0, nullptr, allocate_aligned, release_aligned} {
  if (allocator != nullptr) allocator_ = *allocator;
}

void *Memory::do_allocate(size_t size, size_t alignment) {
  void *block = allocator_.allocate(allocator_.context, size, alignment);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}

void Memory::do_deallocate(void *block, size_t size, size_t alignment) { allocator_.release(allocator_.context, block, size, alignment); }

const char *Texts::keep(View text) {
  const size_t size = text.size() + 1;
  if (chunks_.empty() || chunks_.back().size() - used_ < size) {
    chunks_.emplace_back(*memory_, size < kChunk ? kChunk : size);
    used_ = 0;
  }
  char *place = reinterpret_cast<char *>(chunks_.back().data()) + used_;
  std::memcpy(place, text.data(), text.size());
  place[text.size()] = '\0';
  used_ += size;
  return place;
}

}  // namespace eg
