#pragma once
/// Text generation over a host's key/value cache: several prompts at once, each leaves the batch when it is done.

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <span>
#include <vector>

#include "hosts/llama.hpp"
#include "peft/core/rng.hpp"

namespace peft_examples {

/// How tokens are chosen and when a text ends.
struct GenerateOptions {
  Index max_tokens = 128;
  double temperature = 0.0;  ///< 0: always the likeliest token
  double top_p = 1.0;        ///< smallest set of tokens whose probabilities reach this (Holtzman et al., 2020)
  std::uint64_t seed = 0;
  std::vector<std::int32_t> stop_ids;  ///< a text ends before any of these

  /// Throws ConfigError.
  void validate() const {
    if (max_tokens < 1) peft::fail<peft::ConfigError>("generate: max_tokens is {}; expected at least 1", max_tokens);
    if (!(temperature >= 0.0)) {
      peft::fail<peft::ConfigError>("generate: temperature is {}; expected 0 or more", temperature);
    }
    if (!(top_p > 0.0 && top_p <= 1.0)) {
      peft::fail<peft::ConfigError>("generate: top_p is {}; expected above 0 and at most 1", top_p);
    }
  }
};

/// The next token for one row of logits.
template <class A>
std::int32_t choose_token(std::span<const A> logits, const GenerateOptions& options, peft::Philox& random) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (options.temperature == 0.0) return static_cast<std::int32_t>(best - logits.begin());
  std::vector<double> p(logits.size());
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    sum += p[i] = std::exp((static_cast<double>(logits[i]) - static_cast<double>(*best)) / options.temperature);
  }
  std::vector<std::int32_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  const auto likelier = [&](std::int32_t a, std::int32_t b) {
    const double pa = p[static_cast<std::size_t>(a)], pb = p[static_cast<std::size_t>(b)];
    return pa != pb ? pa > pb : a < b;
  };
  std::size_t kept = order.size();
  if (options.top_p < 1.0) {
    std::sort(order.begin(), order.end(), likelier);
    double reached = 0;
    for (kept = 0; kept < order.size() && reached < options.top_p * sum; ++kept) {
      reached += p[static_cast<std::size_t>(order[kept])];
    }
    sum = reached;
  }
  double left = random.uniform_double() * sum;
  for (std::size_t i = 0; i < kept; ++i) {
    left -= p[static_cast<std::size_t>(order[i])];
    if (left < 0) return order[i];
  }
  return order[kept - 1];  // rounding left a rest
}

/// Continues every prompt (token ids, at least one each); returns the new ids without the stop token. on_token(prompt,
/// id), where given, hears each token as it is chosen; false from it ends them all. A text also ends where the model's
/// context does. In exact arithmetic a prompt's result does not depend on which others share its batch; each has its own
/// random stream.
/// Throws ConfigError, ShapeError.
template <Scalar T>
std::vector<std::vector<std::int32_t>> generate(
    Llama<T>& model, std::span<const std::vector<std::int32_t>> prompts, const GenerateOptions& options,
    Index batch_size = 8, const std::function<bool(std::size_t, std::int32_t)>& on_token = {}) {
  options.validate();
  const auto prefix = model.make_prefix();  // of the virtual tokens; all texts share it
  const Index context = model.config().context() - model.num_virtual_tokens();
  std::vector<std::vector<std::int32_t>> results(prompts.size());
  struct Running {
    std::size_t prompt;
    KvCache<T> cache;
    peft::Philox random;
    std::vector<std::int32_t> next;  // ids to feed
  };
  std::vector<Running> running;
  std::size_t waiting = 0;
  std::vector<std::int32_t> ids;
  std::vector<Index> counts;
  std::vector<KvCache<T>*> caches;
  Matrix<Accumulator<T>> logits;
  while (true) {
    while (static_cast<Index>(running.size()) < std::max<Index>(1, batch_size) && waiting < prompts.size()) {
      const auto& prompt = prompts[waiting];
      const auto length = static_cast<Index>(prompt.size());
      if (length < 1 || length > context) {
        peft::fail<peft::ConfigError>("generate: prompt {} has {} tokens; expected 1 to {}, the model's context", waiting,
                                      length, context);
      }
      running.push_back({waiting, KvCache<T>(model.config(), std::min(context, length + options.max_tokens), prefix),
                         peft::Philox(options.seed, waiting), prompt});
      ++waiting;
    }
    if (running.empty()) return results;
    ids.clear();
    counts.clear();
    caches.clear();
    for (Running& one : running) {
      ids.insert(ids.end(), one.next.begin(), one.next.end());
      counts.push_back(static_cast<Index>(one.next.size()));
      caches.push_back(&one.cache);
    }
    logits.resize_discard(static_cast<Index>(running.size()), model.config().vocab_size);
    model.infer({ids.data(), static_cast<Index>(ids.size())}, counts, caches, logits);
    std::vector<Running> still;
    for (std::size_t i = 0; i < running.size(); ++i) {
      Running& one = running[i];
      const std::span<const Accumulator<T>> row(logits.row(static_cast<Index>(i)), static_cast<std::size_t>(logits.cols()));
      const std::int32_t id = choose_token(row, options, one.random);
      if (std::find(options.stop_ids.begin(), options.stop_ids.end(), id) != options.stop_ids.end()) continue;
      results[one.prompt].push_back(id);
      if (on_token && !on_token(one.prompt, id)) return results;
      if (static_cast<Index>(results[one.prompt].size()) >= options.max_tokens || one.cache.length() >= one.cache.capacity()) {
        continue;
      }
      one.next.assign(1, id);
      still.push_back(std::move(one));
    }
    running = std::move(still);
  }
}

}  // namespace peft_examples
