#include "manifest.h"

#include <cstdio>

#include "checked.h"

namespace eg {

namespace {

using Kind = Json::Kind;

constexpr size_t kMaxText = 2048;
constexpr size_t kMaxTensors = 2048;
constexpr size_t kMaxConditions = 64, kMaxComponents = 64, kMaxPrograms = 256, kMaxVariants = 64, kMaxDocuments = 64;
constexpr size_t kMaxGolden = 256, kMaxFused = 256, kMaxProviders = 16, kMaxOptions = 64;
constexpr int64_t kMaxSteps = 65536, kMaxThreads = 1024;

struct Dtype {
  const char *name;
  eg_dtype dtype;
  size_t bytes;
};
constexpr Dtype kDtypes[] = {{"float32", EG_FLOAT32, 4}, {"float64", EG_FLOAT64, 8}, {"float16", EG_FLOAT16, 2}, {"int64", EG_INT64, 8},
                             {"int32", EG_INT32, 4},     {"int8", EG_INT8, 1},       {"uint8", EG_UINT8, 1},     {"bool", EG_BOOL, 1}};

// Where something is in the manifest, for messages.
struct Where {
  char text[120];
  Where(const char *part, View name) { std::snprintf(text, sizeof text, "%s '%.*s'", part, EG_SHOW(name)); }
  Where(const char *part, size_t index) { std::snprintf(text, sizeof text, "%s[%zu]", part, index); }
};

double hex_float(View text, const char *where) {
  double value = 0.0;
  EG_CHECK(parse_hex_float(text, &value), EG_BAD_MANIFEST, "%s: '%.*s' is not a float64 in its hexadecimal form", where, EG_SHOW(text));
  return value;
}

Number optional_number(Json value, const char *where) {
  Number number;
  number.exists = value.exists();
  if (number.exists) number.value = hex_float(value.string(), where);
  return number;
}

// Macros, so that each use is a check of its own.
#define CHECK_NAME(name, where) \
  EG_CHECK(is_name(name), EG_BAD_MANIFEST, "%s: '%.*s' is not a name ([A-Za-z_][A-Za-z0-9_.-]*, at most 64 characters)", where, EG_SHOW(name))
#define CHECK_COUNT(count, most, where, what) EG_CHECK((count) <= (most), EG_LIMIT, "%s: %zu %s, at most %zu are allowed", where, size_t{count}, what, most)

// The bytes of a text that is written with escapes.
size_t text_size(View written) {
  size_t bytes = 0;
  for (size_t i = 0; i < written.size(); ++i, ++bytes) {
    if (written[i] == '\\') ++i;
  }
  return bytes;
}

void check_strings(Json object, const char *where) {
  for (Items i(object); i.next();) {
    EG_CHECK(i.value.kind() == Kind::string, EG_BAD_MANIFEST, "%s: '%.*s' does not hold a string", where, EG_SHOW(i.key));
  }
}

eg_dtype read_dtype(View name, const char *where) {
  const Dtype *found = nullptr;
  for (const Dtype &d : kDtypes) {
    if (name == d.name) found = &d;
  }
  EG_CHECK(found != nullptr, EG_BAD_MANIFEST, "%s: dtype '%.*s' is none", where, EG_SHOW(name));
  return found->dtype;
}

Shape read_shape(Json array, bool batch_allowed, const char *where) {
  Shape shape;
  for (Items i(array); i.next();) {
    EG_CHECK(shape.rank < kMaxSizes, EG_BAD_MANIFEST, "%s: a rank above %zu", where, kMaxSizes);
    if (batch_allowed && i.value.text() == "\"batch\"") {
      shape.size[shape.rank++] = kBatch;
      continue;
    }
    const int64_t size = i.value.kind() == Kind::integer ? i.value.integer() : 0;
    EG_CHECK(size >= 1 && size <= INT32_MAX, EG_BAD_MANIFEST, "%s: size %.*s, expected 1 .. 2^31 - 1", where, EG_SHOW(i.value.text()));
    shape.size[shape.rank++] = static_cast<int32_t>(size);
  }
  return shape;
}

void read_sample(Json value, Manifest *m) {
  Json high, kind, low, shape;
  read_fields(value, EG_BAD_MANIFEST, "sample", {{"high", Kind::string, &high}, {"kind", Kind::string, &kind}, {"low", Kind::string, &low}, {"shape", Kind::array, &shape}});
  m->low = hex_float(low.string(), "sample");
  m->high = hex_float(high.string(), "sample");
  m->sample = read_shape(shape, false, "sample");
  m->image = kind.string() == "image";
  EG_CHECK(m->image || kind.string() == "array", EG_BAD_MANIFEST, "sample: kind '%.*s', expected 'image' or 'array'", EG_SHOW(kind.string()));
  EG_CHECK(!m->image || (m->sample.rank == 3 && (m->sample.size[0] == 1 || m->sample.size[0] == 3)), EG_BAD_MANIFEST, "sample: an image has the shape [1 or 3, height, width]");
  EG_CHECK(m->low < m->high, EG_BAD_MANIFEST, "sample: low is not below high");
}

void read_condition(Json value, size_t index, Manifest *m) {
  const Where where("conditions", index);
  Json fallback, dtype, maximum, minimum, name, null, shape, summary;
  read_fields(value, EG_BAD_MANIFEST, where.text,
              {{"default", Kind::string, &fallback, true}, {"dtype", Kind::string, &dtype}, {"maximum", Kind::string, &maximum, true}, {"minimum", Kind::string, &minimum, true},
               {"name", Kind::string, &name}, {"null", Kind::string, &null, true}, {"shape", Kind::array, &shape}, {"summary", Kind::string, &summary}});
  Condition c;
  c.minimum = optional_number(minimum, where.text);
  c.maximum = optional_number(maximum, where.text);
  c.fallback = optional_number(fallback, where.text);
  c.null = optional_number(null, where.text);
  c.name = name.string();
  c.summary = summary.string();
  CHECK_NAME(c.name, where.text);
  c.dtype = read_dtype(dtype.string(), where.text);
  c.shape = read_shape(shape, false, where.text);
  CHECK_COUNT(text_size(c.summary), kMaxText, where.text, "bytes of the summary");
  EG_CHECK(!c.minimum.exists || !c.maximum.exists || c.minimum.value <= c.maximum.value, EG_BAD_MANIFEST, "%s: minimum is above maximum", where.text);
  m->conditions.push_back(c);
}

void read_tensors(Json array, const char *where, Manifest *m) {
  const size_t first = m->tensors.size();
  for (Items i(array); i.next();) {
    Json dtype, name, shape;
    read_fields(i.value, EG_BAD_MANIFEST, where, {{"dtype", Kind::string, &dtype}, {"name", Kind::string, &name}, {"shape", Kind::array, &shape}});
    TensorSpec t;
    t.name = name.string();
    CHECK_NAME(t.name, where);
    t.dtype = read_dtype(dtype.string(), where);
    t.shape = read_shape(shape, true, where);
    for (size_t k = first; k < m->tensors.size(); ++k) {
      EG_CHECK(m->tensors[k].name != t.name, EG_BAD_MANIFEST, "%s: the tensor '%.*s' stands twice", where, EG_SHOW(t.name));
    }
    m->tensors.push_back(t);
  }
  EG_CHECK(m->tensors.size() > first, EG_BAD_MANIFEST, "%s: a component needs at least one input and one output", where);
}

void read_component(View name, Json value, Manifest *m) {
  const Where where("component", name);
  Json inputs, outputs;
  read_fields(value, EG_BAD_MANIFEST, where.text, {{"inputs", Kind::array, &inputs}, {"outputs", Kind::array, &outputs}});
  Component c;
  c.name = name;
  c.first = static_cast<uint32_t>(m->tensors.size());
  c.inputs = static_cast<uint32_t>(inputs.count());
  c.outputs = static_cast<uint32_t>(outputs.count());
  CHECK_COUNT(m->tensors.size() + c.inputs + c.outputs, kMaxTensors, where.text, "tensors with those of the components before it");
  read_tensors(inputs, where.text, m);
  read_tensors(outputs, where.text, m);
  m->components.push_back(c);
}

void read_program(Json value, size_t index, Manifest *m) {
  const Where where("programs", index);
  Json member, name, steps;
  read_fields(value, EG_BAD_MANIFEST, where.text, {{"member", Kind::string, &member}, {"name", Kind::string, &name}, {"steps", Kind::integer, &steps}});
  CHECK_NAME(name.string(), where.text);
  const int64_t count = steps.integer();  // checked with what must agree, at the end
  m->programs.push_back({name.string(), member.string(), count >= 1 && count <= kMaxSteps ? static_cast<uint32_t>(count) : 0});
}

Golden read_golden(Json value, const char *where) {
  Json member, program, tolerance;
  read_fields(value, EG_BAD_MANIFEST, where, {{"member", Kind::string, &member}, {"program", Kind::string, &program}, {"tolerance", Kind::string, &tolerance}});
  return {program.string(), member.string(), hex_float(tolerance.string(), where)};
}

FusedEntry read_fused(Json value, const char *where) {
  Json batch, member, program;
  read_fields(value, EG_BAD_MANIFEST, where, {{"batch", Kind::integer, &batch}, {"member", Kind::string, &member}, {"program", Kind::string, &program}});
  const int64_t count = batch.integer();  // checked with what must agree, at the end
  return {program.string(), member.string(), count >= 1 && count <= EG_MAX_BATCH ? static_cast<uint32_t>(count) : 0};
}

void read_variant(Json value, size_t index, Manifest *m) {
  const Where where("variants", index);
  Json name, engine, threads;
  Variant v;
  read_fields(value, EG_BAD_MANIFEST, where.text,
              {{"components", Kind::object, &v.components}, {"engine", Kind::string, &engine}, {"fused", Kind::array, &v.fused}, {"golden", Kind::array, &v.golden},
               {"name", Kind::string, &name}, {"providers", Kind::array, &v.providers}, {"threads", Kind::integer, &threads}, {"weights", Kind::object, &v.weights}});
  v.name = name.string();
  v.engine = engine.string();
  CHECK_NAME(v.name, where.text);
  CHECK_NAME(v.engine, where.text);
  CHECK_COUNT(v.providers.count(), kMaxProviders, where.text, "providers");
  CHECK_COUNT(v.golden.count(), kMaxGolden, where.text, "golden vectors");
  CHECK_COUNT(v.fused.count(), kMaxFused, where.text, "fused programs");
  for (Items i(v.providers); i.next();) {
    Json provider, options;
    read_fields(i.value, EG_BAD_MANIFEST, where.text, {{"name", Kind::string, &provider}, {"options", Kind::object, &options}});
    CHECK_NAME(provider.string(), where.text);
    CHECK_COUNT(options.count(), kMaxOptions, where.text, "options of a provider");
    check_strings(options, where.text);
  }
  check_strings(v.components, where.text);
  check_strings(v.weights, where.text);
  for (Items i(v.golden); i.next();) read_golden(i.value, where.text);
  for (Items i(v.fused); i.next();) read_fused(i.value, where.text);
  const int64_t count = threads.integer();  // checked with what must agree, at the end
  v.threads = count >= 0 && count <= kMaxThreads ? static_cast<uint32_t>(count) : UINT32_MAX;
  m->variants.push_back(v);
}

// What must agree between the parts.
void check_agreement(const Manifest &m) {
  EG_CHECK(!m.programs.empty(), EG_INCONSISTENT, "manifest: no programs");
  EG_CHECK(!m.variants.empty(), EG_INCONSISTENT, "manifest: no variants");
  for (size_t i = 0; i < m.programs.size(); ++i) {
    const ProgramEntry &p = m.programs[i];
    EG_CHECK(p.steps != 0, EG_INCONSISTENT, "program '%.*s': steps must be in 1 .. %lld", EG_SHOW(p.name), static_cast<long long>(kMaxSteps));
    for (size_t k = 0; k < i; ++k) {
      EG_CHECK(m.programs[k].name != p.name, EG_INCONSISTENT, "manifest: the program '%.*s' stands twice", EG_SHOW(p.name));
      EG_CHECK(m.programs[k].member != p.member, EG_INCONSISTENT, "manifest: two programs share the member '%.*s'", EG_SHOW(p.member));
    }
  }
  for (size_t i = 0; i < m.conditions.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      EG_CHECK(m.conditions[k].name != m.conditions[i].name, EG_INCONSISTENT, "manifest: the condition '%.*s' stands twice", EG_SHOW(m.conditions[i].name));
    }
  }
  for (size_t i = 0; i < m.variants.size(); ++i) {
    const Variant &v = m.variants[i];
    for (size_t k = 0; k < i; ++k) {
      EG_CHECK(m.variants[k].name != v.name, EG_INCONSISTENT, "manifest: the variant '%.*s' stands twice", EG_SHOW(v.name));
    }
    EG_CHECK(v.components.count() == m.components.size(), EG_INCONSISTENT, "variant '%.*s' does not hold exactly the components", EG_SHOW(v.name));
    for (Items c(v.components); c.next();) {
      EG_CHECK(m.find_component(c.key) >= 0, EG_INCONSISTENT, "variant '%.*s' holds '%.*s', which is no component", EG_SHOW(v.name), EG_SHOW(c.key));
    }
    for (Items w(v.weights); w.next();) {
      EG_CHECK(m.find_component(w.key) >= 0, EG_INCONSISTENT, "variant '%.*s' has weights of '%.*s', which is no component", EG_SHOW(v.name), EG_SHOW(w.key));
    }
    for (Items g(v.golden); g.next();) {
      const Golden vector = read_golden(g.value, "golden");
      EG_CHECK(m.find_program(vector.program) >= 0, EG_INCONSISTENT, "variant '%.*s' has a golden vector of '%.*s', which is no program", EG_SHOW(v.name), EG_SHOW(vector.program));
      EG_CHECK(vector.tolerance >= 0.0, EG_INCONSISTENT, "variant '%.*s' has a negative tolerance", EG_SHOW(v.name));
    }
    EG_CHECK(v.threads <= kMaxThreads, EG_INCONSISTENT, "variant '%.*s': threads must be in 0 .. %lld", EG_SHOW(v.name), static_cast<long long>(kMaxThreads));
    const size_t fused = v.fused.count();
    for (size_t f = 0; f < fused; ++f) {
      const FusedEntry entry = fused_of(v, f);
      EG_CHECK(m.find_program(entry.program) >= 0, EG_INCONSISTENT, "variant '%.*s' fuses '%.*s', which is no program", EG_SHOW(v.name), EG_SHOW(entry.program));
      EG_CHECK(entry.batch != 0, EG_INCONSISTENT, "variant '%.*s' has a fused batch outside 1 .. %d", EG_SHOW(v.name), EG_MAX_BATCH);
      for (size_t k = 0; k < f; ++k) {
        const FusedEntry other = fused_of(v, k);
        EG_CHECK(other.program != entry.program || other.batch != entry.batch, EG_INCONSISTENT, "variant '%.*s' fuses '%.*s' twice for one batch", EG_SHOW(v.name), EG_SHOW(entry.program));
      }
    }
  }
}

template <class List>
int find_name(const List &list, View name) {
  for (size_t i = 0; i < list.size(); ++i) {
    if (list[i].name == name) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace

uint64_t Shape::elements() const {
  int64_t sizes[kMaxSizes];
  size_t count = 0;
  for (uint32_t i = 0; i < rank; ++i) {
    if (size[i] != kBatch) sizes[count++] = size[i];
  }
  return product(sizes, count);
}

bool Shape::operator==(const Shape &other) const {
  if (rank != other.rank) return false;
  for (uint32_t i = 0; i < rank; ++i) {
    if (size[i] != other.size[i]) return false;
  }
  return true;
}

int Manifest::find_condition(View wanted) const { return find_name(conditions, wanted); }
int Manifest::find_component(View wanted) const { return find_name(components, wanted); }
int Manifest::find_program(View wanted) const { return find_name(programs, wanted); }
int Manifest::find_variant(View wanted) const { return find_name(variants, wanted); }

int Manifest::find_tensor(const Component &component, View wanted, bool output) const {
  const uint32_t begin = output ? component.inputs : 0, end = output ? component.inputs + component.outputs : component.inputs;
  for (uint32_t i = begin; i < end; ++i) {
    if (tensors[component.first + i].name == wanted) return static_cast<int>(i);
  }
  return -1;
}

void read_manifest(Json text, Manifest *m) {
  Json components, conditions, format, licence, members, name, producer, programs, sample, summary, trusted, variants;
  read_fields(text, EG_BAD_MANIFEST, "manifest",
              {{"components", Kind::object, &components}, {"conditions", Kind::array, &conditions}, {"documents", Kind::object, &m->documents}, {"format", Kind::string, &format},
               {"licence", Kind::string, &licence}, {"members", Kind::array, &members}, {"name", Kind::string, &name}, {"producer", Kind::string, &producer},
               {"programs", Kind::array, &programs}, {"sample", Kind::object, &sample}, {"summary", Kind::string, &summary}, {"trusted_pickle", Kind::integer, &trusted},
               {"variants", Kind::array, &variants}});
  EG_CHECK(format.string() == "1.0", EG_BAD_VERSION, "manifest: format '%.*s', the header says 1.0", EG_SHOW(format.string()));
  m->name = name.string();
  m->summary = summary.string();
  m->licence = licence.string();
  m->producer = producer.string();
  CHECK_COUNT(text_size(m->name), kMaxText, "manifest", "bytes of the name");
  CHECK_COUNT(text_size(m->summary), kMaxText, "manifest", "bytes of the summary");
  CHECK_COUNT(text_size(m->licence), kMaxText, "manifest", "bytes of the licence");
  CHECK_COUNT(text_size(m->producer), kMaxText, "manifest", "bytes of the producer");
  CHECK_COUNT(conditions.count(), kMaxConditions, "manifest", "conditions");
  CHECK_COUNT(components.count(), kMaxComponents, "manifest", "components");
  CHECK_COUNT(programs.count(), kMaxPrograms, "manifest", "programs");
  CHECK_COUNT(variants.count(), kMaxVariants, "manifest", "variants");
  CHECK_COUNT(m->documents.count(), kMaxDocuments, "manifest", "documents");
  for (Items i(components); i.next();) CHECK_NAME(i.key, "components");
  for (Items i(m->documents); i.next();) CHECK_NAME(i.key, "documents");
  read_sample(sample, m);
  size_t index = 0;
  for (Items i(conditions); i.next();) read_condition(i.value, index++, m);
  for (Items i(components); i.next();) read_component(i.key, i.value, m);
  index = 0;
  for (Items i(programs); i.next();) read_program(i.value, index++, m);
  index = 0;
  for (Items i(variants); i.next();) read_variant(i.value, index++, m);
  check_strings(m->documents, "documents");
  m->trusted_pickle = trusted.integer() == 1;
  EG_CHECK(trusted.integer() == 0 || trusted.integer() == 1, EG_INCONSISTENT, "manifest: trusted_pickle is neither 0 nor 1");
  check_agreement(*m);
}

View member_of(Json object, View key) {
  for (Items i(object); i.next();) {
    if (i.key == key) return i.value.string();
  }
  return View();
}

Golden golden_of(const Variant &variant, size_t index) {
  Items i(variant.golden);
  for (size_t k = 0; k <= index; ++k) i.next();
  return read_golden(i.value, "golden");
}

FusedEntry fused_of(const Variant &variant, size_t index) {
  Items i(variant.fused);
  for (size_t k = 0; k <= index; ++k) i.next();
  return read_fused(i.value, "fused");
}

size_t bytes_of(eg_dtype dtype) { return kDtypes[dtype - 1].bytes; }
const char *dtype_name(eg_dtype dtype) { return kDtypes[dtype - 1].name; }
bool is_float(eg_dtype dtype) { return dtype <= EG_FLOAT16; }

bool fits(double value, eg_dtype dtype) {
  if (!(value > -0x1.ffffffp+127 && value < 0x1.ffffffp+127)) return false;  // float32's largest and half a unit more
  const float rounded = static_cast<float>(value);
  double low = 0.0, above = 0.0;
  switch (dtype) {
    case EG_FLOAT32:
    case EG_FLOAT64: return true;
    case EG_FLOAT16: return rounded > -65520.0f && rounded < 65520.0f;
    case EG_INT64: low = -0x1p63, above = 0x1p63; break;
    case EG_INT32: low = -0x1p31, above = 0x1p31; break;
    case EG_INT8: low = -128.0, above = 128.0; break;
    case EG_UINT8: above = 256.0; break;
    default: above = 2.0; break;
  }
  return value >= low && value < above && static_cast<double>(rounded) == value && value == static_cast<double>(static_cast<int64_t>(value));
}

}  // namespace eg
