// Open a bundle, say what is inside, generate a sample, write it as an image or print its numbers. From the repository's root, after `make native`:
//
//   g++ -std=c++17 -Iruntimes/c/include runtimes/c/examples/generate.cpp -o generate -Lbuild/native -ledgegen -Wl,-rpath,"$PWD/build/native"
//   ./generate digits.edgegen label 3
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>

#include "edgegen.hpp"

// An image as sample.pgm, one channel below the other.
static void write_image(const edgegen::ModelInfo &info, const std::vector<float> &sample) {
  std::ofstream file("sample.pgm", std::ios::binary);
  file << "P5 " << info.shape[2] << " " << info.shape[0] * info.shape[1] << " 255\n";
  for (const float value : sample) {
    const double grey = (value - info.low) / (info.high - info.low) * 255.0 + 0.5;
    file.put(static_cast<char>(static_cast<unsigned char>(std::clamp(grey, 0.0, 255.0))));
  }
  if (!file.flush()) throw std::runtime_error("sample.pgm cannot be written");
}

static void run(const char *path, const char *condition, const char *number) {
  const edgegen::Model model = edgegen::Model::open(path);
  const edgegen::ModelInfo info = model.info();
  std::cout << info.name << ": " << info.summary << ", " << info.elements << " numbers per sample\n";
  for (const edgegen::Condition &c : model.conditions()) std::cout << "condition " << c.name << ": " << edgegen::dtype_name(c.dtype) << "; " << c.summary << "\n";
  for (const edgegen::Program &p : model.programs()) std::cout << "program " << p.name << ": " << p.evaluations << " evaluations\n";

  edgegen::Session session(model);
  if (condition != nullptr) session.set(condition, std::stod(number));
  edgegen::RunOptions options;
  options.seed = 1;
  options.on_step = [](std::uint32_t done, std::uint32_t total, edgegen::Span<const float>) {
    std::cerr << "step " << done << " of " << total << "\n";
    return true;  // false cancels
  };
  const std::vector<float> sample = session.generate(options);
  if (info.image) return write_image(info, sample);
  for (const float value : sample) std::printf("%.9g\n", static_cast<double>(value));
}

int main(int count, char **words) try {
  if (count != 2 && count != 4) throw std::invalid_argument("usage: generate FILE [CONDITION NUMBER]");
  run(words[1], count == 4 ? words[2] : nullptr, count == 4 ? words[3] : nullptr);
  return 0;
} catch (const std::exception &e) {
  std::cerr << e.what() << "\n";
  return 1;
}
