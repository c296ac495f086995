// T18, T19: what other machines must reproduce to the bit.
//
//   test-digests programs SEEDS BATCH BUNDLE ...     for each bundle, program and seed below SEEDS: the SHA-256 of the sample, networks replaced by the
//                                                     exact surrogate; of a stream: of five steps' samples in one
//   test-digests normals SEED DRAW CALL COUNT        the SHA-256 of normals
//   test-digests philox                               counters and keys on standard input as 12 hexadecimal words a line: the four words
//   test-digests sha256 FILE                          the SHA-256 by the processor's instructions and by plain C++
#include <cstring>

#include "kit.h"
#include "noise.h"
#include "sha256.h"

namespace {

void print_digest(const std::vector<float> &data) {
  char text[65];
  hex_digest(data.data(), data.size() * sizeof(float), text);
  std::puts(text);
}

void digests(const char *path, uint64_t seeds, uint32_t batch) {
  eg_model *model = nullptr;
  eg_message why;
  REQUIRE(eg_open(path, nullptr, &model, &why) == EG_OK, "%s: %s", path, why.text);
  eg_session *session = surrogate_session(model, batch);
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  const size_t elements = static_cast<size_t>(info.elements) * batch;
  for (uint32_t p = 0; p < info.programs; ++p) {
    eg_program_info program = EG_PROGRAM_INFO_INIT;
    eg_program_describe(model, p, &program);
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      eg_run_options options = EG_RUN_OPTIONS_INIT;
      options.program = program.name;
      options.seed = seed;
      options.batch = batch;
      std::vector<float> sample(elements * (program.states > 0 ? 5 : 1));
      eg_status status = EG_OK;
      if (program.states == 0) status = eg_generate(session, &options, sample.data(), elements);
      for (size_t step = 0; program.states > 0 && step < 5 && status == EG_OK; ++step) status = eg_stream_step(session, &options, sample.data() + step * elements, elements);
      eg_stream_reset(session);
      std::printf("%s %llu ", program.name, static_cast<unsigned long long>(seed));
      if (status == EG_OK) {
        print_digest(sample);
      } else {
        std::printf("status %d\n", status);
      }
    }
  }
  eg_session_destroy(session);
  eg_close(model);
}

std::string hex_of(const eg::Digest &digest) {
  std::string text;
  for (const unsigned char c : digest) text += {"0123456789abcdef"[c >> 4], "0123456789abcdef"[c & 15]};
  return text;
}

}  // namespace

int main(int count, char **words) {
  const std::string what = count > 1 ? words[1] : "";
  if (what == "programs" && count >= 5) {
    for (int i = 4; i < count; ++i) digests(words[i], std::stoull(words[2]), static_cast<uint32_t>(std::stoul(words[3])));
  } else if (what == "normals" && count == 6) {
    std::vector<float> out(number(words[5]));
    eg::normals(std::stoull(words[2]), static_cast<uint32_t>(std::stoul(words[3])), static_cast<uint32_t>(std::stoul(words[4])), out.data(), out.size());
    print_digest(out);
  } else if (what == "philox") {
    uint32_t c[4], k[2], out[4];
    while (std::scanf("%x %x %x %x %x %x", &c[0], &c[1], &c[2], &c[3], &k[0], &k[1]) == 6) {
      eg::philox(c, k, out);
      std::printf("%08x %08x %08x %08x\n", out[0], out[1], out[2], out[3]);
    }
  } else if (what == "sha256" && count == 3) {
    const std::string bytes = read_file(words[2]);
    std::printf("%s\n%s\n", hex_of(eg::sha256(bytes.data(), bytes.size())).c_str(), hex_of(eg::sha256_portable(bytes.data(), bytes.size())).c_str());
  } else {
    REQUIRE(false, "see the top of digests.cpp");
  }
}
