// edgegen-jetson: run, check and time a bundle on a Jetson's GPU: libedgegen with TensorRT in place of ONNX Runtime.
//
// Exit codes: 0 ok, 1 error, 2 usage (names, values), 4 this device cannot run it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "edgegen.hpp"
#include "tensorrt_component.h"

extern "C" {
#include "../c/cli/files.h"
}

namespace {

using edgegen_jetson::Bytes;

constexpr char kUsage[] =
    "usage: edgegen-jetson FILE --networks DIR [options] [-o OUT.npy]\n"
    "Builds the networks' engines on this device (once, then they are kept), checks the golden vectors, and generates samples.\n"
    "options:\n"
    "  --networks DIR    the networks as ONNX, DIR/NAME.COMPONENT.onnx: what networks.py writes\n"
    "  --network NAME    which of them: float32, float16, int8, or a variant of the bundle (float16)\n"
    "  --variant NAME    whose golden vectors to compare with (the network's own, else float32's, else the first's)\n"
    "  --gate DB         for networks that are not the variant's own: least PSNR in dB to its golden vectors (the recipe's, else 30)\n"
    "  --seed N          0 .. 2^64 - 1 (0)\n"
    "  --steps N, --program NAME   pick a program\n"
    "  --batch N         number of samples (1)\n"
    "  --set NAME=VALUE  a condition: a number, or @FILE.npy; may repeat\n"
    "  -o OUT.npy        where samples go (out.npy)\n"
    "  --bench           time it instead: a table for docs/benchmarks.md\n"
    "  --warmup N, --iters N   of --bench (10, 100)\n"
    "  --rows N          most rows of one evaluation that engines are built for (16)\n"
    "  --workspace MIB   scratch memory that a kernel may use (TensorRT's own limit)\n"
    "  --level N         TensorRT's optimization level, 0 .. 5\n"
    "  --memory KIND     auto, mapped or copied: where inputs and outputs lie (auto)\n"
    "  --no-graph        no CUDA graphs\n"
    "  --cache DIR       of engines ($EDGEGEN_CACHE/engines, ~/.cache/edgegen/engines)\n";

class Usage : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::string file, networks, network = "float16", variant, output = "out.npy";
  std::vector<std::string> settings;
  edgegen::RunOptions run;
  edgegen_jetson::TensorrtOptions tensorrt;
  uint64_t warmup = 10, iters = 100;
  double gate = 0.0;  // 0: the recipe's
  bool bench = false;
};

uint64_t whole(const std::string &option, const std::string &text, uint64_t least, uint64_t most) {
  const bool digits = !text.empty() && text.size() <= 20 && text.find_first_not_of("0123456789") == std::string::npos;
  const uint64_t value = digits ? std::strtoull(text.c_str(), nullptr, 10) : 0;
  if (!digits || std::to_string(value) != text || value < least || value > most) {
    throw Usage(option + ": expected a whole number in " + std::to_string(least) + " .. " + std::to_string(most) + ", found '" + text + "'");
  }
  return value;
}

edgegen_jetson::Memory memory_of(const std::string &text) {
  if (text == "auto") return edgegen_jetson::Memory::automatic;
  if (text == "mapped") return edgegen_jetson::Memory::mapped;
  if (text == "copied") return edgegen_jetson::Memory::copied;
  throw Usage("--memory: expected auto, mapped or copied, found '" + text + "'");
}

double decibels(const std::string &text) {
  char *end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value > 0.0 && value < 1000.0)) throw Usage("--gate: expected dB, more than 0, found '" + text + "'");
  return value;
}

void set_option(Arguments &a, const std::string &word, const std::string &value) {
  constexpr uint64_t most32 = 65536;
  if (word == "--networks") {
    a.networks = value;
  } else if (word == "--network") {
    a.network = value;
  } else if (word == "--variant") {
    a.variant = value;
  } else if (word == "--gate") {
    a.gate = decibels(value);
  } else if (word == "--seed") {
    a.run.seed = whole(word, value, 0, ~uint64_t{0});
  } else if (word == "--steps") {
    a.run.steps = static_cast<uint32_t>(whole(word, value, 1, most32));
  } else if (word == "--program") {
    a.run.program = value;
  } else if (word == "--batch") {
    a.run.batch = static_cast<uint32_t>(whole(word, value, 1, EG_MAX_BATCH));
  } else if (word == "--set") {
    a.settings.push_back(value);
  } else if (word == "-o" || word == "--output") {
    a.output = value;
  } else if (word == "--warmup") {
    a.warmup = whole(word, value, 0, 1000000);
  } else if (word == "--iters") {
    a.iters = whole(word, value, 1, 1000000);
  } else if (word == "--rows") {
    a.tensorrt.most_rows = static_cast<int64_t>(whole(word, value, 1, most32));
  } else if (word == "--workspace") {
    a.tensorrt.workspace = whole(word, value, 1, 1 << 20) << 20;
  } else if (word == "--level") {
    a.tensorrt.optimization_level = static_cast<int32_t>(whole(word, value, 0, 5));
  } else if (word == "--memory") {
    a.tensorrt.memory = memory_of(value);
  } else if (word == "--cache") {
    a.tensorrt.cache_folder = value;
  } else {
    throw Usage(word + ": unknown option; see edgegen-jetson --help");
  }
}

Arguments parse(const std::vector<std::string> &words) {
  Arguments a;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string &word = words[i];
    if (word == "--bench") {
      a.bench = true;
    } else if (word == "--no-graph") {
      a.tensorrt.graphs = false;
    } else if (word.empty() || word[0] != '-') {
      if (!a.file.empty()) throw Usage(word + ": only one file is expected");
      a.file = word;
    } else if (i + 1 == words.size()) {
      throw Usage(word + ": expected a value behind it, or an option; see edgegen-jetson --help");
    } else {
      set_option(a, word, words[++i]);
    }
  }
  if (a.file.empty() || a.networks.empty()) throw Usage("expected a bundle and --networks DIR; see edgegen-jetson --help");
  return a;
}

int exit_code(eg_status status) {
  if (status == EG_BACKEND_MISSING || status == EG_PROVIDER_MISSING || status == EG_NO_VARIANT) return 4;
  return status < 200 && status != EG_NONFINITE ? 2 : 1;
}

Bytes read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw edgegen::Error(EG_CANNOT_OPEN, path + ": cannot be opened; networks.py writes it");
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// What a device says about itself, up to its first NUL or line's end; "" where it does not.
std::string first_text(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  return text.substr(0, text.find_first_of(std::string("\0\n", 2)));
}

// Of `nvpmodel -q`: "NV Power Mode: 15W".
std::string power_mode() {
  const std::unique_ptr<FILE, int (*)(FILE *)> pipe(::popen("nvpmodel -q 2>/dev/null", "r"), ::pclose);
  std::array<char, 256> line{};
  while (pipe && std::fgets(line.data(), static_cast<int>(line.size()), pipe.get()) != nullptr) {
    const std::string text(line.data(), std::strcspn(line.data(), "\n"));
    const size_t colon = text.find("Power Mode: ");
    if (colon != std::string::npos) return text.substr(colon + 12);
  }
  return "not known (no nvpmodel)";
}

const edgegen::Variant &find_variant(const std::vector<edgegen::Variant> &variants, const std::string &name) {
  for (const edgegen::Variant &v : variants) {
    if (v.name == name) return v;
  }
  throw edgegen::Error(EG_NO_VARIANT, "no variant '" + name + "' in this bundle; the first is '" + variants[0].name + "'");
}

// Whether the network is the variant's own, and not one that was made from another variant for TensorRT.
bool is_own(const edgegen::Variant &variant, const std::string &network) { return variant.name == network && (variant.engine == "tensorrt" || network == "float32"); }

const edgegen::Variant &choose_variant(const std::vector<edgegen::Variant> &variants, const Arguments &a) {
  if (!a.variant.empty()) return find_variant(variants, a.variant);
  for (const edgegen::Variant &v : variants) {
    if (is_own(v, a.network)) return v;
  }
  for (const edgegen::Variant &v : variants) {
    if (v.name == "float32") return v;
  }
  return variants[0];
}

// The gate of the recipe that the bundle carries: {"psnr_db":"0x1.4p+4", ...}.
double recipe_gate(const edgegen::Model &model) {
  const std::string key = "\"psnr_db\":\"";
  try {
    const std::string recipe = model.document("recipe");
    const size_t at = recipe.find(key);
    const double gate = at == std::string::npos ? 0.0 : std::strtod(recipe.c_str() + at + key.size(), nullptr);
    if (gate > 0.0) return gate;
  } catch (const edgegen::Error &) {  // there is none
  }
  return 30.0;
}

void apply_setting(edgegen::Session &session, const std::string &setting) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos || equals + 1 == setting.size()) throw Usage("--set " + setting + ": expected NAME=number or NAME=@FILE.npy");
  const std::string name = setting.substr(0, equals), value = setting.substr(equals + 1);
  if (value[0] != '@') {
    char *end = nullptr;
    const double number = std::strtod(value.c_str(), &end);
    if (*end != '\0') throw Usage("--set " + setting + ": expected NAME=number or NAME=@FILE.npy");
    session.set(name, number);
    return;
  }
  eg_tensor tensor = EG_TENSOR_INIT;
  const char *fault = read_npy(value.c_str() + 1, &tensor);
  const std::unique_ptr<void, void (*)(void *)> data(tensor.data, std::free);
  if (fault != nullptr) throw Usage(value.substr(1) + ": " + fault);
  tensor.name = name.c_str();
  const eg_status status = eg_set(session.handle(), &tensor);
  if (status != EG_OK) throw edgegen::Error(status, eg_last_error(session.handle()));
}

// Runs the golden vectors; returns whether each is as near as it must be. A variant's own network: within its tolerance. Another (TensorRT's own float16 or
// int8 of the float32 network): within the gate.
bool check_golden(edgegen::Session &session, const edgegen::Variant &variant, const Arguments &a, double span) {
  const bool exact = is_own(variant, a.network);
  bool all = true;
  for (uint32_t i = 0; i < variant.golden; ++i) {
    const edgegen::Golden golden = session.self_test(i);
    const double psnr = golden.rmse > 0.0 ? 20.0 * std::log10(span / golden.rmse) : 999.0;
    const bool passed = exact ? golden.passed : psnr >= a.gate;
    all = all && passed;
    if (exact) {
      std::fprintf(stderr, "golden %s of %s: RMSE %.3g, tolerance %.3g: %s\n", golden.program.c_str(), variant.name.c_str(), golden.rmse, golden.tolerance,
                   passed ? "ok" : "DIFFERS");
    } else {
      std::fprintf(stderr, "golden %s of %s: RMSE %.3g, %.1f dB, at least %.1f: %s\n", golden.program.c_str(), variant.name.c_str(), golden.rmse, psnr, a.gate,
                   passed ? "ok" : "DIFFERS");
    }
  }
  if (variant.golden == 0) std::fprintf(stderr, "variant %s has no golden vectors: nothing was compared\n", variant.name.c_str());
  return all;
}

double percentile(std::vector<double> times, double share) {
  std::sort(times.begin(), times.end());
  return times[static_cast<size_t>(share * static_cast<double>(times.size() - 1))];
}

void bench(edgegen::Session &session, const std::vector<edgegen::Component> &components, const edgegen_jetson::TensorrtNetworks &networks, const Arguments &a) {
  edgegen::RunOptions options = a.run;
  std::vector<double> all, outside;
  std::vector<std::vector<double>> each(components.size());
  std::vector<uint32_t> evaluations(components.size());
  std::string program;
  std::vector<float> sample;
  for (uint64_t i = 0; i < a.warmup + a.iters; ++i) {
    options.seed = i;
    sample = session.generate(options);
    if (i < a.warmup) continue;
    const edgegen::Report report = session.report();
    program = report.program;
    all.push_back(report.seconds * 1e3);
    outside.push_back((1.0 - report.network_seconds / report.seconds) * 100.0);
    for (size_t k = 0; k < components.size(); ++k) {
      const edgegen::ComponentReport part = session.component_report(static_cast<uint32_t>(k));
      evaluations[k] = part.evaluations;
      each[k].push_back(part.seconds * 1e3);
    }
  }
  std::string board = first_text("/proc/device-tree/model");
  if (board.empty()) board = "not known";
  std::fprintf(stderr, "device: %s; GPU %s; TensorRT %s; CUDA %s; power mode: %s\n", board.c_str(), networks.gpu().c_str(),
               edgegen_jetson::TensorrtNetworks::tensorrt_version().c_str(), edgegen_jetson::TensorrtNetworks::cuda_version().c_str(), power_mode().c_str());
  std::printf("| engine | network | program | batch | p50 ms | p90 ms | p99 ms | outside the networks |\n|---|---|---|---|---|---|---|---|\n");
  std::printf("| TensorRT | %s | %s | %u | %.3f | %.3f | %.3f | %.1f%% |\n", a.network.c_str(), program.c_str(), a.run.batch, percentile(all, 0.5), percentile(all, 0.9),
              percentile(all, 0.99), percentile(outside, 0.5));
  for (size_t k = 0; k < components.size(); ++k) {
    std::printf("| TensorRT | %s | its %u evaluations of `%s` | %u | %.3f | %.3f | %.3f | |\n", a.network.c_str(), evaluations[k], components[k].name.c_str(), a.run.batch,
                percentile(each[k], 0.5), percentile(each[k], 0.9), percentile(each[k], 0.99));
  }
}

void write_samples(const std::vector<float> &samples, const edgegen::ModelInfo &info, const Arguments &a) {
  std::vector<int64_t> shape = info.shape;
  shape.insert(shape.begin(), a.run.batch);
  const char *fault = write_npy(a.output.c_str(), samples.data(), shape.data(), static_cast<uint32_t>(shape.size()));
  if (fault != nullptr) throw edgegen::Error(EG_CANNOT_WRITE, a.output + ": " + fault);
  std::puts(a.output.c_str());
}

int run(Arguments a) {
  const auto log = [](const std::string &line) { std::fprintf(stderr, "edgegen-jetson: %s\n", line.c_str()); };
  const edgegen::Model model = edgegen::Model::open(a.file);
  const edgegen::ModelInfo info = model.info();
  const std::vector<edgegen::Component> components = model.components();
  const std::vector<edgegen::Variant> variants = model.variants();
  const edgegen::Variant &variant = choose_variant(variants, a);
  if (a.gate <= 0.0) a.gate = recipe_gate(model);
  std::vector<Bytes> files;
  for (const edgegen::Component &c : components) files.push_back(read_file(a.networks + "/" + a.network + "." + c.name + ".onnx"));

  a.tensorrt.log = log;
  edgegen_jetson::TensorrtNetworks networks(a.tensorrt);
  for (size_t i = 0; i < components.size(); ++i) {
    const edgegen_jetson::EngineReport report = networks.add(components[i], files[i]);
    std::fprintf(stderr, "engine of %s: %s in %.2f s, %.2f MB, %s\n", components[i].name.c_str(), report.built ? "built" : "from the cache", report.seconds,
                 static_cast<double>(report.bytes) / 1e6, report.key.c_str());
  }
  edgegen::SessionOptions options;
  options.batch = a.run.batch;
  options.variant = variant.name;
  options.component = [&](const char *component, const edgegen::Tensors &inputs, const edgegen::Tensors &outputs) { networks.run(component, inputs, outputs); };
  options.log = [&](const char *line) { log(line); };
  edgegen::Session session(model, options);
  if (!check_golden(session, variant, a, info.high - info.low)) {
    throw edgegen::Error(EG_BACKEND_FAILED, "samples of this device differ from the bundle's golden vectors; the network '" + a.network + "' is not for use here");
  }
  for (const std::string &setting : a.settings) apply_setting(session, setting);
  if (a.bench) {
    bench(session, components, networks, a);
  } else {
    write_samples(session.generate(a.run), info, a);
  }
  return 0;
}

}  // namespace

int main(int count, char **words) {
  const std::vector<std::string> given(words + 1, words + std::max(count, 1));
  if (!given.empty() && (given[0] == "--help" || given[0] == "-h")) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    return run(parse(given));
  } catch (const Usage &wrong) {
    std::fprintf(stderr, "edgegen-jetson: %s\n", wrong.what());
    return 2;
  } catch (const edgegen::Error &error) {
    std::fprintf(stderr, "edgegen-jetson: %s (%s, %d)\n", error.what(), eg_status_str(error.status()), static_cast<int>(error.status()));
    return exit_code(error.status());
  } catch (const std::exception &error) {
    std::fprintf(stderr, "edgegen-jetson: %s\n", error.what());
    return 1;
  }
}
