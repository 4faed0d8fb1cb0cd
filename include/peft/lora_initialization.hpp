#pragma once
/// Starts of LoRA that need more than a seed:
///   "pissa"          W ≈ U·S·Vᵀ cut to r: A = √(S/s)·Vᵀ, B = U·√(S/s), and the base becomes W − s·B·A
///   "pissa_niter_N"  the same by N subspace iterations
///   "olora"          W = Q·R: A = R[:r], B = Q[:, :r], and the base becomes W − s·B·A
///   "orthogonal"     A and B from the odd and even rows of one orthogonal matrix, so that B·A = 0 although neither is 0
///   "loftq"          over a quantised base: Q = q(W), then loftq_iter times s·B·A = W − Q cut to r as PiSSA cuts W, each but
///                    the last followed by Q = q(W − s·B·A); the base becomes the last Q
/// Over a quantised base PiSSA's and OLoRA's remainder is quantised, q(W − s·B·A), with the W that the base was made of where
/// LoraStart::original gives it.
/// Meng et al., "PiSSA", 2024 (arXiv 2404.02948); Büyükakyüz, "OLoRA", 2024 (arXiv 2406.01775); Li et al., "LoftQ", 2023
/// (arXiv 2310.08659, algorithm 1; PEFT's takes s for 1). EVA: lora_eva.hpp.
///
/// An adapter that started from PiSSA, OLoRA or LoftQ means something on that changed base only: on another copy of the model
/// run this first, and load the adapter's file then with AdapterMatching::base_is_residual.

#include <algorithm>
#include <span>
#include <string>
#include <utility>
#include <variant>

#include "peft/core/linalg.hpp"
#include "peft/dora.hpp"
#include "peft/int8_linear.hpp"
#include "peft/lora_start.hpp"
#include "peft/merge.hpp"
#include "peft/named_adapter.hpp"
#include "peft/nf4_linear.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

/// s·B·A = the decomposition's first r terms, √(S/s) to each side.
template <Scalar T>
void share_out(Lora<T>& lora, const linalg::Svd& parts) {
  using A = Accumulator<T>;
  for (Index q = 0; q < lora.r(); ++q) {
    const double share = root(quotient(parts.s[q], lora.scaling()));
    for (Index k = 0; k < lora.in_features(); ++k) lora.a()(q, k) = static_cast<A>(share * parts.vt(q, k));
    for (Index j = 0; j < lora.out_features(); ++j) lora.b()(j, q) = static_cast<A>(share * parts.u(j, q));
  }
}

/// A and B of one module from its weight.
template <Scalar T>
void start_from_weight(Lora<T>& lora, const Matrix<Accumulator<T>>& from, const std::string& kind, std::uint64_t seed,
                       std::uint64_t stream) {
  using A = Accumulator<T>;
  const Index r = lora.r();
  Matrix<double> weight(from.rows(), from.cols());
  std::copy_n(from.data(), from.size(), weight.data());
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
  share_out(lora, kind == "pissa" ? linalg::svd(view, r)
                                  : linalg::svd_lowrank(view, r, std::stol(kind.substr(kIterated.size())), seed, stream));
}

/// Throws ConfigError where loftq_bits is not what the base has; a base of somebody else's may have any.
template <Scalar T>
void check_loftq_bits(const AnyLinear<T>& base, Index bits, std::string_view who) {
  const bool four = base.template get_if<Nf4Linear>() != nullptr || base.template get_if<Fp4Linear>() != nullptr;
  const bool eight = base.template get_if<Int8Linear>() != nullptr;
  if ((four && bits != 4) || (eight && bits != 8)) {
    fail<ConfigError>("{}: loftq_config.loftq_bits is {}; expected {}, those of the base's weight", who, bits, four ? 4 : 8);
  }
}

/// A and B from what quantising leaves of the weight, and the base's weight with them. Returns the undo of the first change.
template <Scalar T>
AnyMergeUndo start_loftq(Lora<T>& lora, AnyLinear<T>& base, const Matrix<Accumulator<T>>& weight, const LoftqConfig& config) {
  using A = Accumulator<T>;
  AnyMergeUndo first;
  Matrix<A> quantized(weight.rows(), weight.cols());
  Matrix<double> left(weight.rows(), weight.cols());
  for (Index i = 0; i < config.loftq_iter; ++i) {
    const BasicMergeTerm<A> term{lora.a_view(), lora.b_view(), -static_cast<A>(lora.scaling())};
    BasicLayerChange<A> change;
    change.weight = weight.view();
    if (i > 0) change.terms = std::span(&term, 1);
    AnyMergeUndo undo = base.rewrite(change);
    if (i == 0) first = std::move(undo);
    base.read_weight_rows(0, quantized.view());
    for (Index j = 0; j < left.size(); ++j) {
      left.data()[j] = static_cast<double>(weight.data()[j]) - static_cast<double>(quantized.data()[j]);
    }
    share_out(lora, linalg::svd(std::as_const(left).view(), lora.r()));
  }
  return first;
}

/// What a quantised base, with `terms` added, leaves of the weight.
template <Scalar T>
QuantizationError left_error(const Matrix<Accumulator<T>>& weight, const AnyLinear<T>& base,
                             std::span<const BasicMergeTerm<Accumulator<T>>> terms) {
  BasicLayerChange<Accumulator<T>> change;
  change.terms = terms;
  const Matrix<float> own = base.changed_weight(change);
  return quantization_error(weight.view(), [&](Index row, float* values) { std::copy_n(own.row(row), own.cols(), values); });
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
/// or changed, a rank that does not fit; for "loftq" a base that is not quantised, or in other bits, or whose original is not
/// given.
template <Scalar T>
MergedAdapters<T> initialize_lora(NamedAdapter<T>& adapter, std::span<AdaptedLinear<T>* const> sites,
                                  const LoraStart<T>& start) {
  using A = Accumulator<T>;
  const LoraConfig& config = adapter.config();
  const auto* kind = std::get_if<std::string>(&config.init_lora_weights);
  const bool from_weight = kind != nullptr && config.changes_base();
  if (!from_weight && (kind == nullptr || *kind != "orthogonal")) {
    fail<ConfigError>("initialize_lora: adapter \"{}\" has init_lora_weights = {}; expected \"pissa\", \"pissa_niter_N\", "
                      "\"olora\", \"orthogonal\" or \"loftq\" (EVA: initialize_lora_eva)",
                      adapter.name(), kind != nullptr ? "\"" + *kind + "\"" : "true or false");
  }
  MergedAdapters<T> changed;
  const auto change = [&](AdaptedLinear<T>& site, Lora<T>& lora) {
    AnyLinear<T>& base = site.base();
    const Index most = std::min(lora.in_features(), lora.out_features());
    if (lora.r() > most) {
      fail<ConfigError>("{}: init_lora_weights = \"{}\" gives at most rank {}, of a [{}, {}] weight; got r = {}", site.name(),
                        *kind, most, lora.out_features(), lora.in_features(), lora.r());
    }
    if (!base.can_merge()) {
      fail<ConfigError>("{}: init_lora_weights = \"{}\" changes the base's weight, and this one cannot be changed (a GGUF's own blocks "
                        "cannot); expected a peft::MergeableLinear: weights in memory, or in nf4, fp4 or int8",
                        site.name(), *kind);
    }
    const bool quantized = base.requantizes(), has_original = quantized && static_cast<bool>(start.original);
    if (*kind == "loftq") {
      if (!quantized) {
        fail<ConfigError>("{}: init_lora_weights = \"loftq\" is for a base whose weights are quantised and can be again (NF4, FP4, "
                          "int8)",
                          site.name());
      }
      if (!has_original) {
        fail<ConfigError>("{}: init_lora_weights = \"loftq\" needs the weight that the base was quantised from; expected "
                          "LoraStart::original",
                          site.name());
      }
      detail::check_loftq_bits(base, config.loftq_config.loftq_bits, site.name());
    }
    Matrix<A> weight(has_original ? Index{0} : lora.out_features(), lora.in_features());
    if (has_original) {
      weight = start.original(site);
      detail::check_shape(site.name(), "the original weight", weight.view(), lora.out_features(), lora.in_features());
    } else {
      base.read_weight_rows(0, weight.view());
    }
    typename LoraStart<T>::Error error;
    if constexpr (!std::same_as<T, double>) {
      if (quantized && start.on_site) error.before = detail::left_error<T>(weight, base, {});
    }
    BasicMergeTerm<A> term{lora.a_view(), lora.b_view(), -static_cast<A>(lora.scaling())};
    if (*kind == "loftq") {
      changed.sites.push_back({&site, detail::start_loftq(lora, base, weight, config.loftq_config)});
    } else {
      detail::start_from_weight(lora, weight, *kind, start.seed, site.module().hash());
      BasicLayerChange<A> remainder;
      remainder.weight = weight.view();
      remainder.terms = std::span(&term, 1);
      changed.sites.push_back({&site, has_original ? base.rewrite(remainder) : base.merge(remainder.terms)});
    }
    if constexpr (!std::same_as<T, double>) {
      if (!quantized || !start.on_site) return;
      term.scale = -term.scale;
      error.after = detail::left_error<T>(weight, base, std::span(&term, 1));
      start.on_site(site, error);
    }
  };
  try {
    for (AdaptedLinear<T>* site : sites) {
      Lora<T>* lora = adapter.template find<Lora<T>>(site->module());
      Dora<T>* dora = adapter.template find<Dora<T>>(site->module());
      if (dora != nullptr) lora = &dora->lora();
      if (lora == nullptr) continue;
      if (from_weight) {
        change(*site, *lora);
      } else {
        detail::start_orthogonal(*lora, start.seed, site->module().hash(), site->name());
      }
      if (dora != nullptr) dora->reset_magnitude(site->base());
    }
  } catch (...) {
    for (auto& site : changed.sites) site.linear->base().restore(std::move(site.undo));
    throw;
  }
  return changed;
}

/// The same with a seed alone.
template <Scalar T>
MergedAdapters<T> initialize_lora(NamedAdapter<T>& adapter, std::span<AdaptedLinear<T>* const> sites,
                                  std::uint64_t seed = 0) {
  LoraStart<T> start;
  start.seed = seed;
  return initialize_lora(adapter, sites, start);
}

PEFT_END_NAMESPACE
