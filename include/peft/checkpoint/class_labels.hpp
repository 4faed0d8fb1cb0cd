#pragma once
/// The names of a classifier's classes beside its adapter: labels.json, {"id2label": {"0": …}} as transformers' config.json
/// has them. Python PEFT keeps none and ignores the file; AdapterHub's are in head_config.json.

#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "peft/checkpoint/config_reader.hpp"
#include "peft/checkpoint/lora_config_json.hpp"
#include "peft/io/atomic_directory.hpp"
#include "peft/io/json.hpp"
#include "peft/io/mapped_file.hpp"

PEFT_BEGIN_NAMESPACE
namespace detail {

inline constexpr std::string_view kClassLabels = "labels.json";

}  // namespace detail

/// The names by class, from id2label's texts, whose keys are "0" to "n-1". Throws FormatError, naming the class that is
/// missing.
inline std::vector<std::string> class_labels_from_json(const Json& id2label, std::string_view where) {
  if (!id2label.is_object() || id2label.empty()) {
    fail<FormatError>("{}: id2label is {}; expected an object of \"0\", \"1\", … and names", where, detail::shown(id2label));
  }
  std::vector<std::string> labels;
  for (std::size_t i = 0; i < id2label.size(); ++i) {
    const auto found = id2label.find(std::to_string(i));
    if (found == id2label.end() || !found->is_string()) {
      fail<FormatError>("{}: id2label has {} entries and {} under \"{}\"; expected a name", where, id2label.size(),
                        found == id2label.end() ? "nothing" : kind_of(*found), i);
    }
    labels.push_back(found->get<std::string>());
  }
  return labels;
}

/// Writes the file into a set that the caller commits. Throws ConfigError for a name that is not UTF-8, IoError.
inline void write_class_labels(AtomicDirectory& set, const std::vector<std::string>& labels) {
  Json names = Json::object();
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (!is_utf8(labels[i])) {
      fail<ConfigError>("saving {}: the name of class {} is {}; expected UTF-8", detail::kClassLabels, i, quote_text(labels[i]));
    }
    names[std::to_string(i)] = labels[i];
  }
  FileWriter file = set.create(detail::kClassLabels);
  file.write(Json{{"id2label", std::move(names)}}.dump(2) + "\n");
  file.finish();
}

/// The names that stand in `folder`; none where it has no such file. Throws IoError, FormatError.
inline std::vector<std::string> load_class_labels(const std::filesystem::path& folder) {
  const std::filesystem::path path = AtomicDirectory::locate(folder, detail::kClassLabels);
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {};
  const std::string where = "class labels " + path.string();
  const Json json = detail::read_config_json(path, where);
  if (!json.is_object() || !json.contains("id2label")) fail<FormatError>("{}: it has no id2label", where);
  return class_labels_from_json(json["id2label"], where);
}

PEFT_END_NAMESPACE
