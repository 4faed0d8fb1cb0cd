#pragma once
/// Starts of LoRA that need more than a seed:
///   "pissa"          W ≈ U·S·Vᵀ cut to r: A = √(S/s)·Vᵀ, B = U·√(S/s), and the base becomes W − s·B·A
///   "pissa_niter_N"  the same by N subspace iterations
///   "olora"          W = Q·R: A = R[:r], B = Q[:, :r], and the base becomes W − s·B·A
///   "orthogonal"     A and B from the odd and even rows of one orthogonal matrix, so that B·A = 0 although neither is 0
/// Meng et al., "PiSSA", 2024 (arXiv 2404.02948); Büyükakyüz, "OLoRA", 2024 (arXiv 2406.01775). EVA: lora_eva.hpp.
///
/// An adapter that started from PiSSA or OLoRA means something on that changed base only: on another copy of the model run
/// this first, and load the adapter's file then with AdapterMatching::base_is_residual.

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <variant>

#include "peft/core/linalg.hpp"
#include "peft/dora.hpp"
#include "peft/merge.hpp"
#include "peft/named_adapter.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

template <class A>
void copy_factor(const Matrix<double>& from, Matrix<A>& to) {
  for (Index i = 0; i < to.size(); ++i) to.data()[i] = static_cast<A>(from.data()[i]);
}

/// A and B of one module from its weight.
template <Scalar T>
void start_from_weight(Lora<T>& lora, const AnyLinear<T>& base, const std::string& kind, std::uint64_t seed,
                       std::uint64_t stream, std::string_view who) {
  using A = Accumulator<T>;
  const Index r = lora.r();
  if (r > std::min(lora.in_features(), lora.out_features())) {
    fail<ConfigError>("{}: init_lora_weights = \"{}\" gives at most rank {}, of a [{}, {}] weight; got r = {}", who, kind,
                      std::min(lora.in_features(), lora.out_features()), lora.out_features(), lora.in_features(), r);
  }
  Matrix<A> stored(lora.out_features(), lora.in_features());
  base.read_weight_rows(0, stored.view());
  Matrix<double> weight(stored.rows(), stored.cols());
  std::copy_n(stored.data(), stored.size(), weight.data());
  const MatrixView<const double> view = std::as_const(weight).view();
  if (kind == "olora") {
    const linalg::Qr parts = linalg::qr(view);
    for (Index q = 0; q < r; ++q) {
      for (Index k = 0; k < lora.in_features(); ++k) lora.a()(q, k) = static_cast<A>(parts.r(q, k));
      for (Index j = 0; j < lora.out_features(); ++j) lora.b()(j, q) = static_cast<A>(parts.q(j, q));
    }
    return;
  }
  constexpr std::string_view kIterated = "pissa_niter_";
  const linalg::Svd parts = kind == "pissa" ? linalg::svd(view, r)
                                            : linalg::svd_lowrank(view, r, std::stol(kind.substr(kIterated.size())), seed, stream);
  for (Index q = 0; q < r; ++q) {
    const double share = root(quotient(parts.s[q], lora.scaling()));
    for (Index k = 0; k < lora.in_features(); ++k) lora.a()(q, k) = static_cast<A>(share * parts.vt(q, k));
    for (Index j = 0; j < lora.out_features(); ++j) lora.b()(j, q) = static_cast<A>(share * parts.u(j, q));
  }
}

/// With Q an orthogonal [r, r]: A = (X·Q_odd)ᵀ/10, B = Y·Q_even/10, X [in, r/2], Y [out, r/2] normal.
template <Scalar T>
void start_orthogonal(Lora<T>& lora, std::uint64_t seed, std::uint64_t stream, std::string_view who) {
  using A = Accumulator<T>;
  const Index r = lora.r(), half = r / 2;
  if (r % 2 != 0) fail<ConfigError>("{}: init_lora_weights = \"orthogonal\" needs an even rank; got r = {}", who, r);
  Philox random(seed, stream);
  const auto normal = [&random](Index rows, Index cols) {
    Matrix<double> result(rows, cols);
    for (double& value : result.flat()) value = static_cast<double>(random.normal());
    return result;
  };
  const Matrix<double> q = linalg::qr(normal(r, r).view()).q;
  const Matrix<double> x = normal(lora.in_features(), half), y = normal(lora.out_features(), half);
  for (Index p = 0; p < r; ++p) {
    for (Index k = 0; k < lora.in_features(); ++k) {
      double sum = 0;
      for (Index h = 0; h < half; ++h) sum = rounded(sum + rounded(x(k, h) * q(2 * h, p)));
      lora.a()(p, k) = static_cast<A>(sum / 10.0);
    }
    for (Index j = 0; j < lora.out_features(); ++j) {
      double sum = 0;
      for (Index h = 0; h < half; ++h) sum = rounded(sum + rounded(y(j, h) * q(2 * h + 1, p)));
      lora.b()(j, p) = static_cast<A>(sum / 10.0);
    }
  }
}

}  // namespace detail

/// Sets the adapter's A and B as its init_lora_weights says, and takes their product out of the base weights of `sites`
/// where that start wants it. Returns what restores the base (unmerge_adapter), bit for bit; drop it to keep the base so.
/// All or nothing. Throws ConfigError for a start that is no start of this header's, a site whose weight cannot be read
/// or changed, a rank that does not fit.
template <Scalar T>
MergedAdapters<T> initialize_lora(NamedAdapter<T>& adapter, std::span<AdaptedLinear<T>* const> sites,
                                  std::uint64_t seed = 0) {
  using A = Accumulator<T>;
  const LoraConfig& config = adapter.config();
  const auto* kind = std::get_if<std::string>(&config.init_lora_weights);
  const bool from_weight = kind != nullptr && (*kind == "olora" || kind->starts_with("pissa"));
  if (!from_weight && (kind == nullptr || *kind != "orthogonal")) {
    fail<ConfigError>("initialize_lora: adapter \"{}\" has init_lora_weights = {}; expected \"pissa\", \"pissa_niter_N\", "
                      "\"olora\" or \"orthogonal\" (EVA: initialize_lora_eva)",
                      adapter.name(), kind != nullptr ? "\"" + *kind + "\"" : "true or false");
  }
  MergedAdapters<T> changed;
  try {
    for (AdaptedLinear<T>* site : sites) {
      Lora<T>* lora = adapter.template find<Lora<T>>(site->module());
      Dora<T>* dora = adapter.template find<Dora<T>>(site->module());
      if (dora != nullptr) lora = &dora->lora();
      if (lora == nullptr) continue;
      if (!from_weight) {
        detail::start_orthogonal(*lora, seed, site->module().hash(), site->name());
      } else {
        detail::start_from_weight(*lora, site->base(), *kind, seed, site->module().hash(), site->name());
        const BasicMergeTerm<A> term{lora->a_view(), lora->b_view(), -static_cast<A>(lora->scaling())};
        changed.sites.push_back({site, site->base().merge(std::span(&term, 1))});
      }
      if (dora != nullptr) dora->reset_magnitude(site->base());
    }
  } catch (...) {
    for (auto& site : changed.sites) site.linear->base().restore(std::move(site.undo));
    throw;
  }
  return changed;
}

PEFT_END_NAMESPACE
