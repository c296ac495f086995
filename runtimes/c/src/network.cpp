#include "network.h"

#include <algorithm>

#include "checked.h"

namespace eg {

namespace {

const char *const kContrib[] = {"BiasGelu", "DequantizeLinear", "FastGelu", "Gelu", "MatMulNBits", "QuantizeLinear", "QuickGelu"};
constexpr uint64_t kAlignment = 64;
constexpr int32_t kExternal = 1;

struct OnnxType {
  int64_t number;
  eg_dtype dtype;
};
constexpr OnnxType kTypes[] = {{1, EG_FLOAT32}, {2, EG_UINT8}, {3, EG_INT8}, {6, EG_INT32}, {7, EG_INT64}, {9, EG_BOOL}, {10, EG_FLOAT16}, {11, EG_FLOAT64}};

// 0 for types that components may not hold.
eg_dtype dtype_of(int64_t onnx_type) {
  for (const OnnxType &t : kTypes) {
    if (t.number == onnx_type) return t.dtype;
  }
  return 0;
}

// The fields of a protobuf message, in the order of its bytes.
class Fields {
 public:
  enum Wire { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

  // known: bit n is set if the message has a field n; others are refused. once: bit n is set if field n may stand at most once.
  Fields(View message, const char *what, uint64_t known, uint64_t once) : message_(message), what_(what), known_(known), once_(once) {}

  bool next() {
    if (at_ == message_.size()) return false;
    const uint64_t tag = read_varint();
    number = tag >> 3;
    wire = static_cast<int>(tag & 7);
    EG_CHECK(number < 64 && (known_ >> number & 1) != 0, EG_INCONSISTENT, "not an ONNX network that this library knows: %s has field %llu", what_, static_cast<unsigned long long>(number));
    const uint64_t bit = uint64_t{1} << number;
    EG_CHECK((seen_ & once_ & bit) == 0, EG_INCONSISTENT, "not an ONNX network: %s has field %llu twice", what_, static_cast<unsigned long long>(number));
    seen_ |= bit;
    switch (wire) {
      case varint: value = read_varint(); break;
      case fixed64: read_bytes(8); break;
      case fixed32: read_bytes(4); break;
      default:
        EG_CHECK(wire == bytes, EG_INCONSISTENT, "not an ONNX network: %s has a field of a wire type that is not used", what_);
        data = read_bytes(read_varint());
    }
    return true;
  }

  // The field's bytes, or its number; refused if it is encoded as something else.
  View text() const {
    EG_CHECK(wire == bytes, EG_INCONSISTENT, "not an ONNX network: %s has a field of another type", what_);
    return data;
  }
  uint64_t integer() const {
    EG_CHECK(wire == varint, EG_INCONSISTENT, "not an ONNX network: %s has a field of another type", what_);
    return value;
  }

  uint64_t number = 0;
  int wire = 0;
  uint64_t value = 0;
  View data;

 private:
  uint64_t read_varint() {
    uint64_t result = 0;
    for (unsigned shift = 0;; shift += 7) {
      EG_CHECK(at_ < message_.size() && shift < 64, EG_INCONSISTENT, "not an ONNX network: %s is cut", what_);
      const unsigned char c = static_cast<unsigned char>(message_[at_++]);
      result |= static_cast<uint64_t>(c & 0x7F) << shift;
      if (c < 0x80) return result;
    }
  }

  View read_bytes(uint64_t size) {
    EG_CHECK(size <= message_.size() - at_, EG_INCONSISTENT, "not an ONNX network: %s is cut", what_);
    const size_t begin = at_;
    at_ += static_cast<size_t>(size);
    return message_.substr(begin, static_cast<size_t>(size));
  }

  View message_;
  const char *what_;
  uint64_t known_, once_;
  uint64_t seen_ = 0;
  size_t at_ = 0;
};

constexpr uint64_t bit_set() { return 0; }
template <class... More>
constexpr uint64_t bit_set(int first, More... more) {
  return uint64_t{1} << first | bit_set(more...);
}

// Field numbers of onnx.proto.
constexpr uint64_t kModel = bit_set(1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26), kGraph = bit_set(1, 2, 5, 10, 11, 12, 13, 14, 15, 16);
constexpr uint64_t kNode = bit_set(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), kAttribute = bit_set(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 20, 21, 22, 23);
constexpr uint64_t kTensor = bit_set(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16), kEntry = bit_set(1, 2);
constexpr uint64_t kValue = bit_set(1, 2, 3, 4), kType = bit_set(1, 4, 5, 6, 7, 8, 9), kTensorType = bit_set(1, 2), kShapeOf = bit_set(1), kDim = bit_set(1, 2, 3);

struct Constant {
  View name;
  int64_t type;
  uint64_t count;
};

bool decimal(View text, uint64_t *value) {
  if (text.empty() || text.size() > 19 || (text[0] == '0' && text.size() > 1)) return false;
  *value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9') return false;
    *value = *value * 10 + static_cast<uint64_t>(c - '0');
  }
  return true;
}

// Checks one network.
class Checker {
 public:
  Checker(Memory &memory, const Manifest &manifest, const Component &component, uint32_t batch, const Vec<Weights> &weights, Network *network)
      : manifest_(manifest), component_(component), batch_(batch), weights_(weights), network_(network), constants_(&memory), dims_(&memory) {}

  void model(View bytes) {
    View graph;
    bool opset = false;
    for (Fields f(bytes, "the model", kModel, bit_set(7)); f.next();) {
      EG_CHECK(f.number != 20, EG_INCONSISTENT, "%s: has training information, which components may not", where());
      EG_CHECK(f.number != 25, EG_INCONSISTENT, "%s: has a model-local function; inline it", where());
      if (f.number == 7) graph = f.text();
      if (f.number == 8) opset = true;
    }
    EG_CHECK(!graph.empty() && opset, EG_INCONSISTENT, "%s: is not an ONNX model: it has no nodes or no opset", where());
    initializers(graph);
    nodes(graph);
    values(graph, 11, component_.first, component_.inputs, "input");
    values(graph, 12, component_.first + component_.inputs, component_.outputs, "output");
  }

 private:
  // The component's name, for messages; it was checked to be short.
  const char *where() {
    const size_t size = component_.name.copy(where_, sizeof where_ - 1);
    where_[size] = '\0';
    return where_;
  }

  static Fields graph_fields(View graph) { return Fields(graph, "the graph", kGraph, bit_set(2, 10)); }

  void initializers(View graph) {
    for (Fields f = graph_fields(graph); f.next();) {
      EG_CHECK(f.number != 15, EG_INCONSISTENT, "%s: has sparse constants, which components may not", where());
      if (f.number == 5) constants_.push_back(tensor(f.text(), true));
    }
    std::sort(constants_.begin(), constants_.end(), [](const Constant &a, const Constant &b) { return a.name < b.name; });
    for (size_t i = 1; i < constants_.size(); ++i) {
      EG_CHECK(constants_[i - 1].name != constants_[i].name, EG_INCONSISTENT, "%s: has two constants of the name '%.*s'", where(), EG_SHOW(constants_[i].name));
    }
  }

  const Constant *constant(View name) const {
    const auto found = std::lower_bound(constants_.begin(), constants_.end(), name, [](const Constant &c, View wanted) { return c.name < wanted; });
    return found != constants_.end() && found->name == name ? &*found : nullptr;
  }

  // A constant: an initializer, or an attribute's value.
  Constant tensor(View bytes, bool initializer) {
    View name, raw;
    int64_t type = 0;
    bool has_raw = false, listed = false, external = false;
    uint64_t location = 0;
    View place[3];
    size_t entries = 0;
    dims_.clear();
    for (Fields f(bytes, "a tensor", kTensor, bit_set(2, 3, 8, 9, 14)); f.next();) {
      switch (f.number) {
        case 1: dims(f); break;
        case 2: type = static_cast<int64_t>(f.integer()); break;
        case 8: name = f.text(); break;
        case 9:
          raw = f.text();
          has_raw = true;
          break;
        case 13:
          external = true;
          entry(f.text(), entries++, place);
          break;
        case 14: location = f.integer(); break;
        case 12:
        case 16: break;  // a comment, metadata
        default: listed = true;
      }
    }
    const eg_dtype dtype = dtype_of(type);
    EG_CHECK(dtype != 0, EG_INCONSISTENT, "%s: tensor '%.*s' has ONNX data type %lld, which components may not hold", where(), EG_SHOW(name), static_cast<long long>(type));
    for (const int64_t size : dims_) EG_CHECK(size >= 0, EG_INCONSISTENT, "%s: tensor '%.*s' has a negative size", where(), EG_SHOW(name));
    EG_CHECK(!listed, EG_INCONSISTENT, "%s: tensor '%.*s' is stored as a list of numbers; components hold raw bytes", where(), EG_SHOW(name));
    const uint64_t count = product(dims_.data(), dims_.size());
    uint64_t expected = 0;
    if (!multiply(count, bytes_of(dtype), &expected)) expected = UINT64_MAX;  // which no tensor has
    if (external || location != 0) {
      EG_CHECK(initializer && !weights_.empty() && location == kExternal && !has_raw, EG_INCONSISTENT,
               "%s: tensor '%.*s' lies in another file (external data); save the model with its weights inside", where(), EG_SHOW(name));
      outside(name, static_cast<int32_t>(type), place, entries, expected);
    } else {
      EG_CHECK(raw.size() == expected, EG_INCONSISTENT, "%s: tensor '%.*s' has %zu bytes, its shape asks for %llu", where(), EG_SHOW(name), raw.size(), static_cast<unsigned long long>(expected));
    }
    return {name, type, count};
  }

  void dims(const Fields &f) {
    if (f.wire != Fields::bytes) {
      dims_.push_back(static_cast<int64_t>(f.integer()));
      return;
    }
    const View packed = f.text();
    uint64_t value = 0;
    unsigned shift = 0;
    for (const char c : packed) {
      EG_CHECK(shift < 64, EG_INCONSISTENT, "%s: a size of a tensor is no number", where());
      value |= static_cast<uint64_t>(c & 0x7F) << shift;
      shift += 7;
      if ((c & 0x80) == 0) {
        dims_.push_back(static_cast<int64_t>(value));
        value = 0, shift = 0;
      }
    }
    EG_CHECK(shift == 0, EG_INCONSISTENT, "%s: a size of a tensor is cut", where());
  }

  // external_data entry number `index`: location, offset and length, in this order.
  void entry(View bytes, size_t index, View *place) {
    static const char *const keys[] = {"location", "offset", "length"};
    View key, value;
    for (Fields f(bytes, "external data", kEntry, kEntry); f.next();) (f.number == 1 ? key : value) = f.text();
    EG_CHECK(index < 3 && key == keys[index], EG_INCONSISTENT, "%s: external data with other entries than location, offset and length", where());
    place[index] = value;
  }

  void outside(View name, int32_t type, const View *place, size_t entries, uint64_t expected) {
    const Weights *found = nullptr;
    for (const Weights &w : weights_) {
      if (w.name == place[0]) found = &w;
    }
    EG_CHECK(entries == 3 && found != nullptr, EG_INCONSISTENT, "%s: tensor '%.*s' lies in '%.*s', expected '%.*s'", where(), EG_SHOW(name), EG_SHOW(place[0]), EG_SHOW(weights_[0].name));
    uint64_t offset = 0, length = 0, end = 0;
    EG_CHECK(decimal(place[1], &offset), EG_INCONSISTENT, "%s: tensor '%.*s': its offset is not a decimal number", where(), EG_SHOW(name));
    EG_CHECK(decimal(place[2], &length), EG_INCONSISTENT, "%s: tensor '%.*s': its length is not a decimal number", where(), EG_SHOW(name));
    EG_CHECK(offset % kAlignment == 0, EG_INCONSISTENT, "%s: tensor '%.*s': its offset is not a multiple of 64", where(), EG_SHOW(name));
    EG_CHECK(length == expected, EG_INCONSISTENT, "%s: tensor '%.*s' has %llu bytes, its shape asks for %llu", where(), EG_SHOW(name), static_cast<unsigned long long>(length), static_cast<unsigned long long>(expected));
    EG_CHECK(add(offset, length, &end) && end <= found->bytes.size(), EG_INCONSISTENT, "%s: tensor '%.*s' reaches behind the end of its member", where(), EG_SHOW(name));
    network_->outside.push_back({name, static_cast<uint32_t>(found - weights_.data()), type, static_cast<uint32_t>(network_->dims.size()), static_cast<uint32_t>(dims_.size()), offset, length});
    network_->dims.insert(network_->dims.end(), dims_.begin(), dims_.end());
  }

  void nodes(View graph) {
    bool any = false;
    for (Fields f = graph_fields(graph); f.next();) {
      if (f.number != 1) continue;
      any = true;
      node(f.text());
    }
    EG_CHECK(any, EG_INCONSISTENT, "%s: is not an ONNX model: it has no nodes", where());
  }

  void node(View bytes) {
    View op, domain;
    for (Fields f(bytes, "a node", kNode, bit_set(3, 4, 7, 8)); f.next();) {
      if (f.number == 4) op = f.text();
      if (f.number == 7) domain = f.text();
    }
    const bool contrib = domain == "com.microsoft";
    EG_CHECK(contrib || domain.empty() || domain == "ai.onnx", EG_INCONSISTENT, "%s: operator '%.*s' is of the domain '%.*s'; allowed: ai.onnx, com.microsoft", where(), EG_SHOW(op), EG_SHOW(domain));
    EG_CHECK(!contrib || allowed(op), EG_INCONSISTENT, "%s: operator '%.*s' of com.microsoft is not one of those that are allowed", where(), EG_SHOW(op));
    for (Fields f(bytes, "a node", kNode, 0); f.next();) {
      if (f.number == 5) attribute(f.text(), op);
    }
    if (op == "MatMulNBits") matmul(bytes);
  }

  static bool allowed(View op) {
    for (const char *name : kContrib) {
      if (op == name) return true;
    }
    return false;
  }

  void attribute(View bytes, View op) {
    for (Fields f(bytes, "an attribute", kAttribute, bit_set(1, 2, 3, 4, 5, 6, 20)); f.next();) {
      const bool refused = f.number == 6 || f.number == 10 || f.number == 11 || f.number == 22 || f.number == 23;
      EG_CHECK(!refused, EG_INCONSISTENT, "%s: operator '%.*s' holds a subgraph or a list of tensors, which components may not", where(), EG_SHOW(op));
      if (f.number == 5) tensor(f.text(), false);
    }
  }

  // ONNX Runtime reads as much of its weights as the attributes say, so they must say what is there.
  void matmul(View bytes) {
    int64_t k = 0, n = 0, bits = 4, block = 0;
    View inputs[6];
    size_t count = 0;
    for (Fields f(bytes, "a node", kNode, 0); f.next();) {
      if (f.number == 1) {
        EG_CHECK(count < 6, EG_INCONSISTENT, "%s: MatMulNBits has more than six inputs", where());
        inputs[count++] = f.text();
      } else if (f.number == 5) {
        View name;
        int64_t value = 0;
        for (Fields a(f.text(), "an attribute", kAttribute, 0); a.next();) {
          if (a.number == 1) name = a.text();
          if (a.number == 3) value = static_cast<int64_t>(a.integer());
        }
        if (name == "K") k = value;
        if (name == "N") n = value;
        if (name == "bits") bits = value;
        if (name == "block_size") block = value;
      }
    }
    EG_CHECK(bits == 2 || bits == 4 || bits == 8, EG_INCONSISTENT, "%s: MatMulNBits of %lld bits", where(), static_cast<long long>(bits));
    EG_CHECK(block >= 16 && block <= INT32_MAX && (block & (block - 1)) == 0, EG_INCONSISTENT, "%s: MatMulNBits with blocks of %lld", where(), static_cast<long long>(block));
    EG_CHECK(k >= 1 && k <= INT32_MAX, EG_INCONSISTENT, "%s: MatMulNBits with K %lld", where(), static_cast<long long>(k));
    EG_CHECK(n >= 1 && n <= INT32_MAX, EG_INCONSISTENT, "%s: MatMulNBits with N %lld", where(), static_cast<long long>(n));
    EG_CHECK(inputs[4].empty(), EG_INCONSISTENT, "%s: MatMulNBits with a permutation (g_idx), which is not supported", where());
    // N, K and the block are below 2^31, so blocks of a column have fewer than 2^32 bytes, and a product with N fits 64 bits
    const uint64_t blocks = static_cast<uint64_t>((k + block - 1) / block), columns = static_cast<uint64_t>(n), packed = (blocks * static_cast<uint64_t>(bits) + 7) / 8;
    const uint64_t block_bytes = static_cast<uint64_t>(block * bits / 8);
    operand(inputs[1], 2, 2, columns * blocks * block_bytes);
    operand(inputs[2], 1, 10, columns * blocks);
    if (!inputs[3].empty()) operand(inputs[3], 2, 2, columns * packed);
    if (!inputs[5].empty()) operand(inputs[5], 1, 10, columns);
  }

  void operand(View name, int64_t type, int64_t or_type, uint64_t count) {
    const Constant *found = constant(name);
    EG_CHECK(found != nullptr, EG_INCONSISTENT, "%s: MatMulNBits: '%.*s' is not a constant", where(), EG_SHOW(name));
    EG_CHECK(found->type == type || found->type == or_type, EG_INCONSISTENT, "%s: MatMulNBits: '%.*s' has ONNX data type %lld", where(), EG_SHOW(name), static_cast<long long>(found->type));
    EG_CHECK(found->count == count, EG_INCONSISTENT, "%s: MatMulNBits: '%.*s' has %llu elements, its attributes ask for %llu", where(), EG_SHOW(name), static_cast<unsigned long long>(found->count),
             static_cast<unsigned long long>(count));
  }

  // The graph's inputs (constants apart) or outputs are the component's.
  void values(View graph, uint64_t field, uint32_t first, uint32_t count, const char *side) {
    uint32_t found = 0;
    dims_.assign(count, 0);  // times that each was seen
    for (Fields f = graph_fields(graph); f.next();) {
      if (f.number != field) continue;
      View name, type;
      for (Fields v(f.text(), "a value", kValue, kValue); v.next();) {
        if (v.number == 1) name = v.text();
        if (v.number == 2) type = v.text();
      }
      if (field == 11 && constant(name) != nullptr) continue;
      const TensorSpec *spec = nullptr;
      for (uint32_t i = 0; i < count; ++i) {
        if (manifest_.tensors[first + i].name != name) continue;
        spec = &manifest_.tensors[first + i];
        EG_CHECK(dims_[i]++ == 0, EG_INCONSISTENT, "%s: its %s '%.*s' stands twice", where(), side, EG_SHOW(name));
      }
      EG_CHECK(spec != nullptr, EG_INCONSISTENT, "%s: its %s '%.*s' is not in the manifest", where(), side, EG_SHOW(name));
      EG_CHECK(type_fits(type, *spec), EG_INCONSISTENT, "%s: its %s '%.*s' has another type or shape than the manifest says", where(), side, EG_SHOW(name));
      ++found;
    }
    EG_CHECK(found == count, EG_INCONSISTENT, "%s: it lacks an %s of the manifest", where(), side);
  }

  bool type_fits(View type, const TensorSpec &spec) const {
    View tensor, shape;
    for (Fields f(type, "a type", kType, kType); f.next();) {
      if (f.number == 1) tensor = f.text();
    }
    uint64_t element = 0;
    for (Fields f(tensor, "a tensor type", kTensorType, kTensorType); f.next();) {
      if (f.number == 1) {
        element = f.integer();
      } else {
        shape = f.text();
      }
    }
    if (dtype_of(static_cast<int64_t>(element)) != spec.dtype) return false;
    uint32_t rank = 0;
    for (Fields f(shape, "a shape", kShapeOf, 0); f.next(); ++rank) {
      if (rank == spec.shape.rank) return false;
      bool fixed = false;
      uint64_t size = 0;
      for (Fields d(f.text(), "a dimension", kDim, kDim); d.next();) {
        if (d.number != 1) continue;
        fixed = true;
        size = d.integer();
      }
      const int32_t wanted = spec.shape.size[rank];
      if (fixed && size != (wanted == kBatch ? uint64_t{batch_} : static_cast<uint64_t>(wanted))) return false;
      if (fixed && wanted == kBatch && batch_ == 0) return false;
    }
    return rank == spec.shape.rank;
  }

  const Manifest &manifest_;
  const Component &component_;
  uint32_t batch_;
  const Vec<Weights> &weights_;
  Network *network_;
  Vec<Constant> constants_;
  Vec<int64_t> dims_;  // of the tensor that is read
  char where_[80];
};

}  // namespace

void check_network(Memory &memory, View model, const Manifest &manifest, const Component &component, uint32_t batch, const Vec<Weights> &weights, Network *network) {
  Checker(memory, manifest, component, batch, weights, network).model(model);
}

}  // namespace eg
