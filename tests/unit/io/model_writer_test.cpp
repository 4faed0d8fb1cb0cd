#include <cstring>

#include "peft/io/gguf.hpp"
#include "peft/io/gguf_writer.hpp"
#include "peft/io/safetensors_shards.hpp"
#include "scratch.hpp"
#include "support/catch.hpp"

using namespace peft;
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

}  // namespace

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
