#include "model.h"

#include <cstring>

#include "ort.h"

namespace {

using eg::Items;
using eg::Json;
using eg::View;

// A string of the manifest as its characters, kept in `texts`.
const char *kept(eg::Texts &texts, eg::Memory &memory, View written) {
  if (written.find('\\') == View::npos) return texts.keep(written);
  const eg::Block plain(memory, written.size());
  char *characters = reinterpret_cast<char *>(plain.data());
  return texts.keep(View(characters, eg::unescape(written, characters)));
}

bool same_path(const char *a, const char *b) { return a == b || (a != nullptr && b != nullptr && std::strcmp(a, b) == 0); }

}  // namespace

eg_model::eg_model(const eg_allocator *allocator, const char *path, bool mapped)
    : memory(allocator), bundle(memory, eg::Bytes::of_file(memory, path, mapped)), texts(memory), engines(&memory) {
  keep_texts();
}

eg_model::eg_model(const eg_allocator *allocator, const void *bytes, size_t size, bool borrowed)
    : memory(allocator), bundle(memory, eg::Bytes::of_memory(memory, bytes, size, borrowed)), texts(memory), engines(&memory) {
  keep_texts();
}

void eg_model::keep_texts() {
  const eg::Manifest &m = bundle.manifest();
  const auto keep = [&](View written) { return kept(texts.kept, memory, written); };
  texts.name = keep(m.name);
  texts.summary = keep(m.summary);
  texts.licence = keep(m.licence);
  texts.producer = keep(m.producer);
  for (const eg::Condition &c : m.conditions) texts.conditions.push_back({keep(c.name), keep(c.summary)});
  for (const eg::Component &c : m.components) texts.components.push_back(keep(c.name));
  for (const eg::TensorSpec &t : m.tensors) texts.tensors.push_back(keep(t.name));
  for (const eg::ProgramEntry &p : m.programs) texts.programs.push_back(keep(p.name));
  for (const eg::Variant &v : m.variants) {
    char providers[16 * 65];  // at most 16 names of at most 64 characters
    size_t size = 0;
    for (Items i(v.providers); i.next();) {
      if (size > 0) providers[size++] = ',';
      size += eg::member_of(i.value, "name").copy(providers + size, sizeof providers - size);
    }
    texts.variants.push_back({keep(v.name), keep(v.engine), texts.kept.keep(View(providers, size)), measured(v.name)});
  }
}

// What the builder measured of a variant, if the bundle says so: documents["measured"].milliseconds[variant].
const char *eg_model::measured(View variant) {
  const View member = eg::member_of(bundle.manifest().documents, "measured");
  if (member.empty()) return nullptr;
  const View text = bundle.member(member);
  try {
    eg::check_json(text);
  } catch (const eg::Fault &) {
    return nullptr;  // eg_document says what is wrong with it
  }
  const Json document(text);
  if (document.kind() != Json::Kind::object) return nullptr;
  for (Items i(document); i.next();) {
    if (i.key != "milliseconds" || i.value.kind() != Json::Kind::object) continue;
    for (Items figure(i.value); figure.next();) {
      if (figure.key == variant && figure.value.kind() == Json::Kind::string) return kept(texts.kept, memory, figure.value.string());
    }
  }
  return nullptr;
}

void eg_model::release() {
  if (references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  eg::Memory own = memory;  // outlives what it gave
  own.destroy(this);
}

eg::SharedEngine eg_model::take_engine(uint32_t variant, int fused, uint32_t threads, const char *path) {
  const std::lock_guard<std::mutex> lock(mutex);
  for (eg::SharedEngine &e : engines) {
    if (e.variant != variant || e.fused != fused || e.threads != threads || !same_path(e.path, path)) continue;
    ++e.users;
    return e;
  }
  engines.reserve(engines.size() + 1);  // so that nothing fails once the engine is open
  const char *known = path == nullptr ? nullptr : texts.kept.keep(path);
  eg::Fused *program = fused < 0 ? nullptr : memory.make<eg::Fused>(memory);
  try {
    eg::Engine *engine = open_engine(bundle.manifest().variants[variant], fused, program, threads, path);
    engines.push_back({variant, threads, fused, known, 1, engine, program});
  } catch (...) {
    if (program != nullptr) memory.destroy(program);
    throw;
  }
  return engines.back();
}

eg::Engine *eg_model::open_engine(const eg::Variant &variant, int fused, eg::Fused *program, uint32_t threads, const char *path) {
  eg::Networks networks(memory, program == nullptr ? bundle.manifest() : program->manifest);
  const auto add_weights = [&](View member) { networks.weights.back().push_back({member, bundle.member(member)}); };
  if (program == nullptr) {
    for (const eg::Component &c : bundle.manifest().components) {
      networks.models.push_back(bundle.member(eg::member_of(variant.components, c.name)));
      networks.weights.emplace_back();
      const View member = eg::member_of(variant.weights, c.name);
      if (!member.empty()) add_weights(member);
    }
  } else {
    const eg::FusedEntry entry = eg::fused_of(variant, static_cast<size_t>(fused));
    eg::make_fused(memory, bundle, entry, program);
    networks.kind = "fused program";
    networks.batch = entry.batch;
    networks.models.push_back(bundle.member(entry.member));
    networks.weights.emplace_back();
    for (Items w(variant.weights); w.next();) add_weights(w.value.string());
  }
  return eg::open_onnxruntime(memory, networks, variant.providers, threads, path);
}

void eg_model::return_engine(eg::Engine *engine) noexcept {
  const std::lock_guard<std::mutex> lock(mutex);
  for (size_t i = 0; i < engines.size(); ++i) {
    if (engines[i].engine != engine) continue;
    if (--engines[i].users > 0) return;
    eg::Fused *program = engines[i].program;
    engines.erase(engines.begin() + static_cast<ptrdiff_t>(i));
    engine->destroy();
    if (program != nullptr) memory.destroy(program);
    return;
  }
}
