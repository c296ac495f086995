// Canonical JSON (FORMAT.md, section 2): a check of the text in one pass, and views of the values in a text that passed it. Nothing is copied
// and nothing is allocated: a value is a piece of the text.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "fault.h"

namespace eg {

// Throws LIMIT (nested too deep), BAD_MANIFEST (not JSON, or not allowed), NOT_CANONICAL; in this order of precedence.
void check_json(View text);

class Json {
 public:
  enum class Kind : char { object, array, string, integer };

  Json() = default;
  explicit Json(View text) : text_(text) {}  // a whole value of a checked text

  bool exists() const { return !text_.empty(); }
  Kind kind() const;
  View text() const { return text_; }

  View string() const;  // as written: with \" and \\ for quotes and backslashes; empty if the value is none
  int64_t integer() const;
  size_t count() const;  // of an object's pairs or an array's items

 private:
  View text_;
};

// The items of an array, or the pairs of an object in ascending order of their keys:  for (Items i(value); i.next();) use(i.key, i.value);
class Items {
 public:
  explicit Items(Json container) : text_(container.text()), object_(text_.front() == '{') {}
  bool next();

  View key;
  Json value;

 private:
  View text_;
  bool object_;
  size_t at_ = 1;
};

// A key that an object must have, or may have, and the kind of its value.
struct Field {
  View key;
  Json::Kind kind;
  Json *value;
  bool optional = false;
};

// Read exactly these keys of an object; throws `status` for anything else.
void read_fields(Json object, eg_status status, const char *where, std::initializer_list<Field> fields);

// A string as written -> its characters; returns how many there are. `out` has room for text.size().
size_t unescape(View text, char *out);

// A name: [A-Za-z_][A-Za-z0-9_.-]{0,63}.
bool is_name(View text);

// The float64 that a string writes in its hexadecimal form; false if it is none.
bool parse_hex_float(View text, double *value);

}  // namespace eg
