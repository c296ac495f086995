#include "json.h"

#include <cstring>

namespace eg {

namespace {

constexpr size_t kMaxDepth = 8;
constexpr size_t kMaxKey = 64;

// The deepest nesting, counted outside strings, whatever the text is.
size_t depth_of(View text) {
  size_t depth = 0, deepest = 0;
  int64_t level = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      for (++i; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] == '\\') ++i;
      }
    } else if (c == '[' || c == '{') {
      depth = ++level > 0 ? static_cast<size_t>(level) : 0;
      if (depth > deepest) deepest = depth;
    } else if (c == ']' || c == '}') {
      --level;
    }
  }
  return deepest;
}

bool is_key_character(unsigned char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-';
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

int hex_digit(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Reads a whole JSON text as json.loads does, refuses what the format does not allow, and notes whether the text is the canonical one.
class Scanner {
 public:
  explicit Scanner(View text) : text_(text) {}

  void run() {
    bool value_follows = true;
    space();
    for (;;) {
      if (value_follows) {
        value_follows = false;
        const char c = peek();
        if (c == '{' || c == '[') {
          ++at_;
          if (depth_ == kMaxDepth) fail(EG_LIMIT, "JSON is nested deeper than %zu levels", kMaxDepth);
          levels_[depth_++] = {c == '{', View()};
          space();
          if (peek() != (c == '{' ? '}' : ']')) {
            if (c == '{') key();
            value_follows = true;
            continue;
          }
          ++at_;
          --depth_;
        } else if (c == '"') {
          string(nullptr);
        } else {
          number();
        }
      }
      space();
      if (depth_ == 0) break;
      const char expected = levels_[depth_ - 1].object ? '}' : ']';
      const char c = peek();
      ++at_;
      if (c == ',') {
        space();
        if (expected == '}') key();
        value_follows = true;
      } else {
        EG_CHECK(c == expected, EG_BAD_MANIFEST, "not JSON, or a number that is no integer: expected ',' or '%c' at byte %zu", expected, at_ - 1);
        --depth_;
      }
    }
    EG_CHECK(at_ == text_.size(), EG_BAD_MANIFEST, "not JSON: something stands behind the value, at byte %zu", at_);
  }

  bool canonical() const { return canonical_; }

 private:
  struct Level {
    bool object;
    View key;  // the last one, as written
  };
  struct Key {
    char text[kMaxKey];
    size_t size;
  };

  // The next character, or a NUL at the end: a NUL is never valid JSON.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) {
      canonical_ = false;
      ++at_;
    }
  }

  void key() {
    EG_CHECK(peek() == '"', EG_BAD_MANIFEST, "not JSON: expected a key at byte %zu", at_);
    const size_t begin = at_ + 1;
    Key decoded{};
    string(&decoded);
    EG_CHECK(decoded.size >= 1 && decoded.size <= kMaxKey, EG_BAD_MANIFEST, "JSON key of %zu characters, expected 1 to %zu", decoded.size, kMaxKey);
    for (size_t i = 0; i < decoded.size; ++i) {
      EG_CHECK(is_key_character(static_cast<unsigned char>(decoded.text[i])), EG_BAD_MANIFEST, "JSON key at byte %zu is not [A-Za-z0-9_.-]", begin);
    }
    View &last = levels_[depth_ - 1].key;
    const View written = text_.substr(begin, at_ - 1 - begin);
    if (last.data() != nullptr && !(last < written)) canonical_ = false;
    last = written;
    space();
    EG_CHECK(peek() == ':', EG_BAD_MANIFEST, "not JSON: expected ':' at byte %zu", at_);
    ++at_;
    space();
  }

  // A string, its characters stored in `key` if that is not null (more than its room are counted only; a key holds ASCII).
  void string(Key *key) {
    ++at_;
    for (;;) {
      EG_CHECK(at_ < text_.size(), EG_BAD_MANIFEST, "not JSON: a string has no end");
      const unsigned char c = static_cast<unsigned char>(text_[at_]);
      uint32_t code = c;
      if (c == '"') break;
      EG_CHECK(c >= 0x20 && c != 0x7F, EG_BAD_MANIFEST, "JSON string with a control character at byte %zu", at_);
      if (c == '\\') {
        code = escape();
      } else if (c >= 0x80) {
        multibyte();
      } else {
        ++at_;
      }
      if (key != nullptr) {
        if (key->size < kMaxKey) key->text[key->size] = code < 0x80 ? static_cast<char>(code) : '\x7F';
        ++key->size;
      }
    }
    ++at_;
  }

  uint32_t four_digits() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const int digit = hex_digit(peek());
      EG_CHECK(digit >= 0, EG_BAD_MANIFEST, "not JSON: \\u is followed by four hexadecimal digits, at byte %zu", at_);
      code = code * 16 + static_cast<uint32_t>(digit);
      ++at_;
    }
    return code;
  }

  uint32_t escape() {
    ++at_;
    const char c = peek();
    ++at_;
    if (c == '"' || c == '\\') return static_cast<unsigned char>(c);
    canonical_ = false;
    if (c == '/') return '/';
    EG_CHECK(c == 'u', EG_BAD_MANIFEST, "JSON string with an escape that is not allowed, at byte %zu", at_ - 2);
    uint32_t code = four_digits();
    EG_CHECK(code >= 0x20 && code != 0x7F, EG_BAD_MANIFEST, "JSON string with an escaped control character, at byte %zu", at_);
    if (code >= 0xD800 && code < 0xE000) {
      EG_CHECK(code < 0xDC00 && peek() == '\\' && at_ + 1 < text_.size() && text_[at_ + 1] == 'u', EG_BAD_MANIFEST, "JSON string with half of a surrogate pair");
      at_ += 2;
      const uint32_t low = four_digits();
      EG_CHECK(low >= 0xDC00 && low < 0xE000, EG_BAD_MANIFEST, "JSON string with half of a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    return code;
  }

  // One character of two to four bytes (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF.
  void multibyte() {
    const unsigned char first = static_cast<unsigned char>(text_[at_]);
    const size_t more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    unsigned char low = 0x80, high = 0xBF;  // of the second byte
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
    bool valid = first >= 0xC2 && first <= 0xF4;
    for (size_t i = 1; i <= more; ++i) {
      const unsigned char c = at_ + i < text_.size() ? static_cast<unsigned char>(text_[at_ + i]) : 0;
      valid = valid && c >= low && c <= high;
      low = 0x80, high = 0xBF;
    }
    EG_CHECK(valid, EG_BAD_MANIFEST, "not UTF-8 at byte %zu", at_);
    at_ += more + 1;
  }

  void number() {
    const size_t begin = at_;
    const bool negative = peek() == '-';
    if (negative) ++at_;
    EG_CHECK(is_digit(peek()), EG_BAD_MANIFEST, "not JSON, or a value that is not an object, an array, a string or an integer, at byte %zu", begin);
    const bool zero = peek() == '0';
    uint64_t magnitude = 0;
    bool fits = true;
    do {
      fits = fits && magnitude <= (UINT64_MAX - 9) / 10;
      magnitude = magnitude * 10 + static_cast<uint64_t>(peek() - '0');
      ++at_;
    } while (!zero && is_digit(peek()));
    const uint64_t most = static_cast<uint64_t>(INT64_MAX) + (negative ? 1 : 0);
    EG_CHECK(fits && magnitude <= most, EG_BAD_MANIFEST, "JSON integer at byte %zu does not fit 64 bits", begin);
    if (negative && zero) canonical_ = false;
  }

  View text_;
  size_t at_ = 0;
  size_t depth_ = 0;
  bool canonical_ = true;
  Level levels_[kMaxDepth] = {};
};

// The place behind the value that begins at `at` of a checked text.
size_t behind(View text, size_t at) {
  size_t depth = 0;
  do {
    const char c = text[at++];
    if (c == '"') {
      for (; text[at] != '"'; ++at) {
        if (text[at] == '\\') ++at;
      }
      ++at;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (is_digit(c) || c == '-') {
      while (at < text.size() && is_digit(text[at])) ++at;
    }
  } while (depth > 0);
  return at;
}

}  // namespace

void check_json(View text) {
  EG_CHECK(depth_of(text) <= kMaxDepth, EG_LIMIT, "JSON is nested deeper than %zu levels", kMaxDepth);
  Scanner scanner(text);
  scanner.run();
  EG_CHECK(scanner.canonical(), EG_NOT_CANONICAL, "JSON is not in canonical form (sorted keys, no white space, no duplicate keys, minimal escapes)");
}

Json::Kind Json::kind() const {
  switch (text_.front()) {
    case '{': return Kind::object;
    case '[': return Kind::array;
    case '"': return Kind::string;
    default: return Kind::integer;
  }
}

int64_t Json::integer() const {
  const bool negative = text_.front() == '-';
  uint64_t magnitude = 0;
  for (const char c : text_.substr(negative ? 1 : 0)) magnitude = magnitude * 10 + static_cast<uint64_t>(c - '0');
  return static_cast<int64_t>(negative ? 0 - magnitude : magnitude);
}

View Json::string() const { return kind() == Kind::string ? text_.substr(1, text_.size() - 2) : View(); }

size_t Json::count() const {
  size_t items = 0;
  for (Items i(*this); i.next();) ++items;
  return items;
}

bool Items::next() {
  if (at_ + 1 >= text_.size()) return false;
  if (text_[at_] == ',') ++at_;
  if (object_) {
    const size_t end = text_.find('"', at_ + 1);  // keys have no escapes
    key = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 2;
  }
  const size_t end = behind(text_, at_);
  value = Json(text_.substr(at_, end - at_));
  at_ = end;
  return true;
}

void read_fields(Json object, eg_status status, const char *where, std::initializer_list<Field> fields) {
  for (const Field &f : fields) *f.value = Json();
  EG_CHECK(object.kind() == Json::Kind::object, status, "%s: expected an object", where);
  for (Items i(object); i.next();) {
    const Field *known = nullptr;
    for (const Field &f : fields) {
      if (f.key == i.key) known = &f;
    }
    EG_CHECK(known != nullptr, status, "%s: unknown key '%.*s'", where, EG_SHOW(i.key));
    EG_CHECK(i.value.kind() == known->kind, status, "%s: '%.*s' holds another kind of value than expected", where, EG_SHOW(i.key));
    *known->value = i.value;
  }
  for (const Field &f : fields) {
    EG_CHECK(f.optional || f.value->exists(), status, "%s: the key '%.*s' is missing", where, EG_SHOW(f.key));
  }
}

size_t unescape(View text, char *out) {
  size_t size = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\') ++i;
    out[size++] = text[i];
  }
  return size;
}

bool is_name(View text) {
  if (text.empty() || text.size() > kMaxKey || is_digit(text[0]) || text[0] == '.' || text[0] == '-') return false;
  for (const char c : text) {
    if (!is_key_character(static_cast<unsigned char>(c))) return false;
  }
  return true;
}

bool parse_hex_float(View text, double *value) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative) text.remove_prefix(1);
  uint64_t bits = 0;
  if (text != "0x0.0p+0") {
    // 0x1.hhhhhhhhhhhhhp+d
    if (text.size() < 20 || text.substr(0, 2) != "0x" || (text[2] != '0' && text[2] != '1') || text[3] != '.' || text[17] != 'p') return false;
    uint64_t mantissa = 0;
    for (size_t i = 4; i < 17; ++i) {
      if (!is_digit(text[i]) && !(text[i] >= 'a' && text[i] <= 'f')) return false;
      mantissa = mantissa * 16 + static_cast<uint64_t>(hex_digit(text[i]));
    }
    const View digits = text.substr(19);
    if ((text[18] != '+' && text[18] != '-') || digits.size() > 4 || (digits[0] == '0' && (digits.size() > 1 || text[18] == '-'))) return false;
    int exponent = 0;
    for (const char c : digits) {
      if (!is_digit(c)) return false;
      exponent = exponent * 10 + (c - '0');
    }
    if (text[18] == '-') exponent = -exponent;
    if (text[2] == '0') {
      if (mantissa == 0 || exponent != -1022) return false;
      bits = mantissa;
    } else {
      if (exponent < -1022 || exponent > 1023) return false;
      bits = static_cast<uint64_t>(exponent + 1023) << 52 | mantissa;
    }
  }
  if (negative) bits |= uint64_t{1} << 63;
  std::memcpy(value, &bits, sizeof bits);
  return true;
}

}  // namespace eg
