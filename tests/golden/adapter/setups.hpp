#pragma once
/// AdapterHub's composition blocks as the goldens write them.

#include <string>
#include <vector>

#include "golden/adapter/golden_file.hpp"
#include "peft/adapter_setup.hpp"

namespace adapter_golden {

inline AdapterSetup setup_of(const Json& json) {
  const std::string type = json["type"];
  AdapterSetup::List children;
  for (const Json& child : json["children"]) {
    children.push_back(child.is_string() ? AdapterSetup(child.get<std::string>()) : setup_of(child));
  }
  if (type == "single") return children.front();
  if (type == "Stack") return AdapterSetup::stack(children);
  if (type == "Fuse") return AdapterSetup::fuse(children);
  if (type == "Parallel") return AdapterSetup::parallel(children);
  if (type == "Average") {
    // AdapterHub takes torch.mean of the weighted outputs: its sum is divided by their number once more.
    auto weights = json["kwargs"]["weights"].get<std::vector<double>>();
    for (double& weight : weights) weight /= static_cast<double>(weights.size());
    return AdapterSetup::average(children, weights, false);
  }
  if (type == "BatchSplit") {
    return AdapterSetup::batch_split(children, json["kwargs"]["batch_sizes"].get<std::vector<Index>>());
  }
  REQUIRE(type == "Split");
  return AdapterSetup::split(children, json["kwargs"]["splits"].get<std::vector<Index>>());
}

}  // namespace adapter_golden
