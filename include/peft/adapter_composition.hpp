#pragma once
/// Several adapters at one site, composed as an AdapterSetup says, with AdapterHub's rules:
///   Stack       the next adapter's h is the last one's o; the block's norm and residual follow the last one's
///   Average     Σ w_i·o_i of the same x
///   BatchSplit, Parallel, Split   each child has its rows
///   Fuse        AdapterFusion over the updates, the last adapter's x, a and fields
/// A block's x and a are those of its first adapter (Fuse: last). The batch is packed: sequence s has the rows
/// [offsets[s], offsets[s + 1]). Parallel expects it repeated, once per child, as the host does before its first layer.
/// For training of a few adapters on top of each other and for serving; one adapter alone is Adapter's own forward.

#include <algorithm>
#include <concepts>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "peft/adapter.hpp"
#include "peft/adapter_fusion.hpp"
#include "peft/adapter_rows.hpp"
#include "peft/adapter_setup.hpp"
#include "peft/adapter_site_parts.hpp"

PEFT_BEGIN_NAMESPACE

/// A setup over the adapters of one site; those that the site lacks (leave_out) are passed by, as in AdapterHub. Refers to
/// the adapters and AdapterFusion layers, which must outlive it and may not move.
template <Scalar T = float>
class AdapterComposition {
 public:
  using NamedAdapters = typename AdapterSiteParts<T>::NamedAdapters;
  using NamedFusions = typename AdapterSiteParts<T>::NamedFusions;

  /// One block's or adapter's part of what backward needs.
  struct Saved {
    Matrix<T> output;
    typename Adapter<T>::Input input;
    typename Adapter<T>::Saved adapter;
    typename AdapterFusion<T>::Saved fusion;
    Matrix<T> before_block_norm;  ///< only at the root
    Matrix<T> x, a, r;            ///< a child's rows of its block's
    AdapterRows rows;             ///< which of its block's those are
    std::vector<Saved> children;
  };

  /// Throws ConfigError: a setup that is not valid, adapters of different sizes, a Fuse without its layer, a block whose
  /// first adapter (Fuse: last; Average, Split: any) is not here.
  AdapterComposition(AdapterSetup setup, NamedAdapters adapters, NamedFusions fusions = {})
      : setup_(std::move(setup)), parts_(std::move(adapters), std::move(fusions)) {
    setup_.validate();
    parts_.check(setup_);
  }

  const AdapterSetup& setup() const noexcept { return setup_; }

  /// y = what the block hands on. `dropout`: the key of the first adapter's mask, the next ones take the module numbers
  /// behind it; nullptr in inference. Throws ShapeError where sizes do not fit the batch.
  template <class Norm>
    requires ops::BlockNorm<Norm, T>
  void forward(MatrixView<const T> h, MatrixView<const T> r, Norm&& norm, std::span<const Index> offsets,
               MatrixView<T> y, Saved& saved, const DropoutKey* dropout = nullptr,
               ExecutorRef executor = default_executor()) const {
    check_batch(h, r, "y", y, offsets);
    Run run{dropout != nullptr ? *dropout : DropoutKey{}, dropout != nullptr, executor};
    forward_node(setup_, h, r, norm, offsets, saved, run);
    const Adapter<T>& last = parts_.last_of(setup_);
    const bool after = last.config().original_ln_after;
    const bool normed = after && kHasNorm<Norm>;
    if (normed) saved.before_block_norm.resize_discard(h.rows, h.cols);
    const MatrixView<T> out = normed ? saved.before_block_norm.view() : y;
    detail::add_rows<T>(view(saved.output), last.config().is_parallel ? h : MatrixView<const T>(), out, executor);
    if (after) detail::add_rows<T>(r, out, out, executor);
    if (normed) norm.forward(out, y, executor);
  }

  /// Adds to the gradients of all adapters and AdapterFusion layers; dh and dr are overwritten and may not be dy. Throws
  /// ShapeError.
  template <class Norm>
    requires ops::BlockNorm<Norm, T>
  void backward(MatrixView<const T> dy, MatrixView<const T> h, MatrixView<const T> r, Norm&& norm,
                std::span<const Index> offsets, const Saved& saved, MatrixView<T> dh, MatrixView<T> dr,
                ExecutorRef executor = default_executor()) const {
    check_batch(h, r, "dy", dy, offsets);
    detail::check_shape("AdapterComposition::backward", "dh", dh, h.rows, h.cols);
    detail::check_shape("AdapterComposition::backward", "dr", dr, h.rows, h.cols);
    const Adapter<T>& last = parts_.last_of(setup_);
    const bool after = last.config().original_ln_after;
    Matrix<T> g(h.rows, h.cols);
    if (after && kHasNorm<Norm>) {
      norm.backward(dy, view(saved.before_block_norm), Accumulate::kOverwrite, g.view(), executor);
    } else {
      detail::add_rows<T>(dy, {}, g.view(), executor);
    }
    zero(dr);
    if (after) detail::add_rows<T>(view(g), {}, dr, executor);
    backward_node(setup_, view(g), h, norm, saved, dh, dr, executor);
    if (last.config().is_parallel) detail::add_rows<T>(view(g), dh, dh, executor);
  }

 private:
  template <class Norm>
  static constexpr bool kHasNorm = !std::same_as<std::remove_cvref_t<Norm>, ops::NoNorm>;
  using Kind = AdapterSetup::Kind;

  struct Run {
    DropoutKey key;
    bool training;
    ExecutorRef executor;

    DropoutMask next() {
      if (!training) return {};
      DropoutKey own = key;
      ++key.module;
      return own;
    }
  };

  static MatrixView<const T> view(const Matrix<T>& matrix) noexcept { return matrix.view(); }
  static void zero(MatrixView<T> x) noexcept {
    const std::size_t bytes = sizeof(T) * static_cast<std::size_t>(x.cols);
    for (Index i = 0; i < x.rows; ++i) std::memset(static_cast<void*>(x.row(i)), 0, bytes);
  }
  static void copy_rows(MatrixView<const T> from, const std::vector<Index>& rows, Matrix<T>& to) {
    to.resize_discard(static_cast<Index>(rows.size()), from.cols);
    for (std::size_t i = 0; i < rows.size(); ++i) std::copy_n(from.row(rows[i]), from.cols, to.row(static_cast<Index>(i)));
  }
  static void put_rows(MatrixView<const T> from, const std::vector<Index>& rows, MatrixView<T> to) {
    for (std::size_t i = 0; i < rows.size(); ++i) std::copy_n(from.row(static_cast<Index>(i)), from.cols, to.row(rows[i]));
  }

  template <class Y>
  void check_batch(MatrixView<const T> h, MatrixView<const T> r, std::string_view what, MatrixView<Y> y,
                   std::span<const Index> offsets) const {
    constexpr std::string_view kWho = "AdapterComposition";
    const Index d = parts_.hidden_size();
    detail::check_shape(kWho, "h (the branch's output)", h, h.rows, d);
    detail::check_shape(kWho, "r (the block's residual)", r, h.rows, d);
    detail::check_shape(kWho, what, y, h.rows, d);
    if (offsets.empty() || offsets.front() != 0 || offsets.back() != h.rows ||
        !std::is_sorted(offsets.begin(), offsets.end())) {
      fail<ShapeError>("{}: the offsets of the sequences do not go from 0 to the {} rows", kWho, h.rows);
    }
    check_adapter_rows(setup_, offsets);
  }

  /// saved.output = the node's o of h.
  template <class Norm>
  void forward_node(const AdapterSetup& setup, MatrixView<const T> h, MatrixView<const T> r, Norm& norm,
                    std::span<const Index> offsets, Saved& saved, Run& run) const {
    saved.output.resize_discard(h.rows, h.cols);
    const MatrixView<T> out = saved.output.view();
    if (setup.kind() == Kind::kStack || setup.is_single()) return forward_stack(setup, h, r, norm, offsets, saved, run);
    saved.children.resize(setup.children().size());
    Adapter<T>& first = parts_.first_of(setup);
    saved.input = first.input_of(h, r, norm, MatrixView<T>(), run.executor);
    if (setup.kind() == Kind::kFuse) return forward_fuse(setup, h, r, norm, offsets, saved, run);
    const MatrixView<const T> x = saved.input.x, a = saved.input.residual;
    if (setup.shares_rows()) {
      std::vector<AdapterRows> shares = share_adapter_rows(setup, offsets);
      for (std::size_t i = 0; i < shares.size(); ++i) saved.children[i].rows = std::move(shares[i]);
    }
    if (setup.kind() == Kind::kAverage) zero(out);
    for (std::size_t i = 0; i < saved.children.size(); ++i) {
      Saved& child = saved.children[i];
      const AdapterSetup& own = setup.children()[i];
      if (setup.kind() == Kind::kAverage) {
        forward_child(own, x, a, r, norm, offsets, child, run);
        Matrix<T> part = child.output.clone();
        scale_rows(part.view(), setup.weights()[i]);
        detail::add_rows<T>(view(part), out, out, run.executor);
      } else {
        copy_rows(x, child.rows.rows, child.x);
        if (a.data != nullptr) copy_rows(a, child.rows.rows, child.a);
        copy_rows(r, child.rows.rows, child.r);
        forward_child(own, view(child.x), a.data != nullptr ? view(child.a) : MatrixView<const T>(), view(child.r), norm,
                      child.rows.offsets, child, run);
        put_rows(view(child.output), child.rows.rows, out);
      }
    }
  }

  /// A block's child: an adapter takes the block's x and a, a block makes its own of x.
  template <class Norm>
  void forward_child(const AdapterSetup& child, MatrixView<const T> x, MatrixView<const T> a, MatrixView<const T> r,
                     Norm& norm, std::span<const Index> offsets, Saved& saved, Run& run) const {
    if (!child.is_single()) return forward_node(child, x, r, norm, offsets, saved, run);
    saved.output.resize_discard(x.rows, x.cols);
    if (Adapter<T>* adapter = parts_.find(child.name())) {
      adapter->transform(x, a, saved.adapter, run.next(), saved.output.view(), run.executor);
    } else {
      detail::add_rows<T>(x, {}, saved.output.view(), run.executor);
    }
  }

  template <class Norm>
  void forward_stack(const AdapterSetup& setup, MatrixView<const T> h, MatrixView<const T> r, Norm& norm,
                     std::span<const Index> offsets, Saved& saved, Run& run) const {
    if (setup.is_single()) {
      Adapter<T>* adapter = parts_.find(setup.name());
      if (adapter == nullptr) {
        detail::add_rows<T>(h, {}, saved.output.view(), run.executor);
        return;
      }
      saved.input = adapter->input_of(h, r, norm, MatrixView<T>(), run.executor);
      adapter->transform(saved.input.x, saved.input.residual, saved.adapter, run.next(), saved.output.view(), run.executor);
      return;
    }
    saved.children.resize(setup.children().size());
    MatrixView<const T> from = h;
    for (std::size_t i = 0; i < saved.children.size(); ++i) {
      forward_node(setup.children()[i], from, r, norm, offsets, saved.children[i], run);
      from = view(saved.children[i].output);
    }
    detail::add_rows<T>(from, {}, saved.output.view(), run.executor);
  }

  /// The query, and the residual that AdapterFusion adds.
  MatrixView<const T> query_of(const AdapterSetup& setup, MatrixView<const T> h, const Saved& saved) const noexcept {
    const bool before = parts_.fusion_of(setup).config().query_before_ln && !parts_.first_of(setup).config().is_parallel;
    return before ? h : saved.input.x;
  }
  MatrixView<const T> fused_residual(const Saved& saved) const noexcept {
    return saved.input.residual.data != nullptr ? saved.input.residual : saved.input.x;  // x is r where parallel
  }

  template <class Norm>
  void forward_fuse(const AdapterSetup& setup, MatrixView<const T> h, MatrixView<const T> r, Norm& norm,
                    std::span<const Index> offsets, Saved& saved, Run& run) const {
    std::vector<MatrixView<const T>> updates;
    for (std::size_t i = 0; i < saved.children.size(); ++i) {
      // An adapter's update, or that of a stack's last: the bottleneck alone.
      const AdapterSetup& own = setup.children()[i];
      Saved& child = saved.children[i];
      const auto stacked = static_cast<std::ptrdiff_t>(own.children().size()) - 1;
      if (stacked >= 0) child.children.resize(own.children().size());
      MatrixView<const T> from = saved.input.x;
      for (std::ptrdiff_t j = 0; j < stacked; ++j) {
        Saved& part = child.children[static_cast<std::size_t>(j)];
        forward_node(own.children()[static_cast<std::size_t>(j)], from, r, norm, offsets, part, run);
        from = view(part.output);
      }
      Adapter<T>& adapter = *parts_.find(own.last());
      if (stacked >= 0) {
        child.input = adapter.input_of(from, r, norm, MatrixView<T>(), run.executor);
        from = child.input.x;
      }
      child.output.resize_discard(h.rows, h.cols);
      adapter.bottleneck().forward(from, child.adapter.bottleneck, {}, Accumulate::kOverwrite, child.output.view(),
                                   run.executor);
      updates.push_back(view(child.output));
    }
    parts_.fusion_of(setup).forward(query_of(setup, h, saved), updates, fused_residual(saved), saved.output.view(),
                                    saved.fusion, run.next(), run.executor);
  }

  /// dh = the gradient of the node's h, dr += that of r, given that of its output.
  template <class Norm>
  void backward_node(const AdapterSetup& setup, MatrixView<const T> g, MatrixView<const T> h, Norm& norm,
                     const Saved& saved, MatrixView<T> dh, MatrixView<T> dr, ExecutorRef executor) const {
    if (setup.is_single()) {
      Adapter<T>* adapter = parts_.find(setup.name());
      if (adapter == nullptr) {
        detail::add_rows<T>(g, {}, dh, executor);
        return;
      }
      Matrix<T> dx(h.rows, h.cols), memory;
      const MatrixView<const T> da =
          adapter->backward_transform(g, saved.input.x, saved.adapter, memory, dx.view(), executor);
      adapter->backward_input(saved.input, norm, dx.view(), da, dh, dr, executor);
      return;
    }
    if (setup.kind() == Kind::kStack) {
      Matrix<T> memory[2] = {Matrix<T>(h.rows, h.cols), Matrix<T>(h.rows, h.cols)};
      detail::add_rows<T>(g, {}, memory[0].view(), executor);
      std::size_t now = 0;
      for (std::size_t i = saved.children.size(); i-- > 0; now ^= 1) {
        const MatrixView<const T> from = i > 0 ? view(saved.children[i - 1].output) : h;
        backward_node(setup.children()[i], view(memory[now]), from, norm, saved.children[i],
                      memory[now ^ 1].view(), dr, executor);
      }
      detail::add_rows<T>(view(memory[now]), {}, dh, executor);
      return;
    }
    if (setup.kind() == Kind::kFuse) return backward_fuse(setup, g, h, norm, saved, dh, dr, executor);
    Matrix<T> dx = zeros(h), da = zeros(h), part(h.rows, h.cols);
    for (std::size_t i = 0; i < saved.children.size(); ++i) {
      const Saved& child = saved.children[i];
      const AdapterSetup& own = setup.children()[i];
      if (setup.kind() == Kind::kAverage) {
        detail::add_rows<T>(g, {}, part.view(), executor);
        scale_rows(part.view(), setup.weights()[i]);
        backward_child(own, view(part), saved.input.x, norm, child, dx.view(), da.view(), dr, executor);
      } else {
        Matrix<T> own_g, own_dr = zeros(view(child.x)), own_dx = zeros(view(child.x)), own_da = zeros(view(child.x));
        copy_rows(g, child.rows.rows, own_g);
        backward_child(own, view(own_g), view(child.x), norm, child, own_dx.view(), own_da.view(), own_dr.view(), executor);
        put_rows(view(own_dx), child.rows.rows, dx.view());
        put_rows(view(own_da), child.rows.rows, da.view());
        Matrix<T> sum;
        copy_rows(dr, child.rows.rows, sum);
        detail::add_rows<T>(view(own_dr), view(sum), sum.view(), executor);
        put_rows(view(sum), child.rows.rows, dr);
      }
    }
    const bool has_a = saved.input.residual.data != nullptr;
    parts_.first_of(setup).backward_input(saved.input, norm, dx.view(), has_a ? view(da) : MatrixView<const T>(), dh, dr,
                                          executor);
  }

  /// dx and da (where the block's a is used) are added to.
  template <class Norm>
  void backward_child(const AdapterSetup& child, MatrixView<const T> g, MatrixView<const T> x, Norm& norm,
                      const Saved& saved, MatrixView<T> dx, MatrixView<T> da, MatrixView<T> dr,
                      ExecutorRef executor) const {
    Matrix<T> own(x.rows, x.cols), memory;
    Adapter<T>* adapter = child.is_single() ? parts_.find(child.name()) : nullptr;
    if (adapter != nullptr) {
      const MatrixView<const T> own_da = adapter->backward_transform(g, x, saved.adapter, memory, own.view(), executor);
      if (!adapter->config().is_parallel) detail::add_rows<T>(own_da, da, da, executor);
    } else {
      backward_node(child, g, x, norm, saved, own.view(), dr, executor);
    }
    detail::add_rows<T>(view(own), dx, dx, executor);
  }

  template <class Norm>
  void backward_fuse(const AdapterSetup& setup, MatrixView<const T> g, MatrixView<const T> h, Norm& norm,
                     const Saved& saved, MatrixView<T> dh, MatrixView<T> dr, ExecutorRef executor) const {
    Adapter<T>& last = parts_.first_of(setup);
    std::vector<MatrixView<const T>> updates;
    std::vector<Matrix<T>> memory;
    std::vector<MatrixView<T>> gradients;
    for (const Saved& child : saved.children) {
      updates.push_back(view(child.output));
      memory.emplace_back(h.rows, h.cols);
      gradients.push_back(memory.back().view());
    }
    Matrix<T> dquery(h.rows, h.cols), da(h.rows, h.cols), dx = zeros(h), own(h.rows, h.cols), before(h.rows, h.cols);
    parts_.fusion_of(setup).backward(g, query_of(setup, h, saved), updates, fused_residual(saved), saved.fusion,
                                     dquery.view(), gradients, da.view(), executor);
    for (std::size_t i = 0; i < saved.children.size(); ++i) {
      const AdapterSetup& name = setup.children()[i];
      const Saved& child = saved.children[i];
      Adapter<T>& adapter = *parts_.find(name.last());
      const bool stacked = !name.is_single();
      adapter.bottleneck().backward(view(memory[i]), stacked ? child.input.x : saved.input.x, child.adapter.bottleneck,
                                    Accumulate::kOverwrite, own.view(), executor);
      if (stacked) {
        adapter.backward_input(child.input, norm, own.view(), {}, before.view(), dr, executor);
        for (std::size_t j = name.children().size() - 1; j-- > 0;) {
          const MatrixView<const T> from = j > 0 ? view(child.children[j - 1].output) : saved.input.x;
          detail::add_rows<T>(view(before), {}, own.view(), executor);
          backward_node(name.children()[j], view(own), from, norm, child.children[j], before.view(), dr, executor);
        }
        std::swap(own, before);
      }
      detail::add_rows<T>(view(own), dx.view(), dx.view(), executor);
    }
    const bool parallel = last.config().is_parallel;
    const bool of_branch = parts_.fusion_of(setup).config().query_before_ln && !parallel;
    if (!of_branch) detail::add_rows<T>(view(dquery), dx.view(), dx.view(), executor);
    if (parallel) detail::add_rows<T>(view(da), dx.view(), dx.view(), executor);
    last.backward_input(saved.input, norm, dx.view(), parallel ? MatrixView<const T>() : view(da), dh, dr, executor);
    if (of_branch) detail::add_rows<T>(view(dquery), dh, dh, executor);
  }

  static Matrix<T> zeros(MatrixView<const T> like) {
    Matrix<T> result(like.rows, like.cols);
    zero(result.view());
    return result;
  }
  static void scale_rows(MatrixView<T> x, double weight) noexcept {
    using A = Accumulator<T>;
    for (Index i = 0; i < x.rows; ++i) {
      for (Index j = 0; j < x.cols; ++j) x(i, j) = static_cast<T>(static_cast<A>(x(i, j)) * static_cast<A>(weight));
    }
  }

  AdapterSetup setup_;
  AdapterSiteParts<T> parts_;
};

PEFT_END_NAMESPACE
