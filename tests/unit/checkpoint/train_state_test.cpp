// The train state's file: everything comes back bit for bit, or an error says what is wrong with it.

#include "peft/checkpoint/train_state.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "unit/io/faulty_calls.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace io_test;

namespace {

using FloatLimits = std::numeric_limits<float>;
using DoubleLimits = std::numeric_limits<double>;

/// Matrices that a state refers to, with the bits that are easily lost.
struct Memory {
  std::vector<float> parameter{1.0f / 3, -0.0f, FloatLimits::denorm_min(), FloatLimits::max(), 0.1f, 2.0f};
  std::vector<double> moment{1.0 / 3, -0.0, DoubleLimits::denorm_min(), DoubleLimits::max()};

  TrainState state() const {
    TrainState result;
    result.isa = "avx512";
    result.fingerprint = {{"learning_rate", "0.05"}, {"model \"é\"\n", "C:\\x"}, {"empty", ""}};
    result.scalars["step"] = std::int64_t{1} << 53;
    result.scalars["before the first"] = std::int64_t{-1};
    result.scalars["seed"] = std::numeric_limits<std::uint64_t>::max();
    result.scalars["least"] = std::numeric_limits<std::int64_t>::min();
    result.scalars["loss"] = 0.1 + 0.2;
    result.scalars["minus zero"] = -0.0;
    result.scalars["tiny"] = DoubleLimits::denorm_min();
    result.scalars["huge"] = DoubleLimits::max();
    result.scalars["whole"] = 3.0;
    result.scalars["stopped"] = true;
    result.scalars["text"] = std::string("中文 \"\\\n");
    result.add<float>("parameter", "layers.0.q_proj.lora_A.weight", 2, 3, VectorView<const float>(parameter.data(), 6));
    result.add<double>("exp_avg", "w/with/slashes", 4, 1, VectorView<const double>(moment.data(), 4));
    result.add<float>("exp_avg", "empty", 0, 3, VectorView<const float>(parameter.data(), 0));
    return result;
  }
};

bool same_bits(const TrainState& x, const TrainState& y) {
  if (x.isa != y.isa || x.fingerprint != y.fingerprint || x.tensors.size() != y.tensors.size()) return false;
  for (const TensorRef& one : x.tensors) {
    const std::size_t slash = one.name.find('/');
    const TensorRef* other = y.find(one.name.substr(0, slash), one.name.substr(slash + 1));
    if (other == nullptr || other->type != one.type || other->shape != one.shape) return false;
    if (text_of(other->bytes) != text_of(one.bytes)) return false;
  }
  return true;
}

/// A state of generation `generation`, some kilobytes.
struct Generation {
  std::vector<float> values;
  TrainState state;
  explicit Generation(int generation) : values(3000, static_cast<float>(generation)) {
    state.isa = "scalar";
    state.scalars["generation"] = std::int64_t{generation};
    state.add<float>("parameter", "w", 3, 1000, VectorView<const float>(values.data(), 3000));
  }
};
int load_generation(const std::filesystem::path& path) {
  const TrainState state = load_train_state(path);
  const auto generation = state.get<int>("generation");
  const Generation wanted(generation);
  return same_bits(state, wanted.state) ? generation : -1;
}

}  // namespace

TEST_CASE("train state: everything comes back bit for bit") {
  const ScratchFolder folder;
  const auto path = folder / "train_state.safetensors";
  const Memory memory;
  const TrainState saved = memory.state();
  save_train_state(path, saved);
  const TrainState loaded = load_train_state(path);
  CHECK(loaded.path == path);
  CHECK(same_bits(loaded, saved));
  CHECK(loaded.scalars.size() == saved.scalars.size());
  CHECK(loaded.get<Index>("step") == Index{1} << 53);
  CHECK(loaded.get<int>("before the first") == -1);
  CHECK(loaded.get<std::uint64_t>("seed") == std::numeric_limits<std::uint64_t>::max());
  CHECK(loaded.get<std::int64_t>("least") == std::numeric_limits<std::int64_t>::min());
  CHECK(loaded.get<double>("loss") == 0.1 + 0.2);
  CHECK(loaded.get<double>("minus zero") == 0.0);
  CHECK(std::signbit(loaded.get<double>("minus zero")));
  CHECK(loaded.get<double>("tiny") == DoubleLimits::denorm_min());
  CHECK(loaded.get<double>("huge") == DoubleLimits::max());
  CHECK(loaded.get<double>("whole") == 3.0);
  CHECK(loaded.get<bool>("stopped"));
  CHECK(loaded.get<std::string>("text") == "中文 \"\\\n");
  CHECK_FALSE(loaded.find_scalar<double>("none").has_value());

  CHECK(loaded.group("exp_avg").size() == 2);
  CHECK(loaded.group("exp_avg")[0].first == "empty");
  CHECK(loaded.group("exp").empty());
  Buffer<float> values(6);
  copy_state<float>(*loaded.find("parameter", "layers.0.q_proj.lora_A.weight"), 2, 3, values.view());
  CHECK(std::memcmp(values.data(), memory.parameter.data(), 24) == 0);

  // What was read can be written again, over the file that it views.
  save_train_state(path, loaded);
  CHECK(same_bits(load_train_state(path), saved));
}

TEST_CASE("train state: values that are missing, of another kind or do not fit are refused with name and file") {
  const ScratchFolder folder;
  const auto path = folder / "state";
  const Memory memory;
  save_train_state(path, memory.state());
  const TrainState state = load_train_state(path);
  CHECK_THROWS_WITH(state.get<int>("none"), Catch::Contains("it has no \"none\"") && Catch::Contains(path.string()));
  CHECK_THROWS_WITH(state.get<int>("step"), Catch::Contains("\"step\" is 9007199254740992"));
  CHECK_THROWS_WITH(state.get<Index>("seed"), Catch::Contains("seed"));
  CHECK_THROWS_WITH(state.get<std::uint64_t>("before the first"), Catch::Contains("-1"));
  CHECK_THROWS_AS(state.get<double>("step"), FormatError);
  CHECK_THROWS_AS(state.get<bool>("text"), FormatError);

  const TensorRef& parameter = *state.find("parameter", "layers.0.q_proj.lora_A.weight");
  Buffer<float> values(6);
  Buffer<double> doubles(6);
  CHECK_THROWS_AS(copy_state<float>(parameter, 3, 2, values.view()), ShapeError);
  CHECK_THROWS_WITH(copy_state<float>(parameter, 3, 2, values.view()), Catch::Contains("[2, 3]; expected [3, 2]"));
  CHECK_THROWS_WITH(copy_state<double>(parameter, 2, 3, doubles.view()), Catch::Contains("as F32; expected F64"));
  CHECK(state.find("parameter", "layers.0.q_proj.lora_B.weight") == nullptr);
}

TEST_CASE("train state: another run's settings and another instruction set are told") {
  const Memory memory;
  const TrainState state = memory.state();
  auto own = state.fingerprint;
  state.require_fingerprint(own);
  own[0].second = "0.06";
  CHECK_THROWS_AS(state.require_fingerprint(own), ConfigError);
  CHECK_THROWS_WITH(state.require_fingerprint(own),
                    Catch::Contains("learning_rate is \"0.06\", but the saved run has \"0.05\""));
  own = state.fingerprint;
  own.emplace_back("new setting", "1");
  CHECK_THROWS_WITH(state.require_fingerprint(own), Catch::Contains("new setting is \"1\", but the saved run has"));
  own = state.fingerprint;
  own.pop_back();
  CHECK_THROWS_WITH(state.require_fingerprint(own), Catch::Contains("empty is not set"));
  CHECK_FALSE(state.isa_note("avx512").has_value());
  CHECK(state.isa_note("scalar").value().find("computed with avx512, this one does with scalar") != std::string::npos);
}

TEST_CASE("train state: what cannot be written is refused, and the old file stays") {
  const ScratchFolder folder;
  const auto path = folder / "state";
  const Memory memory;
  save_train_state(path, memory.state());
  const std::string old = read_file(path);
  const auto refused = [&](auto&& change, const char* expected) {
    TrainState state = memory.state();
    change(state);
    const std::string message = message_of<Error>([&] { save_train_state(path, state); });
    INFO(message);
    CHECK(message.find(expected) != std::string::npos);
    CHECK(message.find(path.string()) != std::string::npos);
    CHECK(read_file(path) == old);
    CHECK(names_in(folder.path()).size() == 1);
  };
  refused([](TrainState& s) { s.scalars["loss"] = DoubleLimits::quiet_NaN(); }, "\"loss\" is nan");
  refused([](TrainState& s) { s.scalars["loss"] = DoubleLimits::infinity(); }, "\"loss\" is inf");
  refused([](TrainState& s) { s.scalars["text"] = std::string("\xff"); }, "expected UTF-8");
  refused([](TrainState& s) { s.scalars["\xff"] = true; }, "expected UTF-8");
  refused([](TrainState& s) { s.fingerprint[0].second = "\xc3"; }, "expected UTF-8");
  refused([](TrainState& s) { s.isa = "\xc3"; }, "not UTF-8");
  refused([](TrainState& s) { s.tensors[0].name = "no group"; }, "expected group/name");
  refused([](TrainState& s) { s.tensors[0].name = "/x"; }, "expected group/name");
  refused([](TrainState& s) { s.tensors[0].name = "x/"; }, "expected group/name");
  refused([](TrainState& s) { s.tensors[1].name = s.tensors[0].name; }, "two tensors are named");
  refused([](TrainState& s) { s.tensors[0].type = StoredType::kI32; }, "expected a matrix of F32, F64 or U8");
  refused([](TrainState& s) { s.tensors[0].shape = {6}; }, "expected a matrix of F32, F64 or U8");
  TrainState state;
  CHECK_THROWS_WITH(state.add<float>("g", "n", 2, 2, VectorView<const float>(memory.parameter.data(), 3)),
                    Catch::Contains("g/n has 3 values; expected 4"));
}

TEST_CASE("train state: files that are cut, changed or of another kind are refused") {
  const ScratchFolder folder;
  const auto path = folder / "state";
  const Memory memory;
  save_train_state(path, memory.state());
  const std::string good = read_file(path);
  const auto refused = [&](const std::string& content) {
    write_file(path, content);
    const std::string message = message_of<FormatError>([&] { load_train_state(path); });
    CHECK(message.find(path.string()) != std::string::npos);
    return message;
  };
  for (std::size_t length = 0; length < good.size(); length += 11) refused(good.substr(0, length));
  refused(good + "x");
  const auto with_metadata = [&](const char* key, const std::string& value) {
    SafetensorsMetadata metadata = SafetensorsFile::open(path).metadata();
    if (value.empty()) {
      metadata.erase(key);
    } else {
      metadata[key] = value;
    }
    const auto other = folder / "other";
    write_safetensors(other, {}, metadata);
    return message_of<FormatError>([&] { load_train_state(other); });
  };
  write_file(path, good);
  CHECK(with_metadata("peft.train_state.version", "2").find("its version is \"2\"; expected 1") != std::string::npos);
  CHECK(with_metadata("peft.train_state.version", "").find("this is no train state") != std::string::npos);
  CHECK(with_metadata("peft.train_state.isa", "").find("this is no train state") != std::string::npos);
  CHECK(with_metadata("peft.train_state.scalars", "[]").find("expected a list and an object") != std::string::npos);
  CHECK(with_metadata("peft.train_state.scalars", "{\"x\":{}}").find("\"x\" is an object") != std::string::npos);
  CHECK(with_metadata("peft.train_state.scalars", "{\"x\":null}").find("\"x\" is null") != std::string::npos);
  CHECK(with_metadata("peft.train_state.scalars", "{\"x\":1").find("not valid JSON") != std::string::npos);
  CHECK(with_metadata("peft.train_state.fingerprint", "[[1,2]]").find("pairs of texts") != std::string::npos);
  write_safetensors(path, std::vector<TensorRef>{});
  CHECK_THROWS_WITH(load_train_state(path), Catch::Contains("this is no train state"));
  CHECK_THROWS_AS(load_train_state(folder / "none"), IoError);

  // Numbers that are none are found when they are copied.
  std::string bad = good;
  const float infinity = FloatLimits::infinity();
  const std::string largest = bytes_of(FloatLimits::max());
  bad.replace(bad.rfind(largest), 4, bytes_of(infinity));
  write_file(path, bad);
  const TrainState state = load_train_state(path);
  Buffer<float> values(6);
  CHECK_THROWS_WITH(copy_state<float>(*state.find("parameter", "layers.0.q_proj.lora_A.weight"), 2, 3, values.view()),
                    Catch::Contains("holds inf at [1, 0]"));
}

TEST_CASE("train state: whatever call of a save fails, old or new is loaded") {
  const ScratchFolder folder;
  const auto path = folder / "state";
  int count = 0;
  {
    FaultyCalls calls([](int, const std::string&) { return 0; });
    save_train_state(path, Generation(1).state);
    count = calls.count();
  }
  REQUIRE(count > 5);
  for (int at = 0; at < count; ++at) {
    for (const int error : {ENOSPC, EACCES}) {
      save_train_state(path, Generation(1).state);
      std::string message;
      std::string failed;
      {
        FaultyCalls calls([&](int number, const std::string& call) {
          if (number == at) failed = call;
          return number == at ? error : 0;
        });
        message = message_of<IoError>([&] { save_train_state(path, Generation(2).state); });
      }
      INFO("call " << at << ", " << failed << ": " << message);
      const bool in_place = message.empty() || message.find("is in place") != std::string::npos;
      CHECK(load_generation(path) == (in_place ? 2 : 1));
      if (!message.empty()) CHECK(message.find(error_text(error)) != std::string::npos);
    }
  }
  FaultyCalls calls([again = false](int, const std::string& call) mutable {
    again = !again;
    return (call == "write" || call == "fsync") && again ? EINTR : 0;
  });
  calls.longest_write = 1000;
  save_train_state(path, Generation(3).state);
  CHECK(load_generation(path) == 3);
  CHECK(names_in(folder.path()).size() == 1);
}
