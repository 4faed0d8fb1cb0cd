// Adapter folders: those that Python PEFT saved, those that it loads, those that are broken, and saves that fail or are
// killed.

#include "peft/checkpoint/peft_directory.hpp"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <thread>

#include "peft/checkpoint/adapter_parameters.hpp"
#include "peft/core/rng.hpp"
#include "support/catch.hpp"
#include "support/sanitized.hpp"
#include "unit/io/faulty_calls.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using namespace io_test;

namespace {

const std::filesystem::path kGoldens = std::filesystem::path(PEFT_GOLDEN_DIR) / "checkpoint";

/// An adapter in memory, and the visitor that loading and saving go by.
struct Weights {
  struct One {
    std::string name;
    Index rows = 0;
    Index cols = 0;
    std::vector<float> values;
    One(std::string n, Index r, Index c)
        : name(std::move(n)), rows(r), cols(c), values(static_cast<std::size_t>(r * c)) {}
    bool operator==(const One&) const = default;
  };
  std::vector<One> all;

  void add(const std::string& module, Index in, Index out, Index r) {
    all.emplace_back(module + ".lora_A.weight", r, in);
    all.emplace_back(module + ".lora_B.weight", out, r);
  }
  template <class Visitor>
  void for_each_parameter(Visitor&& visit) {
    for (One& one : all) {
      visit(ParameterInfo{one.name, ParameterRole::kOther, true, one.rows, one.cols},
            VectorView<float>(one.values.data(), one.rows * one.cols), VectorView<float>());
    }
  }
  /// Values that tell parameters, places and generations apart, exact in float and half.
  void fill(Index generation) {
    for (std::size_t number = 0; number < all.size(); ++number) {
      std::vector<float>& values = all[number].values;
      for (std::size_t i = 0; i < values.size(); ++i) {
        const auto pattern = static_cast<Index>((i * 37 + number * 11) % 101);
        values[i] = static_cast<float>(pattern - 50 + 128 * generation) / 256.0f;
      }
    }
  }
  bool operator==(const Weights&) const = default;
};

constexpr const char* kQ0 = "model.layers.0.self_attn.q_proj";
constexpr const char* kV0 = "model.layers.0.self_attn.v_proj";
constexpr const char* kQ1 = "model.layers.1.self_attn.q_proj";
constexpr const char* kV1 = "model.layers.1.self_attn.v_proj";

/// What tests/golden/make_checkpoint.py expects in ours/.
LoraConfig our_config() {
  LoraConfig config{.r = 4, .lora_alpha = 16, .target_modules = {"q_proj", "v_proj"}, .lora_dropout = 0.05f};
  config.use_rslora = true;
  config.rank_pattern = {{R"(layers\.1\.self_attn\.v_proj)", 2}};
  config.alpha_pattern = {{R"(layers\.0\.self_attn\.q_proj)", 6}};
  config.task_type = "CAUSAL_LM";
  config.base_model_name_or_path = "tiny-llama";
  return config;
}
Weights our_weights(Index generation = 0) {
  Weights weights;
  weights.add(kQ0, 32, 32, 4);
  weights.add(kV0, 32, 16, 4);
  weights.add(kQ1, 32, 32, 4);
  weights.add(kV1, 32, 16, 2);
  weights.fill(generation);
  return weights;
}

/// Saves one generation: configuration and weights tell which, so that a mixture shows.
void save(const std::filesystem::path& folder, Index generation, std::string_view name = "default") {
  Weights weights = our_weights(generation);
  LoraConfig config = our_config();
  config.revision = std::to_string(generation);
  save_peft_adapter(folder, config, adapter_tensors(weights), name);
}
/// The generation that stands there; -1 for a mixture. Throws where nothing can be loaded.
Index load(const std::filesystem::path& folder) {
  const PeftAdapter adapter = load_peft_adapter(folder);
  const Index generation = std::atol(adapter.config.revision.value_or("-1").c_str());
  Weights weights = our_weights(-2);
  assign_adapter(adapter, weights);
  return weights == our_weights(generation) ? generation : -1;
}

double sum_of(const Matrix<float>& matrix) {
  double sum = 0;
  for (const float value : matrix.flat()) sum += static_cast<double>(value);
  return sum;
}

/// A folder with one module "m": A [2,3], B [4,2].
void save_small(const std::filesystem::path& folder) {
  Weights weights;
  weights.add("m", 3, 4, 2);
  weights.fill(1);
  save_peft_adapter(folder, LoraConfig{.r = 2, .target_modules = {"m"}}, adapter_tensors(weights));
}

TensorRef tensor(const std::string& name, const Matrix<float>& values) { return tensor_ref(name, values.view()); }

}  // namespace

TEST_CASE("adapter folder: what PEFT saved is loaded: values, shapes, ranks, scales") {
  const Json golden = parse_json(read_file(kGoldens / "peft_lora.json"), "golden");
  for (const char* name : {"default", "second", "half", "brain"}) {
    INFO(name);
    const PeftAdapter adapter = load_peft_adapter(kGoldens / "peft_lora", name);
    const Json& tensors = golden[name]["tensors"];
    const Json& scaling = golden[name]["scaling"];
    CHECK(adapter.modules.size() == scaling.size());
    CHECK(2 * adapter.modules.size() == tensors.size());
    CHECK(adapter.config.task_type == "CAUSAL_LM");
    CHECK(adapter.config.inference_mode);
    Index parameters = 0;
    for (const LoraTensors& entry : adapter.modules) {
      INFO(entry.module);
      CHECK(adapter.find(entry.module) == &entry);
      REQUIRE(scaling.contains(entry.module));
      CHECK(scaling_for(adapter.config, entry.module) == Approx(scaling[entry.module].get<double>()).epsilon(1e-14));
      CHECK(rank_for(adapter.config, entry.module) == entry.r());
      for (const TensorRef* stored : {&entry.a, &entry.b}) {
        const Json& expected = tensors["base_model.model." + stored->name];
        CHECK(Json(stored->shape) == expected["shape"]);
        const Matrix<float> values = stored->to_matrix();
        parameters += values.size();
        CHECK(sum_of(values) == Approx(expected["sum"].get<double>()).epsilon(1e-12));
        for (Index i = 0; i < 4; ++i) {
          CHECK(values.flat()[i] == expected["first"][static_cast<std::size_t>(i)].get<float>());
        }
        CHECK(values.flat()[values.size() - 1] == expected["last"].get<float>());
      }
    }
    CHECK(adapter.parameter_count() == parameters);
    CHECK(adapter.find("model.layers.9.self_attn.q_proj") == nullptr);
  }
}

TEST_CASE("adapter folder: what PEFT saved and we save again has the same weights file and fields") {
  const ScratchFolder folder;
  for (const char* name : {"default", "second", "half", "brain"}) {
    INFO(name);
    const PeftAdapter adapter = load_peft_adapter(kGoldens / "peft_lora", name);
    std::vector<TensorRef> tensors;
    for (const LoraTensors& entry : adapter.modules) {
      tensors.push_back(entry.a);
      tensors.push_back(entry.b);
    }
    save_peft_adapter(folder.path(), adapter.config, tensors, name);
    const auto theirs = detail::adapter_folder(kGoldens / "peft_lora", name);
    const auto ours = detail::adapter_folder(folder.path(), name);
    CHECK(read_file(ours / "adapter_model.safetensors") == read_file(theirs / "adapter_model.safetensors"));
    CHECK(read_lora_config(ours / "adapter_config.json") == adapter.config);
    const Json their_config = parse_json(read_file(theirs / "adapter_config.json"), "theirs");
    const Json our_fields = parse_json(read_file(ours / "adapter_config.json"), "ours");
    for (const auto& [field, value] : our_fields.items()) {
      INFO(field);
      CHECK(value == their_config[field]);
    }
  }
}

TEST_CASE("adapter folder: tensors of every type that torch saves are written as it writes them") {
  const SafetensorsFile file = SafetensorsFile::open(kGoldens / "types.safetensors");
  CHECK(file.tensors().size() == 22);
  std::vector<TensorRef> tensors(file.tensors().rbegin(), file.tensors().rend());
  const ScratchFolder folder;
  write_safetensors(folder / "types.safetensors", tensors, file.metadata());
  CHECK(read_file(folder / "types.safetensors") == read_file(kGoldens / "types.safetensors"));
}

TEST_CASE("adapter folder: what we save is what the golden script has PEFT load") {
  const auto committed = kGoldens / "ours";
  const ScratchFolder folder;
  Weights weights = our_weights();
  save_peft_adapter(folder.path(), our_config(), adapter_tensors(weights));
  if (std::getenv("PEFT_UPDATE_GOLDEN") != nullptr) {
    save_peft_adapter(committed, our_config(), adapter_tensors(weights));
  }
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    INFO(name << "; PEFT_UPDATE_GOLDEN=1 writes it anew");
    CHECK(read_file(folder / name) == read_file(committed / name));
  }
  const PeftAdapter loaded = load_peft_adapter(committed);
  LoraConfig expected = our_config();
  expected.inference_mode = true;
  CHECK(loaded.config == expected);
  Weights again = our_weights(3);
  assign_adapter(loaded, again);
  CHECK(again == our_weights());
}

TEST_CASE("adapter folder: names of adapters are sub-folders, other files stay") {
  const ScratchFolder folder;
  write_file(folder / "README.md", "kept");
  save(folder.path(), 1);
  save(folder.path(), 2, "second");
  save(folder.path(), 3);
  CHECK(load(folder.path()) == 3);
  CHECK(load(folder / "second") == 2);
  CHECK(read_file(folder / "README.md") == "kept");
  for (const char* name : {"", "a/b", "..", ".x"}) CHECK_THROWS_AS(save(folder.path(), 4, name), ConfigError);
  CHECK_THROWS_WITH(load_peft_adapter(folder.path(), "third"), Catch::Contains("third"));
}

TEST_CASE("adapter folder: one that holds none says what it holds instead") {
  const ScratchFolder folder;
  const auto message = [&](const char* name) {
    return message_of<Error>([&] { load_peft_adapter(folder / name); });
  };
  CHECK(message("none").find("there is no such folder") != std::string::npos);
  std::filesystem::create_directories(folder / "empty");
  CHECK(message("empty").find("it has no adapter_config.json") != std::string::npos);
  save(folder / "outer", 1, "inner");
  CHECK(message("outer").find("hold adapters of these names: inner") != std::string::npos);
  save(folder / "pickle", 1);
  std::filesystem::rename(folder / "pickle/adapter_model.safetensors", folder / "pickle/adapter_model.bin");
  CHECK(message("pickle").find("Python pickle, which is not read") != std::string::npos);
  std::filesystem::remove(folder / "pickle/adapter_model.bin");
  CHECK(message("pickle").find("it has no adapter_model.safetensors") != std::string::npos);
}

TEST_CASE("adapter folder: weights that make no adapter are refused by key") {
  const ScratchFolder folder;
  const auto weights = folder / "adapter_model.safetensors";
  const Matrix<float> a = Matrix<float>::zeros(2, 3), b = Matrix<float>::zeros(4, 2), wide = Matrix<float>::zeros(4, 3);
  const std::string key = "base_model.model.m.";
  const auto refused = [&](std::vector<TensorRef> tensors, const char* expected) {
    save_small(folder.path());
    write_safetensors(weights, tensors);
    const std::string message = message_of<Error>([&] { load_peft_adapter(folder.path()); });
    INFO(message);
    CHECK(message.find(expected) != std::string::npos);
    CHECK(message.find(weights.string()) != std::string::npos);
  };
  const TensorRef good_a = tensor(key + "lora_A.weight", a), good_b = tensor(key + "lora_B.weight", b);
  refused({}, "no weights");
  refused({good_a}, "module m has no lora_B.weight");
  refused({good_b}, "module m has no lora_A.weight");
  refused({good_a, tensor(key + "lora_B.weight", wide)}, "module m has A [2, 3] and B [4, 3]");
  refused({tensor(key + "lora_A.weight", wide), tensor(key + "lora_B.weight", Matrix<float>::zeros(4, 4))},
          "module m has rank 4 (A [4, 3]); its configuration gives 2");
  refused({good_a, good_b, tensor("m.lora_A.weight", a)}, "does not begin with \"base_model.model.\"");
  refused({good_a, good_b, tensor(key + "lora_A.default.weight", a)}, "adapter's name in it");
  refused({good_a, good_b, tensor(key + "lora_magnitude_vector", b)}, "DoRA");
  refused({good_a, good_b, tensor(key + "lora_B.bias", b)}, "lora_bias");
  refused({good_a, good_b, tensor(key + "lora_embedding_A.default", a)}, "adapter's name in it");
  refused({good_a, good_b, tensor(key + "base_layer.bias", a)}, "base layer");
  refused({good_a, good_b, tensor(key + "token_adapter.trainable_tokens_delta", a)}, "trainable_token_indices");
  refused({good_a, good_b, tensor(key + "lora_C", a)}, "no parameter of LoRA");
  refused({good_a, good_b, tensor("base_model.model.score.weight", a)}, "modules_to_save");
  refused({good_a, good_b, tensor("base_model.model.x.lora_A.weight", Matrix<float>())}, "expected a matrix");
  TensorRef flat = good_a;
  flat.shape = {6};
  refused({flat, good_b}, "the shape [6]; expected a matrix");
  TensorRef whole = good_a;
  whole.type = StoredType::kI32;
  refused({whole, good_b}, "stored as I32; expected F32, F16 or BF16");
}

TEST_CASE("adapter folder: a weights file that is cut or lies is refused") {
  const ScratchFolder folder;
  save_small(folder.path());
  const auto weights = folder / "adapter_model.safetensors";
  const std::string good = read_file(weights);
  const auto refused = [&](const std::string& content) {
    write_file(weights, content);
    return message_of<FormatError>([&] { load_peft_adapter(folder.path()); });
  };
  for (std::size_t length = 0; length < good.size(); length += 5) {
    INFO("first " << length << " bytes");
    CHECK(refused(good.substr(0, length)).find(weights.string()) != std::string::npos);
  }
  CHECK(refused(good + "x").find("follow the last tensor") != std::string::npos);
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return refused(text);
  };
  CHECK_FALSE(replaced("[2,3]", "[2,4]").empty());
  CHECK_FALSE(replaced("\"F32\"", "\"F16\"").empty());
}

TEST_CASE("adapter folder: keys and shapes that do not fit the model are refused before anything changes") {
  const PeftAdapter adapter = load_peft_adapter(kGoldens / "ours");
  const auto refused = [&](Weights weights, const AdapterMatching& matching = {}) {
    const Weights before = weights;
    const std::string message = message_of<Error>([&] { assign_adapter(adapter, weights, matching); });
    INFO(message);
    CHECK(weights == before);
    CHECK(message.find((kGoldens / "ours").string()) != std::string::npos);
    return message;
  };
  Weights weights = our_weights(7);
  weights.all.erase(weights.all.begin() + 1);
  CHECK(refused(weights).find("1 of its 8 keys match no parameter of the model: "
                              "model.layers.0.self_attn.q_proj.lora_B.weight; the model's keys look like") !=
        std::string::npos);
  CHECK(refused(Weights()).find("8 of its 8 keys match no parameter") != std::string::npos);
  CHECK(refused(Weights()).find(" and 5 more") != std::string::npos);
  CHECK(refused(Weights()).find("the model has no adapted modules") != std::string::npos);
  {
    Weights fewer = weights;
    AdapterMatching matching;
    matching.allow_unused_keys = true;
    assign_adapter(adapter, fewer, matching);
    Weights expected = our_weights();
    expected.all.erase(expected.all.begin() + 1);
    CHECK(fewer == expected);
  }
  weights = our_weights(7);
  weights.add("model.layers.2.self_attn.q_proj", 32, 32, 4);
  CHECK(refused(weights).find("2 parameters of the model have no key in it: model.layers.2.self_attn.q_proj.lora_A") !=
        std::string::npos);
  {
    AdapterMatching matching;
    matching.allow_missing_keys = true;
    Weights more = weights;
    assign_adapter(adapter, more, matching);
    CHECK(more.all.back() == weights.all.back());
    more.all.erase(more.all.begin() + 8, more.all.end());
    CHECK(more == our_weights());
  }
  weights = our_weights(7);
  weights.all[3] = Weights::One(weights.all[3].name, 4, 16);
  CHECK(refused(weights).find("model.layers.0.self_attn.v_proj.lora_B.weight is [16, 4], the model's is [4, 16]") !=
        std::string::npos);
}

TEST_CASE("adapter folder: numbers that are not finite are neither saved nor loaded") {
  const ScratchFolder folder;
  save(folder.path(), 1);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Weights weights = our_weights(2);
    weights.all[6].values[1 * 32 + 30] = bad;
    const auto saving = [&] { save_peft_adapter(folder.path(), our_config(), adapter_tensors(weights)); };
    CHECK_THROWS_AS(saving(), NumericError);
    CHECK_THROWS_WITH(saving(), Catch::Contains("model.layers.1.self_attn.v_proj.lora_A.weight") &&
                                    Catch::Contains("at [1, 30]"));
    CHECK(load(folder.path()) == 1);
    CHECK(names_in(folder.path()).size() == 2);

    const ScratchFolder other;
    save(other.path(), 1);
    std::vector<TensorRef> tensors = adapter_tensors(weights);
    for (TensorRef& one : tensors) one.name.insert(0, "base_model.model.");
    write_safetensors(other / "adapter_model.safetensors", tensors);
    Weights target = our_weights(5);
    CHECK_THROWS_AS(assign_adapter(load_peft_adapter(other.path()), target), NumericError);
    CHECK(target == our_weights(5));
  }
}

TEST_CASE("adapter folder: tensors that do not fit the configuration are not saved") {
  const ScratchFolder folder;
  save(folder.path(), 1);
  const auto refused = [&](Weights weights, LoraConfig config = our_config()) {
    const std::string message =
        message_of<Error>([&] { save_peft_adapter(folder.path(), config, adapter_tensors(weights)); });
    INFO(message);
    CHECK(message.find(folder.path().string()) != std::string::npos);
    CHECK(load(folder.path()) == 1);
    return message;
  };
  LoraConfig config = our_config();
  config.rank_pattern.clear();
  CHECK(refused(our_weights(2), config).find("has rank 2") != std::string::npos);
  Weights weights = our_weights(2);
  weights.all.pop_back();
  CHECK(refused(weights).find("has no lora_B.weight") != std::string::npos);
  CHECK(refused(Weights()).find("there are no weights") != std::string::npos);
  weights = our_weights(2);
  weights.all[0].name = "score.weight";
  CHECK(refused(weights).find("modules_to_save") != std::string::npos);
}

TEST_CASE("adapter folder: whatever call of a save fails, the old adapter or the new one is loaded") {
  std::vector<std::string> calls_of_a_save;
  {
    const ScratchFolder folder;
    save(folder.path(), 1);
    FaultyCalls calls([&](int, const std::string& call) {
      calls_of_a_save.push_back(call);
      return 0;
    });
    save(folder.path(), 2);
  }
  REQUIRE(calls_of_a_save.size() > 10);
  for (std::size_t at = 0; at < calls_of_a_save.size(); ++at) {
    const std::string& failed = calls_of_a_save[at];
    for (const int error : {ENOSPC, EACCES}) {
      if (error == EACCES && (failed == "fsync" || failed == "close")) continue;
      const ScratchFolder folder;
      save(folder.path(), 1);
      std::string message;
      {
        FaultyCalls calls([&](int number, const std::string&) { return number == static_cast<int>(at) ? error : 0; });
        message = message_of<IoError>([&] { save(folder.path(), 2); });
      }
      INFO("call " << at << ", " << failed << ": " << message);
      const Index found = load(folder.path());
      CHECK((found == 1 || found == 2));
      if (failed == "write" || failed == "fsync") CHECK_FALSE(message.empty());
      if (failed == "write") {
        CHECK(found == 1);
        CHECK(message.find(error_text(error)) != std::string::npos);
        CHECK(message.find((folder / "adapter_").string()) != std::string::npos);
        CHECK(names_in(folder.path()).size() == 2);
      }
      save(folder.path(), 3);
      CHECK(load(folder.path()) == 3);
      CHECK(names_in(folder.path()).size() == 2);
    }
  }
  // Short and interrupted writes are gone on with.
  const ScratchFolder folder;
  bool again = false;
  FaultyCalls calls([&](int, const std::string& call) {
    again = !again;
    return (call == "write" || call == "fsync") && again ? EINTR : 0;
  });
  calls.longest_write = 100;
  save(folder.path(), 1);
  save(folder.path(), 2);
  CHECK(load(folder.path()) == 2);
}

TEST_CASE("adapter folder: kills during saves leave an adapter that is loaded") {
  const ScratchFolder folder;
  save(folder.path(), 1);
  Index last = 1;
  Philox random(5);
  for (int number = 0; number < peft_test::kKills; ++number) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      try {
        for (Index generation = last + 1;; ++generation) save(folder.path(), generation);
      } catch (...) {
      }
      ::_exit(3);
    }
    const timespec pause{0, static_cast<long>(random.below(40'000'000))};
    ::nanosleep(&pause, nullptr);
    ::kill(child, SIGKILL);
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status));
    const Index found = load(folder.path());
    INFO("kill " << number << ", found generation " << found << " after " << last);
    REQUIRE(found >= last);
    last = found;
  }
  CHECK(last > 1);
  save(folder.path(), last + 1);
  CHECK(load(folder.path()) == last + 1);
  CHECK(names_in(folder.path()).size() == 2);
}

TEST_CASE("adapter folder: who reads while another saves gets one save's files, never of two") {
  const ScratchFolder folder;
  save(folder.path(), 1);
  std::atomic<bool> done{false};
  std::thread writer([&] {
    for (Index generation = 2; generation < 60; ++generation) save(folder.path(), generation);
    done = true;
  });
  Index last = 1;
  int mixtures = 0, reads = 0, restless = 0;
  while (!done) {
    try {
      const Index found = load(folder.path());
      mixtures += found < last ? 1 : 0;
      last = std::max(last, found);
      ++reads;
    } catch (const IoError& error) {
      restless += std::string_view(error.what()).find("keeps changing") != std::string_view::npos ? 1 : 1000;
    }
  }
  writer.join();
  CHECK(mixtures == 0);
  CHECK(reads > 0);
  CHECK(restless < 1000);
  CHECK(load(folder.path()) == 59);
}

TEST_CASE("files that move, or come, while they are read are read again; what stays wrong is said") {
  const ScratchFolder folder;
  const std::string names[] = {"adapter_config.json", "adapter_model.safetensors"};
  const auto pending = folder.path() / ".peft-commit";
  const auto read_after = [&](const auto& disturb, int disturbances) {
    int calls = 0;
    detail::read_unchanged(folder.path(), names[0], names[1], "folder", [&] {
      if (++calls <= disturbances) {
        disturb();
        fail<IoError>("gone");
      }
      return calls;
    });
    return calls;
  };
  std::filesystem::create_directories(pending);
  for (const std::string& name : names) std::ofstream(pending / name) << "1";
  CHECK(read_after(
            [&] {
              for (const std::string& name : names) std::filesystem::rename(pending / name, folder.path() / name);
            },
            1) == 2);
  CHECK_THROWS_AS(read_after([] {}, 1), IoError);  // nothing changed: the error is the file's
  std::filesystem::remove(folder.path() / names[1]);
  CHECK(read_after([&] { std::ofstream(folder.path() / names[1]) << "1"; }, 1) == 2);
  std::filesystem::remove(folder.path() / names[1]);
  CHECK_THROWS_WITH(read_after([] {}, 100), "gone");  // missing for good
}
