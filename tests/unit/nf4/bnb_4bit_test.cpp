// bitsandbytes' 4-bit weights in safetensors: what is written is read again, and every lie is told by name.
#include "peft/checkpoint/bnb_4bit.hpp"

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "peft/core/rng.hpp"
#include "peft/io/safetensors_writer.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using io_test::message_of;
using io_test::ScratchFolder;

namespace {

/// The tensors of one weight as a file would hold them, to be changed.
struct Parts {
  explicit Parts(bool nested) {
    Philox rng(1);
    Matrix<float> w(5, 70);
    for (float& x : std::span(w.data(), 350)) x = rng.normal();
    tensor = Nf4Tensor::quantize(w.view(), {.double_quant = nested});
    const Bnb4BitTensors<> parts("w", tensor);
    for (const TensorRef& part : parts.tensors()) all.emplace(part.name, Part{part.type, part.shape, io_test::text_of(part.bytes)});
  }
  struct Part {
    StoredType type;
    std::vector<Index> shape;
    std::string bytes;
  };
  Part& state() { return all.at("w.quant_state.bitsandbytes__nf4"); }
  /// Replaces text in the JSON.
  void edit(const std::string& from, const std::string& to) {
    Part& part = state();
    const std::size_t at = part.bytes.find(from);
    REQUIRE(at != std::string::npos);
    part.bytes.replace(at, from.size(), to);
    part.shape = {static_cast<Index>(part.bytes.size())};
  }
  void cut(const std::string& name, Index count) {
    Part& part = all.at(name);
    part.shape[0] = count;
    part.bytes.resize(static_cast<std::size_t>(*detail::byte_count(part.type, count)));
  }
  std::string read(const ScratchFolder& folder) const {
    std::vector<TensorRef> tensors;
    for (const auto& [name, part] : all) {
      tensors.push_back({name, part.type, part.shape, std::as_bytes(std::span(part.bytes)), nullptr});
    }
    write_safetensors(folder / "model.safetensors", tensors);
    return message_of<FormatError>([&] {
      const Nf4Tensor read = read_bnb_4bit<>(SafetensorsFile::open(folder / "model.safetensors"), "w");
      std::vector<float> a(350), b(350);
      read.dequantize_range(0, 350, a.data());  // the file is closed: its mapping lives on
      tensor.dequantize_range(0, 350, b.data());
      REQUIRE(a == b);
      REQUIRE(read.shape() == tensor.shape());
    });
  }
  Nf4Tensor tensor;
  std::map<std::string, Part> all;
};

}  // namespace

TEST_CASE("A 4-bit weight goes through a file") {
  const ScratchFolder folder;
  for (const bool nested : {false, true}) {
    const Parts parts(nested);
    REQUIRE(parts.read(folder) == "");
    REQUIRE(parts.all.size() == (nested ? 6u : 4u));
  }
}

TEST_CASE("A 4-bit weight that contradicts itself is refused by name") {
  const ScratchFolder folder;
  struct Lie {
    bool nested;
    std::function<void(Parts&)> tell;
    std::string answer;
  };
  const Lie lies[] = {
      {false, [](Parts& p) { p.edit("64", "48"); }, "blocksize is 48; expected a power of two from 32 to 4096"},
      {false, [](Parts& p) { p.edit("64", "128"); }, "6 absmax; expected 3 for the shape [5, 70]"},
      {false, [](Parts& p) { p.edit("64", "-64"); }, "blocksize is -64; expected a whole number"},
      {false, [](Parts& p) { p.edit("[5, 70]", "[5, 71]"); }, "175 codes; expected 178 for the shape [5, 71]"},
      {false, [](Parts& p) { p.edit("[5, 70]", "[4611686018427387904, 70]"); }, "cannot be addressed"},
      {false, [](Parts& p) { p.edit("[5, 70]", "350"); }, "shape is a number; expected a list of sizes"},
      {false, [](Parts& p) { p.edit("[5, 70]", "[5, 70.0]"); }, "a size in shape is 70.0; expected a whole number"},
      {false, [](Parts& p) { p.edit("nf4", "fp4"); }, "quant_type is \"fp4\" in a state named …bitsandbytes__nf4"},
      {false, [](Parts& p) { p.edit("float32", "float64"); }, "dtype is \"float64\""},
      {false, [](Parts& p) { p.edit("dtype", "dtypo"); }, "has a member \"dtypo\""},
      {false, [](Parts& p) { p.edit("\"dtype\": \"float32\", ", ""); }, "quant_state has no \"dtype\""},
      {false, [](Parts& p) { p.edit("}", ""); }, "not valid JSON"},
      {false, [](Parts& p) { p.edit("}", ", \"shape\": [1]}"); }, "stands twice"},
      {false, [](Parts& p) { p.cut("w", 170); }, "170 codes; expected 175"},
      {false, [](Parts& p) { p.cut("w.absmax", 5); }, "5 absmax; expected 6"},
      {false, [](Parts& p) { p.all.erase("w.absmax"); }, "there is no tensor \"w.absmax\""},
      {false, [](Parts& p) { p.all.erase("w.quant_map"); }, "there is no tensor \"w.quant_map\""},
      {false, [](Parts& p) { p.all.at("w.quant_map").bytes[1] = 1; }, "quant_map gives code 0 the value"},
      {false, [](Parts& p) { p.cut("w.quant_map", 15); }, "quant_map is F32 [15]; expected F32 [16]"},
      {false, [](Parts& p) { p.all.at("w.absmax").bytes.replace(4, 4, io_test::bytes_of(0x7FC00000)); },
       "element 1 of \"w.absmax\" is nan; expected finite numbers"},
      {false, [](Parts& p) { p.all.at("w.absmax").type = StoredType::kI32; }, "\"w.absmax\" is I32; expected F32"},
      {false, [](Parts& p) { p.all.at("w").type = StoredType::kI8; }, "its codes are I8; expected U8"},
      {false, [](Parts& p) { p.edit("}", ", \"nested_offset\": 1.0}"); }, "although there is a nested state"},
      {false, [](Parts& p) { p.all.erase("w.quant_state.bitsandbytes__nf4"); }, "it has no quant_state"},
      {false,
       [](Parts& p) {
         const Parts::Part state = p.state();
         p.all.erase("w.quant_state.bitsandbytes__nf4");
         p.all.emplace("w.quant_state.bitsandbytes__fp4", state);
       },
       "it is fp4; expected nf4"},
      {false, [](Parts& p) { p.all.emplace("w.quant_state.bitsandbytes__fp4", p.state()); },
       "it has a state of nf4 and one of fp4"},
      {true, [](Parts& p) { p.all.erase("w.nested_absmax"); }, "absmax is U8, so that the nested state is needed"},
      {true, [](Parts& p) { p.all.erase("w.nested_quant_map"); }, "there is no tensor \"w.nested_quant_map\""},
      {true, [](Parts& p) { p.cut("w.nested_quant_map", 255); }, "255 values in nested_quant_map; expected 256"},
      {true, [](Parts& p) { p.cut("w.nested_absmax", 0); }, "0 values in nested_absmax; expected 1"},
      {true, [](Parts& p) { p.edit("256", "128"); }, "nested_blocksize is 128; expected 256"},
      {true, [](Parts& p) { p.edit("\"nested_offset\"", "\"nested_offset\": 1e39, \"x\""); }, "has a member \"x\""},
      {true,
       [](Parts& p) {
         const std::size_t at = p.state().bytes.find("\"nested_offset\": ");
         p.edit(p.state().bytes.substr(at), "\"nested_offset\": 1e39}");
       },
       "nested_offset is 1e+39; expected a finite number"},
  };
  for (const Lie& lie : lies) {
    Parts parts(lie.nested);
    lie.tell(parts);
    const std::string text = parts.read(folder);
    INFO(text << "\n expected: " << lie.answer);
    REQUIRE(text.find(lie.answer) != std::string::npos);
    REQUIRE(text.find("model.safetensors") != std::string::npos);
  }
}

TEST_CASE("A file of a 4-bit weight that is cut off anywhere is refused") {
  const ScratchFolder folder;
  Parts parts(true);
  REQUIRE(parts.read(folder) == "");
  const std::string whole = io_test::read_file(folder / "model.safetensors");
  for (std::size_t size = 0; size < whole.size(); size += 97) {
    io_test::write_file(folder / "cut.safetensors", std::string_view(whole).substr(0, size));
    REQUIRE_THROWS_AS(read_bnb_4bit<>(SafetensorsFile::open(folder / "cut.safetensors"), "w"), FormatError);
  }
}
