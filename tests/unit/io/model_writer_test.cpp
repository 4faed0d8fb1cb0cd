#include <sys/wait.h>
#include <time.h>

#include <cstring>
#include <functional>

#include "faulty_calls.hpp"
#include "peft/core/rng.hpp"
#include "peft/io/gguf.hpp"
#include "peft/io/gguf_writer.hpp"
#include "peft/io/safetensors_shards.hpp"
#include "scratch.hpp"
#include "support/catch.hpp"

using namespace peft;
using io_test::FaultyCalls;
using io_test::message_of;
using io_test::names_in;
using io_test::read_file;
using io_test::ScratchFolder;
using io_test::write_file;

namespace {

/// A tensor of `count` floats that count from `first`.
DeferredTensor floats(std::string name, std::vector<Index> shape, float first) {
  return {std::move(name), StoredType::kF32, shape, [shape, first, values = std::vector<float>()]() mutable {
            values.resize(static_cast<std::size_t>(detail::element_count(shape).value()));
            for (std::size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i);
            return std::as_bytes(std::span<const float>(values));
          }};
}
std::vector<DeferredTensor> as_they_stand(const GgufFile& file) {
  std::vector<DeferredTensor> tensors;
  for (const TensorRef& tensor : file.tensors()) {
    tensors.push_back({tensor.name, tensor.type, tensor.shape, [bytes = tensor.bytes] { return bytes; }});
  }
  return tensors;
}

/// A model of a generation, in a file or folder of its own below `folder`, and the generation that is found there again:
/// 0 where there is none, -1 for a mixture.
struct ModelWay {
  const char* name;
  std::function<void(const std::filesystem::path& folder, int generation)> save;
  std::function<int(const std::filesystem::path& folder)> load;
};

std::vector<DeferredTensor> tensors_of(int generation) {
  const auto first = static_cast<float>(1000 * generation);
  return {floats("model.embed_tokens.weight", {7, 64}, first), floats("model.norm.weight", {64}, first),
          floats("model.layers.0.mlp.up_proj.weight", {30, 64}, first)};
}
template <class File>
int generation_in(const File& file, int said) {
  for (const DeferredTensor& tensor : tensors_of(said)) {
    const std::span<const std::byte> wanted = tensor.make(), found = file.tensor(tensor.name).bytes;
    if (!std::equal(wanted.begin(), wanted.end(), found.begin(), found.end())) return -1;
  }
  return said;
}

const std::vector<ModelWay>& model_ways() {
  static const std::vector<ModelWay> ways{
      {"GGUF",
       [](const auto& folder, int generation) {
         GgufMetadata metadata;
         metadata.set("general.name", std::to_string(generation));
         write_gguf(folder / "model.gguf", metadata, tensors_of(generation));
       },
       [](const auto& folder) {
         if (!std::filesystem::exists(folder / "model.gguf")) return 0;
         const GgufFile file = GgufFile::open(folder / "model.gguf");
         return generation_in(file, std::stoi(std::string(file.get<std::string_view>("general.name"))));
       }},
      {"safetensors",
       [](const auto& folder, int generation) {
         AtomicFile file(folder / "model.safetensors");
         const std::vector<DeferredTensor> tensors = tensors_of(generation);
         write_safetensors(file.writer(), std::span<const DeferredTensor>(tensors));
         file.commit();
       },
       [](const auto& folder) {
         if (!std::filesystem::exists(folder / "model.safetensors")) return 0;
         const SafetensorsFile file = SafetensorsFile::open(folder / "model.safetensors");
         return generation_in(file, static_cast<int>(file.tensor("model.norm.weight").to_matrix()(0, 0)) / 1000);
       }},
      {"model folder in shards", [](const auto& folder, int generation) {
         AtomicDirectory target(folder / "model", ExistingFolder::kReplace);
         FileWriter config = target.create("config.json");
         config.write("{\"generation\": " + std::to_string(generation) + "}\n");
         config.finish();
         write_safetensors_shards(target, tensors_of(generation), 2000);
         target.commit();
       },
       [](const auto& folder) {
         const auto config = AtomicDirectory::locate(folder / "model", "config.json");
         if (!std::filesystem::exists(config)) return 0;
         const SafetensorsFile file = SafetensorsFile::open_folder(config.parent_path());
         return generation_in(file, parse_json(read_file(config), "config")["generation"].template get<int>());
       }}};
  return ways;
}

}  // namespace

TEST_CASE("models: whatever call of a save fails, the old model or the new one is there, and the next save works") {
  for (const ModelWay& way : model_ways()) {
    std::vector<std::string> names;
    {
      const ScratchFolder folder;
      way.save(folder.path(), 1);
      FaultyCalls calls([&](int, const std::string& call) {
        names.push_back(call);
        return 0;
      });
      way.save(folder.path(), 2);
    }
    REQUIRE(names.size() > 8);
    for (std::size_t at = 0; at < names.size(); ++at) {
      for (const int error : {ENOSPC, EIO}) {
        const ScratchFolder folder;
        way.save(folder.path(), 1);
        std::string message;
        {
          FaultyCalls calls([&](int number, const std::string&) { return number == static_cast<int>(at) ? error : 0; });
          message = message_of<IoError>([&] { way.save(folder.path(), 2); });
        }
        INFO(way.name << ", call " << at << ", " << names[at] << ": " << error_text(error) << "; message: " << message);
        const int found = way.load(folder.path());
        CHECK((found == 1 || found == 2));
        if (names[at] == "write") {
          CHECK(found == 1);
          CHECK(message.find(error_text(error)) != std::string::npos);
          CHECK(message.find(folder.path().string()) != std::string::npos);
          CHECK(names_in(folder.path()).size() == 1);
        }
        if (names[at] == "fsync") CHECK_FALSE(message.empty());
        way.save(folder.path(), 3);
        CHECK(way.load(folder.path()) == 3);
        CHECK(names_in(folder.path()).size() == 1);
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
    way.save(folder.path(), 1);
    way.save(folder.path(), 2);
    CHECK(way.load(folder.path()) == 2);
  }
}

TEST_CASE("models: kills during saves leave a whole model") {
  Philox random(6);
  for (const ModelWay& way : model_ways()) {
    const ScratchFolder folder;
    int last = 0;
    for (int number = 0; number < 60; ++number) {
      const pid_t child = ::fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        try {
          for (int generation = last + 1;; ++generation) way.save(folder.path(), generation);
        } catch (...) {
        }
        ::_exit(3);
      }
      const timespec pause{0, static_cast<long>(random.below(10'000'000))};
      ::nanosleep(&pause, nullptr);
      ::kill(child, SIGKILL);
      int status = 0;
      REQUIRE(::waitpid(child, &status, 0) == child);
      REQUIRE(WIFSIGNALED(status));
      const int found = way.load(folder.path());
      INFO(way.name << ", kill " << number << ", found generation " << found << " after " << last);
      REQUIRE(found >= last);
      last = found;
    }
    way.save(folder.path(), last + 1);
    CHECK(way.load(folder.path()) == last + 1);
    CHECK(names_in(folder.path()).size() == 1);
  }
}

TEST_CASE("GGUF: files of the reference implementation are written again byte for byte") {
  const ScratchFolder folder;
  for (const std::string model : {"llama2", "llama3", "qwen3"}) {
    const std::string path = std::string(PEFT_GOLDEN_DIR) + "/models/" + model + "/model.gguf.bin";
    const GgufFile file = GgufFile::open(path);
    GgufMetadata metadata;
    for (const GgufValue& value : file.metadata()) metadata.copy(value);
    write_gguf(folder / "again.gguf", metadata, as_they_stand(file));
    CHECK(read_file(folder / "again.gguf") == read_file(path));
  }
}

TEST_CASE("GGUF: every kind of value and tensor comes back") {
  const ScratchFolder folder;
  GgufMetadata metadata;
  metadata.set("a.u8", std::uint8_t{200});
  metadata.set("a.i64", std::int64_t{-5});
  metadata.set("a.f32", 1.5f);
  metadata.set("a.f64", 0.1);
  metadata.set("a.bool", true);
  metadata.set("a.text", "wörds");
  metadata.set("gone", 1u);
  const std::vector<std::string> pieces{"", "\xFF", "piece"};
  metadata.set_array("a.pieces", std::span<const std::string>(pieces));
  const std::vector<std::int32_t> numbers{1, -2};
  metadata.set_array("a.numbers", std::span<const std::int32_t>(numbers));
  metadata.set("a.u8", std::uint8_t{7});
  metadata.remove("gone");
  const std::vector<DeferredTensor> tensors{floats("second.weight", {2, 3}, 1), floats("first", {5}, 100), floats("none", {0}, 0)};
  write_gguf(folder / "file.gguf", metadata, tensors);
  const GgufFile file = GgufFile::open(folder / "file.gguf");
  CHECK(file.metadata().size() == 8);
  CHECK(file.metadata()[0].key == "a.u8");  // where it was set first
  CHECK(file.get<int>("a.u8") == 7);
  CHECK(file.get<std::int64_t>("a.i64") == -5);
  CHECK(file.get<float>("a.f32") == 1.5f);
  CHECK(file.get<double>("a.f64") == 0.1);
  CHECK(file.get<bool>("a.bool"));
  CHECK(file.get<std::string_view>("a.text") == "wörds");
  CHECK_FALSE(file.has("gone"));
  const auto strings = file.strings("a.pieces");
  CHECK(std::vector<std::string>(strings.begin(), strings.end()) == pieces);
  CHECK(file.array<std::int32_t>("a.numbers")[1] == -2);
  CHECK(file.tensor("second.weight").shape == std::vector<Index>{2, 3});
  CHECK(file.tensor("second.weight").to_matrix()(1, 2) == 6.0f);
  CHECK(file.tensor("first").to_matrix()(0, 4) == 104.0f);
  CHECK(file.tensor("none").elements() == 0);
}

TEST_CASE("GGUF: what cannot be written is refused, and the old file stays") {
  const ScratchFolder folder;
  write_file(folder / "file.gguf", "old");
  const auto refuse = [&](std::vector<DeferredTensor> tensors, const std::string& words) {
    INFO(words);
    CHECK_THROWS_WITH(write_gguf(folder / "file.gguf", {}, tensors), Catch::Contains(words) && Catch::Contains("file.gguf"));
    CHECK(read_file(folder / "file.gguf") == "old");
    CHECK(names_in(folder.path()).size() == 1);
  };
  refuse({floats("a", {1}, 0), floats("a", {1}, 0)}, "two tensors are named \"a\"");
  refuse({floats(std::string(64, 'x'), {1}, 0)}, "1 to 63 bytes");
  refuse({floats("a", {1, 1, 1, 1, 1}, 0)}, "at most 4 dimensions");
  refuse({{"a", StoredType::kBool, {1}, {}}}, "BOOL");
  refuse({{"a", StoredType::kQ8_0, {2, 16}, {}}}, "blocks of 32");
  CHECK_THROWS_WITH(write_gguf(folder / "file.gguf", {}, std::vector<DeferredTensor>{{"a", StoredType::kF32, {4}, [] { return std::span<const std::byte>(); }}}),
                    Catch::Contains("0 bytes; expected 16"));
  CHECK(read_file(folder / "file.gguf") == "old");
  GgufMetadata metadata;
  CHECK_THROWS_AS(metadata.set("", 1), FormatError);
  CHECK_THROWS_AS(metadata.set("\xFF", 1), FormatError);
  CHECK_THROWS_AS(metadata.set("a", "\xFF"), FormatError);
}

TEST_CASE("shards: in order, none above the limit that need not be, read back whole") {
  std::vector<DeferredTensor> tensors;
  for (const Index size : {10, 20, 100, 5, 5, 30}) {
    tensors.push_back(floats("t" + std::to_string(tensors.size()), {size}, static_cast<float>(size)));
  }
  using Shards = std::vector<std::vector<std::size_t>>;
  CHECK(split_into_shards(tensors, 1000) == Shards{{0, 1, 2, 3, 4, 5}});
  CHECK(split_into_shards(tensors, 160) == Shards{{0, 1}, {2}, {3, 4, 5}});
  CHECK(split_into_shards(tensors, 120) == Shards{{0, 1}, {2}, {3, 4}, {5}});
  CHECK(split_into_shards(tensors, 1) == Shards{{0}, {1}, {2}, {3}, {4}, {5}});
  CHECK(split_into_shards({}, 1) == Shards{{}});
  CHECK_THROWS_AS(split_into_shards(tensors, 0), ConfigError);
  const ScratchFolder folder;
  const auto check = [&](Index limit, std::size_t files) {
    AtomicDirectory target(folder / std::to_string(limit));
    CHECK(write_safetensors_shards(target, tensors, limit) == files);
    target.commit();
    const auto file = SafetensorsFile::open_folder(folder / std::to_string(limit));
    CHECK(file.tensors().size() == tensors.size());
    for (const DeferredTensor& tensor : tensors) {
      const std::span<const std::byte> bytes = tensor.make(), stored = file.tensor(tensor.name).bytes;
      CHECK(std::equal(bytes.begin(), bytes.end(), stored.begin(), stored.end()));
    }
  };
  check(160, 3);
  check(1000, 1);
  CHECK(names_in(folder / "160").size() == 4);
  CHECK(names_in(folder / "1000") == std::vector<std::string>{"model.safetensors"});
  CHECK(parse_json(read_file(folder / "160/model.safetensors.index.json"), "index")["metadata"]["total_size"] == 4 * 170);
}
