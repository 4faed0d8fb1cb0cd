#pragma once
/// A comparison of methods as a picture: a panel of bars each for the validation loss, the trainable share and the speed.
/// No text of it needs a font that is not there; light and dark like the reader's screen.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cli/compare_report.hpp"
#include "peft/train/loss_svg.hpp"

namespace peft_examples {

/// Draws the picture. Lengths are in the units of its viewBox.
class ComparePicture {
 public:
  ComparePicture(const std::vector<ComparedMethod>& methods, std::string_view title) : methods_(methods), title_(title) {}

  std::string draw() {
    const double height = kTop + kRow * static_cast<double>(methods_.size()) + 28;
    put(R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" )"
        R"(role="img" aria-label="{2}">)",
        kWidth, height, peft::escape_xml(title_));
    put("{}",
        "<style>\n"
        "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;fill:#1f2328}\n"
        ".title{font-size:17px;font-weight:600}.soft{fill:#59636e}.paper{fill:#ffffff}.head{font-weight:600}\n"
        ".bar{fill:#0969da}.base{fill:#9aa4af}.failed{fill:#cf222e}.grid{stroke:#d9dee3;stroke-width:1}\n"
        "@media (prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9aa4af}.paper{fill:#12161c}"
        ".bar{fill:#58a6ff}.base{fill:#59636e}.failed{fill:#ff7b72}.grid{stroke:#2c343d}}\n"
        "</style>");
    put(R"(<rect width="{:.0f}" height="{:.0f}" class="paper"/>)", kWidth, height);
    put(R"(<text x="{:.0f}" y="32" class="title">{}</text>)", kMargin, peft::escape_xml(title_));
    for (std::size_t i = 0; i < methods_.size(); ++i) {
      put(R"(<text x="{:.0f}" y="{:.1f}">{}</text>)", kMargin, middle(i) + 4.5, peft::escape_xml(methods_[i].method));
      if (!methods_[i].error.empty()) {
        put(R"(<text x="{:.0f}" y="{:.1f}" class="failed">failed</text>)", kFirst, middle(i) + 4.5);
      }
    }
    panel(0, "validation loss", "nats per label token", false, 3, [](const ComparedMethod& one) { return one.val_loss; });
    panel(1, "trainable", "% of all, logarithmic", true, 3, [](const ComparedMethod& one) { return one.percent(); });
    panel(2, "training speed", "tokens/s", false, 0, [](const ComparedMethod& one) { return one.tok_s; });
    put("</svg>");
    return fmt::to_string(text_);
  }

 private:
  static constexpr double kWidth = 880, kMargin = 24, kFirst = 128, kTop = 92, kRow = 30, kBar = 18;
  static constexpr double kPanel = 240, kRoom = 62;  ///< of a panel, and in it of a bar's figure

  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_.push_back('\n');
  }
  static double middle(std::size_t row) noexcept { return kTop + kRow * (static_cast<double>(row) + 0.5); }

  void panel(int place, std::string_view name, std::string_view unit, bool logarithmic, int digits,
             const std::function<std::optional<double>(const ComparedMethod&)>& get) {
    const double left = kFirst + kPanel * place, bottom = kTop + kRow * static_cast<double>(methods_.size());
    put(R"(<text x="{:.0f}" y="64" class="head">{}</text><text x="{:.0f}" y="82" class="soft">{}</text>)", left, name, left, unit);
    put(R"(<line x1="{0:.0f}" x2="{0:.0f}" y1="{1:.0f}" y2="{2:.0f}" class="grid"/>)", left, kTop, bottom);
    double highest = 0, lowest = 0;
    for (const ComparedMethod& one : methods_) {
      const std::optional<double> value = shown(one, get);
      if (!value || *value <= 0) continue;
      highest = std::max(highest, *value);
      lowest = lowest == 0 ? *value : std::min(lowest, *value);
    }
    if (highest == 0) return;
    // A logarithmic bar begins a decade below the smallest.
    const double zero = logarithmic ? std::floor(std::log10(lowest)) - 1 : 0;
    const double full = logarithmic ? std::log10(highest) : highest;
    for (std::size_t i = 0; i < methods_.size(); ++i) {
      const std::optional<double> value = shown(methods_[i], get);
      if (!value) continue;
      const double length = *value > 0 ? ((logarithmic ? std::log10(*value) : *value) - zero) / (full - zero) * (kPanel - kRoom) : 0;
      put(R"(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.0f}" rx="2" class="{}"/>)", left, middle(i) - kBar / 2, length,
          kBar, methods_[i].trainable ? "bar" : "base");
      put(R"(<text x="{:.1f}" y="{:.1f}" class="soft">{:.{}f}</text>)", left + length + 6, middle(i) + 4.5, *value, digits);
    }
  }
  static std::optional<double> shown(const ComparedMethod& one, const std::function<std::optional<double>(const ComparedMethod&)>& get) {
    const std::optional<double> value = get(one);
    return one.error.empty() && value && std::isfinite(*value) ? value : std::nullopt;
  }

  const std::vector<ComparedMethod>& methods_;
  std::string_view title_;
  fmt::memory_buffer text_;
};

inline std::string compare_svg(const std::vector<ComparedMethod>& methods, std::string_view title) {
  return ComparePicture(methods, title).draw();
}

}  // namespace peft_examples
