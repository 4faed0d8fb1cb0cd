// Adapter in float and 16 bits against the double reference in every configuration, any number of threads, strided
// views, starts, swapping while a model runs, bad input.
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>

#include "peft/adapter_set.hpp"
#include "peft/core/thread_pool.hpp"
#include "unit/adapter/adapter_reference.hpp"

using namespace adapter_test;

namespace {

template <class T>
constexpr double unit() {
  return std::is_same_v<T, bf16> ? 0x1p-8 : std::is_same_v<T, f16> ? 0x1p-11 : 0x1p-24;
}

template <class T>
Matrix<double> as_double(const Matrix<T>& x) {
  Matrix<double> y(x.rows(), x.cols());
  for (Index i = 0; i < x.size(); ++i) y.flat()[i] = static_cast<double>(static_cast<Accumulator<T>>(x.flat()[i]));
  return y;
}

template <class T>
std::vector<Matrix<double>> gradients(Adapter<T>& adapter) {
  std::vector<Matrix<double>> result;
  adapter.for_each_parameter([&](const ParameterInfo& info, auto, auto grad) {
    result.emplace_back(info.rows, info.cols);
    for (Index i = 0; i < grad.size; ++i) result.back().flat()[i] = static_cast<double>(grad[i]);
  });
  return result;
}

/// T against double: both start from the same rounded numbers.
template <class T>
void compare(const AdapterConfig& config, NormKind kind, Index rows, Index hidden, const DropoutMask& dropout) {
  INFO(described(config) << " norm " << static_cast<int>(kind) << " rows " << rows << " hidden " << hidden);
  Adapter<T> adapter(hidden, config);
  Adapter<double> exact(hidden, config);
  randomise(adapter, 1);
  randomise(exact, 1);
  const auto h = random<T>(rows, hidden, 2), r = random<T>(rows, hidden, 3), dy = random<T>(rows, hidden, 4);
  const auto hd = as_double(h), rd = as_double(r), dyd = as_double(dy);
  const TestNorm block(kind, hidden, 5);
  Matrix<double> y_want(rows, hidden), dh_want(rows, hidden), dr_want(rows, hidden);
  block.with<double>([&](const auto& norm) {
    typename Adapter<double>::Saved saved;
    exact.forward(hd.view(), rd.view(), norm, y_want.view(), saved, dropout);
    exact.backward(dyd.view(), hd.view(), rd.view(), norm, saved, dh_want.view(), dr_want.view());
  });
  const auto want = gradients(exact);
  block.with<T>([&](const auto& norm) {
    std::vector<Matrix<T>> first;
    std::vector<Matrix<double>> first_gradients;
    for (int threads : {1, 3}) {
      ThreadPool pool(threads);
      adapter.zero_grad();
      typename Adapter<T>::Saved saved;
      Matrix<T> y(rows, hidden), dh(rows, hidden), dr = dy.clone();
      adapter.forward(h.view(), r.view(), norm, y.view(), saved, dropout, pool);
      adapter.backward(std::as_const(dr).view(), h.view(), r.view(), norm, saved, dh.view(), dr.view(), pool);
      const auto got = gradients(adapter);
      if (threads > 1) {
        const auto bytes = static_cast<std::size_t>(y.size()) * sizeof(T);
        REQUIRE((bytes == 0 || std::memcmp(y.data(), first[0].data(), bytes) == 0));
        REQUIRE((bytes == 0 || std::memcmp(dh.data(), first[1].data(), bytes) == 0));
        REQUIRE((bytes == 0 || std::memcmp(dr.data(), first[2].data(), bytes) == 0));
        for (std::size_t i = 0; i < got.size(); ++i) {
          for (Index j = 0; j < got[i].size(); ++j) REQUIRE(got[i].flat()[j] == first_gradients[i].flat()[j]);
        }
        continue;
      }
      // Sums of up to (hidden + bottleneck + rows) terms in float; every intermediate of type T (h + r, norms, o, their
      // gradients: at most eight behind each other) is rounded to T once. A norm multiplies what comes in by its 1/σ and
      // the scaling by up to 1.7; 8 covers both.
      const double sums = static_cast<double>(hidden + rows + 40) * 0x1p-24;
      const double bound = 8 * (sums + 8 * unit<T>());
      CHECK(relative_distance(y, y_want) <= bound);
      CHECK(relative_distance(dh, dh_want) <= bound);
      CHECK(relative_distance(dr, dr_want) <= bound);
      for (std::size_t i = 0; i < got.size(); ++i) {
        INFO("gradient " << i);
        // The trained scaling's gradient sums products of both signs over all units.
        CHECK(relative_distance(got[i], want[i]) <= (config.is_scaling_trained() ? 4 : 1) * bound);
      }
      first_gradients = gradients(adapter);
      first.push_back(std::move(y));
      first.push_back(std::move(dh));
      first.push_back(std::move(dr));
    }
  });
}

template <class E, class Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  FAIL("expected an error");
  return {};
}

}  // namespace

TEST_CASE("Float adapters are the double ones in every configuration, with the same bits for any threads") {
  for_each_configuration([](AdapterConfig config, NormKind kind) {
    config.non_linearity = "gelu";
    compare<float>(config, kind, 9, 40, {});
  });
}

TEMPLATE_TEST_CASE("Adapters of 16-bit activations, dropout, one row and many", "", float, bf16, f16) {
  for (const char* name : {"seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn"}) {
    AdapterConfig config = AdapterConfig::named(name);
    config.reduction_factor = 4;
    for (NormKind kind : {NormKind::kNone, NormKind::kLayer, NormKind::kRms}) {
      for (Index rows : {0, 1, 8, 9, 70}) {
        for (Index hidden : {16, 72}) compare<TestType>(config, kind, rows, hidden, {});
      }
      config.dropout = 0.3f;
      compare<TestType>(config, kind, 17, 72, DropoutKey{1, 2, 3, 4});
      config.dropout = 0.0f;
    }
  }
}

TEST_CASE("Views with gaps are read and written within their columns") {
  const AdapterConfig config = AdapterConfig::seq_bn();
  Adapter<float> adapter(32, config);
  randomise(adapter, 1);
  const auto wide_h = random<float>(5, 40, 2), wide_r = random<float>(5, 50, 3);
  Matrix<float> wide_y(5, 33), dense_h(5, 32), dense_r(5, 32), y(5, 32);
  for (float& value : wide_y.flat()) value = 7.0f;
  for (Index i = 0; i < 5; ++i) {
    std::copy_n(wide_h.row(i) + 3, 32, dense_h.row(i));
    std::copy_n(wide_r.row(i), 32, dense_r.row(i));
  }
  adapter.forward(dense_h.view(), dense_r.view(), y.view());
  adapter.forward(wide_h.view().column_range(3, 32), wide_r.view().column_range(0, 32), wide_y.view().column_range(0, 32));
  for (Index i = 0; i < 5; ++i) {
    REQUIRE(std::memcmp(wide_y.row(i), y.row(i), 32 * sizeof(float)) == 0);
    REQUIRE(wide_y(i, 32) == 7.0f);
  }
}

TEST_CASE("Starts: as AdapterHub's in distribution, told apart by seed and stream, alike with init_weights_seed") {
  const auto moments = [](AdapterConfig config, std::string_view wanted) {
    Adapter<float> adapter(512, config, 0, 7);
    double sum = 0, squares = 0, largest = 0, count = 0;
    adapter.for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
      if (info.name != wanted) return;
      for (float v : value) {
        sum += static_cast<double>(v);
        squares += static_cast<double>(v) * static_cast<double>(v);
        largest = std::max(largest, std::fabs(static_cast<double>(v)));
        ++count;
      }
    });
    return std::array<double, 3>{sum / count, std::sqrt(squares / count), largest};
  };
  AdapterConfig config = AdapterConfig::seq_bn();
  // 16384 numbers: the mean within 5σ/128, the deviation within 5 %.
  for (const char* name : {"adapter_down.0.weight", "adapter_up.weight"}) {
    const auto [mean, deviation, largest] = moments(config, name);
    CHECK(largest > 0.02);
    CHECK(std::fabs(mean) < 0.02 * 5 / 128);
    CHECK(deviation == Approx(0.02).epsilon(0.05));
    config.init_weights = "houlsby";
    const auto cut = moments(config, name);
    CHECK(cut[1] == Approx(0.01 * 0.8796).epsilon(0.05));  // a normal cut at two deviations
    CHECK(cut[2] <= 0.02);
    config.init_weights = "bert";
  }
  config.init_weights = "mam_adapter";
  const auto [mean, deviation, largest] = moments(config, "adapter_down.0.weight");
  CHECK(largest <= 1 / std::sqrt(512.0));
  CHECK(deviation == Approx(1 / std::sqrt(3.0 * 512.0)).epsilon(0.05));
  CHECK(moments(config, "adapter_up.weight")[2] == 0.0);
  CHECK(moments(config, "adapter_down.0.bias")[2] == 0.0);
  CHECK(std::fabs(mean) < 1e-3);

  const auto first_weight = [](const AdapterSet<float>& set, Index layer, AdapterSite site) {
    Adapter<float>& adapter = *const_cast<AdapterSet<float>&>(set).find(layer, site);
    return parameters(adapter).at("adapter_down.0.weight").front();
  };
  AdapterConfig both = AdapterConfig::double_seq_bn();
  const AdapterSet<float> set("a", AdapterLayout::kLlama, both, 64, 3, 5), same("b", AdapterLayout::kBert, both, 64, 3, 5);
  const AdapterSet<float> other("a", AdapterLayout::kLlama, both, 64, 3, 6);
  CHECK(first_weight(set, 1, AdapterSite::kOutput) == first_weight(same, 1, AdapterSite::kOutput));
  CHECK(first_weight(set, 1, AdapterSite::kOutput) != first_weight(other, 1, AdapterSite::kOutput));
  CHECK(first_weight(set, 1, AdapterSite::kOutput) != first_weight(set, 1, AdapterSite::kAttention));
  CHECK(first_weight(set, 1, AdapterSite::kOutput) != first_weight(set, 2, AdapterSite::kAttention));
  both.init_weights_seed = 3;
  const AdapterSet<float> alike("a", AdapterLayout::kLlama, both, 64, 3, 5);
  CHECK(first_weight(alike, 0, AdapterSite::kOutput) == first_weight(alike, 2, AdapterSite::kAttention));
}

TEST_CASE("An adapter that starts at zero leaves the block as it was") {
  AdapterConfig config = AdapterConfig::par_bn();
  const Adapter<float> adapter(24, config);
  const auto h = random<float>(6, 24, 1), r = random<float>(6, 24, 2);
  Matrix<float> y(6, 24);
  adapter.forward(h.view(), r.view(), y.view());
  for (Index i = 0; i < y.size(); ++i) REQUIRE(y.flat()[i] == h.flat()[i] + r.flat()[i]);
}

TEST_CASE("A set of adapters is swapped while other threads run: each pass sees one set whole") {
  // Set i moves every unit by i: passes must see all of one, whichever.
  constexpr Index kLayers = 3, kHidden = 16;
  const auto make = [](int number) {
    auto set = std::make_shared<AdapterSet<float>>("task", AdapterLayout::kLlama, AdapterConfig::double_seq_bn(), kHidden,
                                                   kLayers, static_cast<std::uint64_t>(number));
    set->for_each_parameter([&](const ParameterInfo& info, VectorView<float> value, VectorView<float>) {
      const bool bias = info.name.ends_with("adapter_up.bias");
      for (float& v : value) v = bias ? static_cast<float>(number) : 0.0f;
    });
    return std::shared_ptr<const AdapterSet<float>>(std::move(set));
  };
  std::shared_ptr<const AdapterSet<float>> current = make(1);
  std::atomic<bool> stop{false};
  std::atomic<int> passes{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      Matrix<float> h = Matrix<float>::zeros(4, kHidden), r(4, kHidden), y(4, kHidden);
      while (!stop) {
        const auto set = std::atomic_load(&current);
        r.fill_zero();
        for (Index layer = 0; layer < kLayers && set != nullptr; ++layer) {
          for (AdapterSite site : {AdapterSite::kAttention, AdapterSite::kOutput}) {
            set->find(layer, site)->forward(h.view(), std::as_const(r).view(), y.view(), ExecutorRef());
            std::swap(r, y);
          }
        }
        const float sum = r(3, kHidden - 1);  // six times the set's number
        if (sum != 0.0f && sum != 6.0f && sum != 12.0f) ++wrong;
        for (float value : r.flat()) wrong += value != sum;
        ++passes;
      }
    });
  }
  for (int i = 0; i < 200 || passes < 100; ++i) {
    std::atomic_store(&current, i % 3 == 0 ? nullptr : make(i % 3));
    std::this_thread::yield();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("Configurations that cannot be are named") {
  const auto text = [](auto change) {
    AdapterConfig config = AdapterConfig::seq_bn();
    change(config);
    return message_of<ConfigError>([&] { Adapter<float>(16, config); });
  };
  CHECK(text([](AdapterConfig& c) { c.output_adapter = false; }).find("output_adapter") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.reduction_factor = 0; }).find("reduction_factor is 0") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.reduction_factor = {{"1", 4}}; }).find("default") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.reduction_factor = {{"one", 4}}; }).find("\"one\"") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.reduction_factor = {{"1", 4}, {"1", 5}}; }).find("twice") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.reduction_factor = 1e-9; }).find("bottleneck") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.non_linearity = "mish"; }).find("\"mish\"") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.init_weights = "xavier"; }).find("\"xavier\"") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.scaling = "row"; }).find("\"row\"") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.scaling = std::numeric_limits<double>::infinity(); }).find("scaling") !=
        std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.residual_before_ln = "pre_add"; }).find("\"pre_add\"") != std::string::npos);
  CHECK(text([](AdapterConfig& c) {
          c.residual_before_ln = "post_add";
          c.original_ln_before = false;
        }).find("original_ln_before") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.leave_out = {-1}; }).find("leave_out") != std::string::npos);
  CHECK(text([](AdapterConfig& c) { c.dropout = 1.0f; }).find("dropout") != std::string::npos);
  CHECK_THROWS_AS(AdapterConfig::named("lora"), ConfigError);
  CHECK_THROWS_AS(Adapter<float>(0, AdapterConfig::seq_bn()), ConfigError);
  CHECK_THROWS_AS((AdapterSet<float>("a", AdapterLayout::kBert, AdapterConfig::seq_bn(), 16, 0)), ConfigError);
  AdapterConfig none = AdapterConfig::seq_bn();
  none.leave_out = {0, 1};
  CHECK_THROWS_AS((AdapterSet<float>("a", AdapterLayout::kBert, none, 16, 2)), ConfigError);
  // hidden // factor as Python has it.
  CHECK(ReductionFactor(0.1).bottleneck_size(1, 0) == 9);
  CHECK(ReductionFactor(16).bottleneck_size(576, 0) == 36);
  CHECK(ReductionFactor(96).bottleneck_size(40, 0) == 1);
  CHECK(ReductionFactor(2.5).bottleneck_size(8, 0) == 3);
  CHECK(ReductionFactor{{"2", 8}, {"default", 4}}.bottleneck_size(64, 2) == 8);
  CHECK(ReductionFactor{{"2", 8}, {"default", 4}}.bottleneck_size(64, 3) == 16);
}

TEST_CASE("Shapes that do not fit are named, and nothing is written") {
  Adapter<float> adapter(16, AdapterConfig::seq_bn());
  Matrix<float> h(3, 16), r(3, 16), y(3, 16), narrow(3, 15), few(2, 16);
  h.fill_zero(), r.fill_zero(), y.fill_zero();
  const auto text = [&](const Matrix<float>& a, const Matrix<float>& b, Matrix<float>& c) {
    return message_of<ShapeError>([&] { adapter.forward(a.view(), b.view(), c.view()); });
  };
  CHECK(text(narrow, r, y).find("h (the branch's output) is [3, 15]; expected [3, 16]") != std::string::npos);
  CHECK(text(h, few, y).find("r (the block's residual) is [2, 16]") != std::string::npos);
  CHECK(text(h, r, few).find("y is [2, 16]") != std::string::npos);
  Adapter<float>::Saved saved;
  adapter.forward(few.view(), few.view(), ops::NoNorm(), few.view(), saved);
  const std::string backward = message_of<ShapeError>(
      [&] { adapter.backward(y.view(), h.view(), r.view(), ops::NoNorm(), saved, y.view(), y.view()); });
  CHECK(backward.find("S is [2, 1]; expected [3, 1]") != std::string::npos);
  adapter.forward(h.view(), r.view(), ops::NoNorm(), y.view(), saved);
  CHECK_THROWS_AS(adapter.backward(y.view(), h.view(), r.view(), ops::NoNorm(), saved, {}, y.view()), ShapeError);
}
