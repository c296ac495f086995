// T1, T1b, T17, T24: opens structure-aware mutants of bundles. Headers, tables, manifests and programs are changed as bytes and as trees, with hashes
// and offsets made right again, so that the checks behind them are reached.
//
//   test-mutants tables|whole COUNT SEED odd|even emit|quiet BUNDLE ...
//
// tables: headers, and manifests as bytes and their tables as trees, under headers that fit. whole: manifests and members, everything made right again.
// emit: write each mutant with its status to standard output.
#include <algorithm>
#include <cstring>
#include <map>

#include "kit.h"

namespace {

// A JSON value of a text that may not be well-formed: what cannot be read becomes a literal.
struct Node {
  char kind = 'l';  // 'o', 'a' or literal
  std::string text;
  std::vector<std::pair<std::string, Node>> members;  // arrays: with empty keys
};

Node parse(const std::string &t, size_t &at) {
  Node node;
  if (at < t.size() && (t[at] == '{' || t[at] == '[')) {
    const char close = t[at] == '{' ? '}' : ']';
    node.kind = t[at] == '{' ? 'o' : 'a';
    ++at;
    while (at < t.size() && t[at] != close) {
      std::string key;
      if (node.kind == 'o') {
        const size_t end = t.find('"', at + 1);
        key = t.substr(at + 1, end - at - 1);
        at = end + 2;
      }
      node.members.emplace_back(key, parse(t, at));
      if (at < t.size() && t[at] == ',') ++at;
    }
    ++at;
    return node;
  }
  const size_t begin = at;
  if (at < t.size() && t[at] == '"') {
    for (++at; at < t.size() && t[at] != '"'; ++at) at += t[at] == '\\';
    ++at;
  } else {
    while (at < t.size() && std::strchr(",]}", t[at]) == nullptr) ++at;
  }
  node.text = t.substr(begin, at - begin);
  return node;
}

void write(const Node &node, std::string &out) {
  if (node.kind == 'l') {
    out += node.text;
    return;
  }
  out += node.kind == 'o' ? '{' : '[';
  bool first = true;
  for (const auto &[key, value] : node.members) {
    if (!first) out += ',';
    first = false;
    if (node.kind == 'o') out += "\"" + key + "\":";
    write(value, out);
  }
  out += node.kind == 'o' ? '}' : ']';
}

void collect(Node &node, std::vector<Node *> &all) {
  all.push_back(&node);
  for (auto &member : node.members) collect(member.second, all);
}

void sort_keys(Node &node) {
  if (node.kind == 'o') std::sort(node.members.begin(), node.members.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
  for (auto &member : node.members) sort_keys(member.second);
}

const char *const kLiterals[] = {"0", "1", "-1", "2", "3", "64", "65", "4096", "65536", "65537", "2147483647", "2147483648", "4294967295", "4294967296", "9223372036854775807", "-9223372036854775808",
  "9223372036854775808", "18446744073709551615", "1e3", "0.5", "true", "null", "\"\"", "\"batch\"", "\"x\"", "\"x_T\"", "\"y\"", "\"sample\"", "\"noise\"", "\"condition\"", "\"float32\"", "\"int64\"", "\"bool\"",
  "\"float16\"", "\"image\"", "\"array\"", "\"0x0.0p+0\"", "\"-0x0.0p+0\"", "\"0x1.0000000000000p+0\"", "\"0x1.0000000000000p+1023\"", "\"0x0.0000000000001p-1022\"", "\"0x1.8000000000000p+127\"",
  "\"-0x1.0000000000000p+0\"", "\"inf\"", "\"0x1p+0\"", "[]", "{}", "[1]", "[[[[]]]]", "\"LINCOMB\"", "\"EVAL\"", "\"NOISE\"", "\"REDUCE\"", "\"SCALAR\"", "\"quantile\"", "\"sqrt\"", "\"1.0\"", "\"f.onnx\"",
  "\"a\\\"b\"", "\"\\u0041\"", "\"\\ud800\"", "\"\xc3\xa9\"", "\"\xc3\"", "\"\x01\"", "\"../x\""};

const char *const kKeys[] = {"a", "b", "mask", "shape", "states", "out", "x", "imm", "reg", "scale", "minimum", "default", "null", "weights", "providers", "zz", "0", "op"};

class Mutator {
 public:
  Mutator(uint64_t seed, std::vector<std::string> bundles) : random_(seed), bundles_(std::move(bundles)) {
    for (const std::string &b : bundles_) parts_.push_back(take_apart(b));
  }

  std::string next(bool tables) {
    const size_t which = random_.below(bundles_.size());
    switch (tables ? random_.below(4) : 4 + random_.below(4)) {
      case 0: return bytes(bundles_[which]);
      case 1: return header(bundles_[which]);
      case 2: {  // the manifest's bytes, under a header that fits
        Parts p = parts_[which];
        p.manifest = bytes(p.manifest);
        return with_header(p.manifest, bundles_[which].substr(64 + parts_[which].manifest.size()), p.members.size());
      }
      case 3: {  // the member table's numbers, under a header that fits
        const std::string manifest = tree(parts_[which].manifest, true);
        return with_header(manifest, bundles_[which].substr(64 + parts_[which].manifest.size()), parts_[which].members.size());
      }
      case 4:
      case 5: {
        Parts p = parts_[which];
        p.manifest = tree(p.manifest, false);
        return put_together(p);
      }
      default: {  // a member: mostly programs
        Parts p = parts_[which];
        std::vector<size_t> programs;
        for (size_t i = 0; i < p.members.size(); ++i) {
          if (p.members[i].first.compare(0, 7, "program") == 0) programs.push_back(i);
        }
        const size_t i = programs.empty() || random_.chance(8) ? random_.below(p.members.size()) : programs[random_.below(programs.size())];
        std::string &text = p.members[i].second;
        text = random_.chance(4) || text[0] != '{' ? bytes(text) : tree(text, false);
        if (text.empty()) text = "{}";
        return put_together(p);
      }
    }
  }

 private:
  std::string bytes(std::string data) {
    for (size_t changes = 1 + random_.below(3); changes > 0 && !data.empty(); --changes) {
      const size_t at = random_.below(data.size()), size = std::min(data.size() - at, 1 + random_.below(32));
      switch (random_.below(6)) {
        case 0: data[at] = static_cast<char>(random_.next()); break;
        case 1: data[at] = static_cast<char>(data[at] ^ 1 << random_.below(8)); break;
        case 2: data.erase(at, size); break;
        case 3: data.insert(at, data.substr(random_.below(data.size()), size)); break;
        case 4: data.insert(at, size, static_cast<char>(random_.next())); break;
        default: data.resize(random_.below(data.size() + 1)); break;
      }
    }
    return data;
  }

  std::string header(std::string data) {
    static const size_t fields[][2] = {{0, 8}, {8, 2}, {10, 2}, {12, 2}, {14, 2}, {16, 4}, {20, 4}, {24, 8}, {32, 32}};
    const auto &field = fields[random_.below(9)];
    const uint64_t corners[] = {0, 1, 2, 63, 64, 65, 4096, 4097, 1 << 20, (1 << 20) + 1, UINT32_MAX, UINT64_MAX, data.size(), data.size() + 1, data.size() - 1, random_.next()};
    const uint64_t value = corners[random_.below(16)];
    std::memcpy(&data[field[0]], &value, std::min<size_t>(field[1], 8));
    if (random_.chance(4)) data.resize(random_.below(data.size() + 1));
    return data;
  }

  // Change a few values of a JSON text.
  std::string tree(const std::string &text, bool table) {
    size_t at = 0;
    Node root = parse(text, at);
    Node *from = &root;
    if (table) {
      for (auto &member : root.members) {
        if (member.first == "members") from = &member.second;
      }
    }
    for (size_t changes = 1 + random_.below(2); changes > 0; --changes) change(*from);
    if (!random_.chance(16)) sort_keys(root);
    std::string out;
    write(root, out);
    return out;
  }

  void change(Node &root) {
    std::vector<Node *> all;
    collect(root, all);
    Node &node = *all[random_.below(all.size())];
    const Node other = *all[random_.below(all.size())];
    switch (random_.below(8)) {
      case 0: node = other; break;
      case 1:
      case 2: {
        Node literal;
        literal.text = kLiterals[random_.below(sizeof kLiterals / sizeof *kLiterals)];
        node = literal;
        break;
      }
      case 3:
        if (!node.members.empty()) node.members.erase(node.members.begin() + static_cast<ptrdiff_t>(random_.below(node.members.size())));
        break;
      case 4:
        if (!node.members.empty()) node.members.insert(node.members.begin() + static_cast<ptrdiff_t>(random_.below(node.members.size())), node.members[random_.below(node.members.size())]);
        break;
      case 5: node.members.emplace_back(node.kind == 'o' ? kKeys[random_.below(sizeof kKeys / sizeof *kKeys)] : "", other); break;
      case 6:
        if (node.members.size() > 1) std::swap(node.members[random_.below(node.members.size())].second, node.members[random_.below(node.members.size())].second);
        break;
      default:
        if (node.kind == 'l' && !node.text.empty()) node.text[random_.below(node.text.size())] = static_cast<char>(' ' + random_.below(95));
        break;
    }
  }

  Random random_;
  std::vector<std::string> bundles_;
  std::vector<Parts> parts_;
};

}  // namespace

int main(int count, char **words) {
  REQUIRE(count >= 7, "usage: test-mutants tables|whole COUNT SEED odd|even emit|quiet BUNDLE ...");
  const bool tables = std::strcmp(words[1], "tables") == 0;
  const uint64_t total = std::stoull(words[2]);
  const size_t shift = std::strcmp(words[4], "odd") == 0 ? 1 : 0;
  const bool emit = std::strcmp(words[5], "emit") == 0;
  std::vector<std::string> bundles;
  for (int i = 6; i < count; ++i) bundles.push_back(read_file(words[i]));
  Mutator mutator(std::stoull(words[3]), bundles);
  std::map<eg_status, uint64_t> statuses;
  for (uint64_t i = 0; i < total; ++i) {
    const std::string mutant = mutator.next(tables);
    std::vector<char> block(std::max<size_t>(mutant.size() + shift, 1));  // no byte more, so that sanitizers see reads behind the end
    char *data = block.data() + shift;
    if (!mutant.empty()) std::memcpy(data, mutant.data(), mutant.size());
    eg_open_options options = EG_OPEN_OPTIONS_INIT;
    options.flags = EG_OPEN_BORROWED;
    eg_model *model = nullptr;
    const double began = processor_seconds();
    const eg_status status = eg_open_memory(data, mutant.size(), &options, &model, nullptr);
    REQUIRE(processor_seconds() - began < 1.0, "mutant %llu took a second", static_cast<unsigned long long>(i));
    REQUIRE((status == EG_OK) == (model != nullptr), "mutant %llu: status %d", static_cast<unsigned long long>(i), status);
    eg_close(model);
    ++statuses[status];
    if (emit) {
      const int32_t code = status;
      const uint32_t size = static_cast<uint32_t>(mutant.size());
      std::fwrite(&code, sizeof code, 1, stdout);
      std::fwrite(&size, sizeof size, 1, stdout);
      std::fwrite(mutant.data(), 1, mutant.size(), stdout);
    }
  }
  for (const auto &[status, times] : statuses) std::fprintf(stderr, "%d: %llu\n", status, static_cast<unsigned long long>(times));
}
