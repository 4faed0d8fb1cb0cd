#pragma once
/// Where adapters may attach in one host.

#include <concepts>
#include <span>

#include "peft/adapted_embedding.hpp"
#include "peft/adapted_linear.hpp"
#include "peft/adapted_norm.hpp"

PEFT_BEGIN_NAMESPACE

/// The host's linear layers, and, where it has them adapted, its embeddings and norms, each in the order of the model. A
/// list of linear layers alone converts to it.
template <Scalar T>
struct AdapterSites {
  std::span<AdaptedLinear<T>* const> linears;
  std::span<AdaptedEmbedding<T>* const> embeddings{};  ///< the input embedding first
  std::span<AdaptedNorm<T>* const> norms{};
  /// The head (one of `linears`) whose weight is the input embedding's, or nullptr: rows trained there, and the table in
  /// full fine-tuning, are the head's too.
  AdaptedLinear<T>* tied_head = nullptr;

  AdapterSites() = default;
  template <class Linears>
    requires std::convertible_to<Linears&&, std::span<AdaptedLinear<T>* const>>
  AdapterSites(Linears&& all_linears,  // NOLINT(google-explicit-constructor): mostly there is nothing else
               std::span<AdaptedEmbedding<T>* const> all_embeddings = {},
               std::span<AdaptedNorm<T>* const> all_norms = {}, AdaptedLinear<T>* head = nullptr)
      : linears(all_linears), embeddings(all_embeddings), norms(all_norms), tied_head(head) {}
};

PEFT_END_NAMESPACE
