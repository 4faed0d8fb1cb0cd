#pragma once
/// Reads the goldens of tests/golden/make_train.py.

#include <nlohmann/json.hpp>

#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace train_test {

inline nlohmann::json golden(const std::string& name) {
  const std::string path = std::string(PEFT_GOLDEN_DIR) + "/train/" + name;
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot open " + path);
  return nlohmann::json::parse(file);
}

template <class T>
std::vector<T> numbers(const nlohmann::json& list) {
  std::vector<T> result;
  for (const auto& value : list) result.push_back(static_cast<T>(value.get<double>()));
  return result;
}

}  // namespace train_test
