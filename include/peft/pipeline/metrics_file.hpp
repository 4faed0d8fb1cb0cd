#pragma once
/// metrics.jsonl: one line of JSON per optimizer step and per evaluation, written as they happen, so that a training can
/// be watched and nothing is lost with the process. A resumed run goes on in the same file, without a step twice.

#include <fcntl.h>

#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "peft/error.hpp"
#include "peft/io/atomic_file.hpp"
#include "peft/io/mapped_file.hpp"
#include "peft/io/system_calls.hpp"
#include "peft/train/metrics_log.hpp"

PEFT_BEGIN_NAMESPACE

namespace detail {

/// The record of a line that to_json wrote; false for anything else, such as a line that a kill cut short.
inline bool parse_metrics_line(std::string_view line, MetricsRecord& record) {
  const nlohmann::json json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object()) return false;
  bool whole = true;
  const auto number = [&](const char* key) {
    const auto found = json.find(key);
    if (found != json.end() && found->is_number()) return found->get<double>();
    if (found == json.end() || !found->is_null()) whole = false;
    return std::numeric_limits<double>::quiet_NaN();  // null stands for what JSON has no number for
  };
  const auto count = [&](const char* key) {
    const auto found = json.find(key);
    if (found != json.end() && found->is_number_integer()) return found->get<Index>();
    whole = false;
    return Index{0};
  };
  const bool evaluation = json.contains("eval_loss");
  record = MetricsRecord();
  record.kind = evaluation ? MetricsRecord::Kind::kEvaluation : MetricsRecord::Kind::kStep;
  record.step = count("step");
  record.epoch = number("epoch");
  record.loss = number(evaluation ? "eval_loss" : "loss");
  record.label_tokens = count(evaluation ? "eval_label_tokens" : "label_tokens");
  if (!evaluation) {
    record.learning_rate = number("learning_rate");
    record.grad_norm = number("grad_norm");
    record.tokens = count("tokens");
    record.tokens_per_second = number("tok_s");
    const auto skipped = json.find("skipped");
    record.skipped = skipped != json.end() && skipped->is_boolean() && skipped->get<bool>();
  }
  return whole;
}

}  // namespace detail

/// Writes the file and remembers its records.
class MetricsFile {
 public:
  explicit MetricsFile(std::filesystem::path path) : path_(std::move(path)) {}

  const std::filesystem::path& path() const noexcept { return path_; }
  const MetricsLog& log() const noexcept { return log_; }

  /// An empty file, whatever stood there. Throws IoError.
  void begin() {
    log_ = MetricsLog();
    rewrite();
  }

  /// Keeps what stands in the file up to `step` and its evaluations up to `evaluated_step`. Lines that are not whole
  /// records are dropped. Throws IoError.
  void resume(Index step, Index evaluated_step) {
    log_ = MetricsLog();
    if (std::filesystem::exists(path_)) {
      const auto file = MappedFile::open(path_);
      std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
      while (!text.empty()) {
        const std::size_t end = text.find('\n');
        if (end == std::string_view::npos) break;
        MetricsRecord record;
        if (detail::parse_metrics_line(text.substr(0, end), record)) log_.add(record);
        text.remove_prefix(end + 1);
      }
    }
    log_.truncate(step, evaluated_step);
    rewrite();
  }

  /// Adds one line, in one write. Throws IoError.
  void append(const MetricsRecord& record) {
    log_.add(record);
    const std::string line = to_json(record) + "\n";
    const SystemCalls& calls = system_calls();
    int file;
    do {
      file = calls.open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    } while (file < 0 && errno == EINTR);
    if (file < 0) fail<IoError>("MetricsFile: opening {}: {}", path_.string(), error_text(errno));
    std::size_t written = 0;
    while (written < line.size()) {
      const ssize_t count = calls.write(file, line.data() + written, line.size() - written);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        const int error = count < 0 ? errno : EIO;
        calls.close(file);
        fail<IoError>("MetricsFile: writing to {}: {}", path_.string(), error_text(error));
      }
      written += static_cast<std::size_t>(count);
    }
    // After EINTR the descriptor is closed on Linux.
    if (calls.close(file) != 0 && errno != EINTR) {
      fail<IoError>("MetricsFile: closing {}: {}", path_.string(), error_text(errno));
    }
  }

 private:
  void rewrite() {
    std::string text;
    for (const MetricsRecord& record : log_.records()) text += to_json(record) + "\n";
    AtomicFile file(path_);
    file.write(text);
    file.commit();
  }

  std::filesystem::path path_;
  MetricsLog log_;
};

PEFT_END_NAMESPACE
