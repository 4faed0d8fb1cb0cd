// Weights in four bits against bitsandbytes 0.50.2 on a CPU, bit for bit: codes, absmax, nested state, dequantised values; a
// checkpoint that it saved is read, and written again with the same bytes.
#include <cstring>
#include <string>
#include <vector>

#include "peft/checkpoint/bnb_4bit.hpp"
#include "peft/io/safetensors_writer.hpp"
#include "support/catch.hpp"
#include "unit/io/scratch.hpp"

using namespace peft;
using io_test::read_file;
using io_test::ScratchFolder;

namespace {

const std::string kData = PEFT_GOLDEN_DIR "/nf4/";

template <class T>
void check_bytes(const std::string& what, VectorView<const T> got, const TensorRef& want) {
  INFO(what << " beside " << want.name);
  REQUIRE(static_cast<std::size_t>(got.size) * sizeof(T) == want.bytes.size());
  std::vector<T> expected(static_cast<std::size_t>(got.size));
  std::memcpy(static_cast<void*>(expected.data()), want.bytes.data(), want.bytes.size());
  for (Index i = 0; i < got.size; ++i) {
    if (std::memcmp(&got[i], &expected[static_cast<std::size_t>(i)], sizeof(T)) != 0) {
      INFO("element " << i);
      FAIL("differs from bitsandbytes'");
    }
  }
}

struct Golden {
  SafetensorsFile file = SafetensorsFile::open(kData + "cases.safetensors");
  Json cases = parse_json(read_file(kData + "cases.json"), "cases.json");
  Matrix<float> pool = file.tensor("pool").to_matrix();
};

template <FourBitCode kCode, class T>
void check_case(const Golden& golden, const std::string& name, const Json& c) {
  INFO(name);
  const Index rows = c["shape"][0].get<Index>(), cols = c["shape"][1].get<Index>();
  const bool nested = c["nested"].get<bool>();
  // Rows with gaps between them, which hold what must not be read.
  const Index stride = rows > 2 ? cols + 3 : cols;
  Matrix<T> x(rows, stride);
  std::fill_n(x.data(), x.size(), static_cast<T>(std::numeric_limits<float>::quiet_NaN()));
  for (Index i = 0; i < rows * cols; ++i) x(i / cols, i % cols) = static_cast<T>(golden.pool.data()[c["first"].get<Index>() + i]);
  FourBitConfig config{.block_size = c["block"].get<Index>(), .double_quant = nested};
  if (nested) {
    config.nested_offset = static_cast<float>(c["offset"].get<double>());
    config.nested_lookup = NestedLookup::kBnbCompat;
  }
  const auto tensor =
      FourBitTensor<kCode>::quantize(MatrixView<const T>(x.data(), rows, cols, stride), config);
  const FourBitStorage& s = tensor.storage();
  check_bytes("codes", s.codes, golden.file.tensor(name + ".codes"));
  if (nested) {
    check_bytes("nested codes", s.nested_codes, golden.file.tensor(name + ".absmax"));
    check_bytes("nested absmax", s.nested_absmax, golden.file.tensor(name + ".nested_absmax"));
    check_bytes("nested map", s.nested_map, golden.file.tensor("nested_map"));
  } else {
    check_bytes("absmax", s.absmax, golden.file.tensor(name + ".absmax"));
  }
  if (const TensorRef* want = golden.file.find(name + ".dequantized")) {
    Matrix<T> back(rows, cols);
    tensor.dequantize(back.view());
    check_bytes<T>("dequantised", std::as_const(back).flat(), *want);
  }
}

template <FourBitCode kCode>
void check_checkpoint(const SafetensorsFile& file, const SafetensorsFile& values, const std::string& name, bool nested) {
  const FourBitTensor<kCode> tensor = read_bnb_4bit<kCode>(file, name + ".weight");
  REQUIRE(bnb_4bit_code(file, name + ".weight") == kCode);
  REQUIRE(tensor.is_double_quantized() == nested);
  const TensorRef& want = values.tensor(name);
  REQUIRE(tensor.shape() == want.shape);
  // The codes are the mapped file's own bytes.
  REQUIRE(static_cast<const void*>(tensor.storage().codes.data) == file.tensor(name + ".weight").bytes.data());
  const auto check = [&]<class T>(Matrix<T> back) {
    tensor.dequantize(back.view());
    check_bytes<T>("dequantised", std::as_const(back).flat(), want);
  };
  if (want.type == StoredType::kBF16) {
    check(Matrix<bf16>(tensor.rows(), tensor.cols()));
  } else {
    check(Matrix<float>(tensor.rows(), tensor.cols()));
  }
}

}  // namespace

TEST_CASE("Codes, maxima and values in four bits are bitsandbytes'") {
  const Golden golden;
  REQUIRE(golden.cases.size() == 24);
  for (const auto& [name, c] : golden.cases.items()) {
    const std::string type = c["type"].get<std::string>(), dtype = c["dtype"].get<std::string>();
    if (type == "fp4") {
      check_case<FourBitCode::kFp4, float>(golden, name, c);
    } else if (dtype == "bfloat16") {
      check_case<FourBitCode::kNf4, bf16>(golden, name, c);
    } else if (dtype == "float16") {
      check_case<FourBitCode::kNf4, f16>(golden, name, c);
    } else {
      check_case<FourBitCode::kNf4, float>(golden, name, c);
    }
  }
}

TEST_CASE("A checkpoint that bitsandbytes saved is read in place and written byte for byte") {
  const SafetensorsFile file = SafetensorsFile::open(kData + "checkpoint.safetensors");
  const SafetensorsFile values = SafetensorsFile::open(kData + "checkpoint_values.safetensors");
  check_checkpoint<FourBitCode::kNf4>(file, values, "twice", true);
  check_checkpoint<FourBitCode::kNf4>(file, values, "once", false);
  check_checkpoint<FourBitCode::kFp4>(file, values, "fp4", true);

  const Bnb4BitTensors<> twice("twice.weight", read_bnb_4bit<>(file, "twice.weight"));
  const Bnb4BitTensors<> once("once.weight", read_bnb_4bit<>(file, "once.weight"));
  const Bnb4BitTensors<FourBitCode::kFp4> fp4("fp4.weight", read_bnb_4bit<FourBitCode::kFp4>(file, "fp4.weight"));
  std::vector<TensorRef> tensors{file.tensor("twice.bias")};
  for (const auto* part : {&twice.tensors(), &once.tensors(), &fp4.tensors()}) {
    tensors.insert(tensors.end(), part->begin(), part->end());
  }
  const ScratchFolder folder;
  write_safetensors(folder / "again.safetensors", tensors);
  REQUIRE(read_file(folder / "again.safetensors") == read_file(kData + "checkpoint.safetensors"));
}
