// Gradients of Adapter by central differences in double, for every combination of the fields that change its equations
// and every kind of block norm.
#include "support/central_differences.hpp"
#include "unit/adapter/adapter_reference.hpp"

using namespace adapter_test;

namespace {

constexpr Index kRows = 2, kHidden = 5;
// Fourth order: the fifth derivative is large where a norm stands behind an update of little variance.
constexpr double kStep = 2e-5, kTolerance = 1e-6;

void check_adapter(const AdapterConfig& config, NormKind kind, const DropoutMask& dropout) {
  INFO(described(config) << " norm " << static_cast<int>(kind));
  Adapter<double> adapter(kHidden, config);
  randomise(adapter, 1);
  auto h = random<double>(kRows, kHidden, 2), r = random<double>(kRows, kHidden, 3);
  const auto c = random<double>(kRows, kHidden, 4);
  const TestNorm block(kind, kHidden, 5);
  const auto keep = factors(dropout, kRows, kHidden, config.dropout);
  block.with<double>([&](const auto& norm) {
    Matrix<double> y(kRows, kHidden), dh(kRows, kHidden), dr = c.clone();
    typename Adapter<double>::Saved saved;
    adapter.forward(h.view(), r.view(), norm, y.view(), saved, dropout);
    const auto p = parameters(adapter);
    for (Index i = 0; i < kRows; ++i) {
      const Vector want = site_output(config, p, row_of(h, i), row_of(r, i), block, keep[static_cast<std::size_t>(i)]);
      for (Index j = 0; j < kHidden; ++j) REQUIRE(y(i, j) == Approx(want[static_cast<std::size_t>(j)]).margin(1e-12));
    }
    // dr over dy, as a host may have it.
    adapter.backward(dr.view(), h.view(), r.view(), norm, saved, dh.view(), dr.view());
    const auto loss = [&] {
      typename Adapter<double>::Saved fresh;
      Matrix<double> out(kRows, kHidden);
      adapter.forward(h.view(), r.view(), norm, out.view(), fresh, dropout);
      double sum = 0;
      for (Index i = 0; i < out.size(); ++i) sum += out.flat()[i] * c.flat()[i];
      return sum;
    };
    peft_test::check_fourth_order(h.flat(), dh.flat(), kStep, kTolerance, loss);
    peft_test::check_fourth_order(r.flat(), dr.flat(), kStep, kTolerance, loss);
    adapter.for_each_parameter([&](const ParameterInfo& info, VectorView<double> value, VectorView<double> grad) {
      INFO(std::string(info.name));
      peft_test::check_fourth_order(value, grad, kStep, kTolerance, loss);
    });

    // Again, and without the inputs' gradients: the parameters' add up.
    std::vector<double> once;
    adapter.for_each_parameter([&](const ParameterInfo&, VectorView<double>, VectorView<double> grad) {
      once.insert(once.end(), grad.begin(), grad.end());
    });
    adapter.backward(c.view(), h.view(), r.view(), norm, saved, {}, {});
    std::size_t at = 0;
    adapter.for_each_parameter([&](const ParameterInfo&, VectorView<double>, VectorView<double> grad) {
      for (double value : grad) REQUIRE(value == Approx(2 * once[at++]).margin(1e-12));
    });
    adapter.zero_grad();
    adapter.for_each_parameter([&](const ParameterInfo&, VectorView<double>, VectorView<double> grad) {
      for (double value : grad) REQUIRE(value == 0.0);
    });
  });
}

}  // namespace

TEST_CASE("The adapter's gradients are the central differences in every configuration") {
  int configurations = 0;
  for_each_configuration([&](AdapterConfig config, NormKind kind) {
    check_adapter(config, kind, {});
    config.dropout = 0.4f;
    check_adapter(config, kind, DropoutKey{1, 2, 3, 4});
    ++configurations;
  });
  CHECK(configurations * peft_test::kEvery > 1500);
}

TEST_CASE("The adapter's gradients with every non-linearity and a bottleneck wider than the layer") {
  for (const char* name : {"gelu", "gelu_new", "silu", "swish", "tanh", "relu", "leakyrelu"}) {
    AdapterConfig config = AdapterConfig::seq_bn();
    config.non_linearity = name;
    config.reduction_factor = 0.5;
    check_adapter(config, NormKind::kLayer, {});
  }
}
