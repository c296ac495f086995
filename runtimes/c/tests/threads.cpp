// T16, T22: many threads on one model, each with its own session, cancelling and opening at random; and cancelling one session from another thread.
//
//   test-threads shared BUNDLE RUNS [LIBRARY]    8 threads of RUNS runs each: the same bytes as one thread gives
//   test-threads cancel BUNDLE TIMES             at a random time, in a network that takes a while
#include <algorithm>
#include <atomic>
#include <cstring>
#include <ctime>
#include <thread>

#include "kit.h"

namespace {

constexpr size_t kThreads = 8, kSeeds = 8;

eg_session *open_session(eg_model *model, const char *library) {
  if (library == nullptr) return surrogate_session(model, 1);
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.threads = 1;
  options.onnxruntime = library;
  eg_session *session = nullptr;
  eg_message why;
  REQUIRE(eg_session_create(model, &options, &session, &why) == EG_OK, "%s", why.text);
  set_missing_conditions(model, session);
  return session;
}

void shared(const char *path, uint64_t runs, const char *library) {
  eg_model *model = nullptr;
  eg_message why;
  REQUIRE(eg_open(path, nullptr, &model, &why) == EG_OK, "%s", why.text);
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  const size_t elements = static_cast<size_t>(info.elements);
  std::vector<std::vector<float>> wanted(kSeeds, std::vector<float>(elements));
  eg_session *serial = open_session(model, library);
  for (size_t seed = 0; seed < kSeeds; ++seed) {
    eg_run_options run = EG_RUN_OPTIONS_INIT;
    run.seed = seed;
    REQUIRE(eg_generate(serial, &run, wanted[seed].data(), elements) == EG_OK, "%s", eg_last_error(serial));
  }
  std::atomic<uint64_t> good{0}, cancelled{0}, reopened{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Random random(t);
      eg_session *session = open_session(model, library);
      std::vector<float> sample(elements);
      for (uint64_t i = 0; i < runs; ++i) {
        if (random.chance(64)) {  // destroy and make again, while others do the same
          eg_session_destroy(session);
          session = open_session(model, library);
          ++reopened;
        }
        if (random.chance(128)) {  // another model of the same file, at the same time
          eg_model *other = nullptr;
          REQUIRE(eg_open(path, nullptr, &other, nullptr) == EG_OK, "a concurrent eg_open");
          eg_close(other);
        }
        eg_run_options run = EG_RUN_OPTIONS_INIT;
        const size_t seed = random.below(kSeeds);
        run.seed = seed;
        eg_step_fn stop = [](void *, uint32_t, uint32_t, const float *, size_t) -> int32_t { return 1; };
        if (random.chance(16)) {
          run.on_step = stop;
          REQUIRE(eg_generate(session, &run, sample.data(), elements) == EG_CANCELLED, "%s", eg_last_error(session));
          ++cancelled;
          run.on_step = nullptr;
        }
        REQUIRE(eg_generate(session, &run, sample.data(), elements) == EG_OK, "%s", eg_last_error(session));
        good += std::memcmp(sample.data(), wanted[seed].data(), elements * sizeof(float)) == 0;
      }
      eg_session_destroy(session);
    });
  }
  eg_close(model);  // sessions keep it
  for (std::thread &t : threads) t.join();
  eg_session_destroy(serial);
  REQUIRE(good == kThreads * runs, "%llu of %llu runs gave other bytes", static_cast<unsigned long long>(kThreads * runs - good), static_cast<unsigned long long>(kThreads * runs));
  std::printf("%llu of %llu runs the same, %llu cancelled, %llu sessions made again\n", static_cast<unsigned long long>(good), static_cast<unsigned long long>(kThreads * runs),
              static_cast<unsigned long long>(cancelled), static_cast<unsigned long long>(reopened));
}

void sleep_for(double seconds) {
  const timespec time = {0, static_cast<long>(seconds * 1e9)};
  nanosleep(&time, nullptr);
}

// The surrogate, taking at least 100 microseconds; asleep, so that other threads run even where there is one core.
int32_t slow(void *user, const char *component, const eg_tensor *inputs, uint32_t input_count, const eg_tensor *outputs, uint32_t output_count) {
  sleep_for(100e-6);
  return surrogate(user, component, inputs, input_count, outputs, output_count);
}

void cancel(const char *path, uint64_t times) {
  eg_model *model = nullptr;
  eg_message why;
  REQUIRE(eg_open(path, nullptr, &model, &why) == EG_OK, "%s", why.text);
  eg_model_info info = EG_MODEL_INFO_INIT;
  eg_model_describe(model, &info);
  const size_t elements = static_cast<size_t>(info.elements);
  eg_session_options options = EG_SESSION_OPTIONS_INIT;
  options.component = slow;
  eg_session *session = nullptr;
  REQUIRE(eg_session_create(model, &options, &session, &why) == EG_OK, "%s", why.text);
  set_missing_conditions(model, session);
  std::vector<float> wanted(elements), sample(elements);
  eg_report report = EG_REPORT_INIT;
  double whole = 1e9;  // the shortest of some, on a machine that others use too
  for (int i = 0; i < 20; ++i) {
    REQUIRE(eg_generate(session, nullptr, wanted.data(), elements) == EG_OK, "%s", eg_last_error(session));
    eg_session_report(session, &report);
    whole = std::min(whole, report.seconds);
  }
  const uint32_t evaluations = report.evaluations;

  Random random(1);
  uint64_t stopped = 0;
  std::vector<double> lateness;
  std::atomic<uint64_t> began{0}, ended{0};
  std::atomic<double> asked{0.0};
  std::thread other([&] {
    for (uint64_t i = 1; i <= times; ++i) {
      const double delay = whole * static_cast<double>(random.below(1000)) / 1000.0;
      while (began.load() < i) sleep_for(1e-6);
      sleep_for(delay);
      asked = seconds_now();
      eg_cancel(session);
      ended = i;
    }
  });
  for (uint64_t i = 1; i <= times; ++i) {
    std::fill(sample.begin(), sample.end(), 7.0f);
    began = i;
    const eg_status status = eg_generate(session, nullptr, sample.data(), elements);
    const double done = seconds_now();
    while (ended.load() < i) sleep_for(1e-6);
    REQUIRE(status == EG_OK || status == EG_CANCELLED, "status %d", status);
    if (status == EG_CANCELLED) {
      ++stopped;
      lateness.push_back(done - asked);
      for (const float x : sample) REQUIRE(x == 7.0f, "a cancelled run wrote into the caller's buffer");
      REQUIRE(eg_get(session, "sample", sample.data(), elements) == EG_BAD_STATE, "an output after a cancelled run");
    } else {
      REQUIRE(std::memcmp(sample.data(), wanted.data(), elements * sizeof(float)) == 0, "a run that was not cancelled in time differs");
    }
    REQUIRE(eg_generate(session, nullptr, sample.data(), elements) == EG_OK, "%s", eg_last_error(session));
    REQUIRE(std::memcmp(sample.data(), wanted.data(), elements * sizeof(float)) == 0, "the run behind a cancelled one differs");
  }
  other.join();
  eg_cancel(session);  // with nothing running: no effect
  REQUIRE(eg_generate(session, nullptr, sample.data(), elements) == EG_OK, "%s", eg_last_error(session));
  eg_cancel(nullptr);
  eg_session_destroy(session);
  eg_close(model);
  REQUIRE(stopped > times / 10, "only %llu of %llu were cancelled in time", static_cast<unsigned long long>(stopped), static_cast<unsigned long long>(times));
  std::sort(lateness.begin(), lateness.end());
  const double step = whole * 2.0 / evaluations, usual = lateness[lateness.size() * 99 / 100];  // a step evaluates twice: it is guided
  REQUIRE(usual <= step + 5e-3, "99 of 100 return within %.3f ms, expected %.3f", usual * 1e3, step * 1e3 + 5.0);
  std::printf("%llu of %llu cancelled; after it was asked, half within %.3f ms, 99 of 100 within %.3f, the slowest %.3f (a step takes %.3f)\n", static_cast<unsigned long long>(stopped),
              static_cast<unsigned long long>(times), lateness[lateness.size() / 2] * 1e3, usual * 1e3, lateness.back() * 1e3, step * 1e3);
}

}  // namespace

int main(int count, char **words) {
  const std::string what = count > 1 ? words[1] : "";
  if (what == "shared" && (count == 4 || count == 5)) {
    shared(words[2], std::stoull(words[3]), count == 5 ? words[4] : nullptr);
  } else if (what == "cancel" && count == 4) {
    cancel(words[2], std::stoull(words[3]));
  } else {
    REQUIRE(false, "see the top of threads.cpp");
  }
}
