#pragma once
/// Training and validation loss as a picture: one SVG file that needs nothing else, readable on light and dark pages.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "peft/train/metrics_log.hpp"

PEFT_BEGIN_NAMESPACE

/// Text as the content of an XML element or attribute. Control characters that XML does not know become spaces.
inline std::string escape_xml(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return result;
}

namespace detail {

/// A range of numbers, the round numbers in it and how many digits they need.
struct Axis {
  double low = 0.0;
  double high = 1.0;
  double tick = 1.0;
  int digits = 0;
};

/// An axis around [low, high] with about `count` ticks at multiples of 1, 2 or 5 times a power of ten.
inline Axis make_axis(double low, double high, int count, bool whole_numbers) noexcept {
  if (!(high > low)) {
    const double margin = low == 0.0 ? 1.0 : std::abs(low) * 0.1;
    low -= whole_numbers ? 0.0 : margin;
    high += whole_numbers ? 1.0 : margin;
  }
  const double rough = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double tick = 10.0 * power;
  for (const double multiple : {5.0, 2.0, 1.0}) {
    if (multiple * power >= rough) tick = multiple * power;
  }
  if (whole_numbers && tick < 1.0) tick = 1.0;
  const double digits = std::ceil(-std::log10(tick) - 1e-9);
  return {low, high, tick, digits > 0.0 ? static_cast<int>(digits) : 0};
}

struct CurvePoint {
  double x = 0.0;
  double y = 0.0;
};

/// At most `most` points: means of equal runs, so that a long training stays a small file.
inline std::vector<CurvePoint> thin_out(const std::vector<CurvePoint>& points, std::size_t most) {
  if (points.size() <= most) return points;
  std::vector<CurvePoint> result;
  for (std::size_t i = 0; i < most; ++i) {
    const std::size_t first = i * points.size() / most;
    const std::size_t last = (i + 1) * points.size() / most;
    CurvePoint sum;
    for (std::size_t j = first; j < last; ++j) {
      sum.x += points[j].x;
      sum.y += points[j].y;
    }
    const auto count = static_cast<double>(last - first);
    result.push_back({sum.x / count, sum.y / count});
  }
  return result;
}

/// Exponential mean over about a fifteenth of the curve, unbiased at its start: the trend beneath the noise of batches.
inline std::vector<CurvePoint> smooth(const std::vector<CurvePoint>& points) {
  const double keep = std::exp(-1.0 / std::max(1.0, static_cast<double>(points.size()) / 15.0));
  std::vector<CurvePoint> result;
  double sum = 0.0;
  double weight = 0.0;
  for (const CurvePoint& point : points) {
    sum = keep * sum + point.y;
    weight = keep * weight + 1.0;
    result.push_back({point.x, sum / weight});
  }
  return result;
}

/// Draws the picture. Lengths are in the units of its viewBox.
class LossPicture {
 public:
  LossPicture(std::span<const MetricsRecord> records, std::string_view title) : title_(title) {
    for (const MetricsRecord& record : records) {
      if (!is_finite(record.loss)) continue;
      auto& curve = record.kind == MetricsRecord::Kind::kStep ? training_ : validation_;
      curve.push_back({static_cast<double>(record.step), record.loss});
    }
    training_ = thin_out(training_, 1500);
    trend_ = smooth(training_);
    choose_axes();
  }

  std::string draw() {
    write_head();
    write_grid();
    if (training_.empty() && validation_.empty()) {
      put(R"(<text x="{:.0f}" y="{:.0f}" text-anchor="middle" class="soft">no steps yet</text>)", (kLeft + kRight) / 2,
          (kTop + kBottom) / 2);
    }
    put(R"svg(<g clip-path="url(#plot)">)svg");
    write_line(training_, "train raw");
    write_line(trend_, "train");
    write_line(validation_, "val");
    for (const CurvePoint& point : validation_) {
      put(R"(<circle cx="{:.1f}" cy="{:.1f}" r="3.5" class="dot"><title>step {:.0f}: {:.4f}</title></circle>)",
          x_of(point.x), y_of(point.y), point.x, point.y);
    }
    put("</g>");
    write_values();
    write_legend();
    put("</svg>");
    return fmt::to_string(text_);
  }

 private:
  static constexpr double kWidth = 880, kHeight = 500;
  static constexpr double kLeft = 72, kRight = 852, kTop = 64, kBottom = 440;

  template <class... Args>
  void put(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
    text_.push_back('\n');
  }

  void choose_axes() {
    bool any = false;
    double low = 0.0, high = 0.0, last = 0.0;
    const auto see = [&](const std::vector<CurvePoint>& points) {
      for (const CurvePoint& point : points) {
        low = any ? std::min(low, point.y) : point.y;
        high = any ? std::max(high, point.y) : point.y;
        last = std::max(last, point.x);
        any = true;
      }
    };
    see(training_);
    see(validation_);
    if (any) {
      const double margin = 0.06 * (high - low);
      const double floor = low >= 0.0 ? std::max(0.0, low - margin) : low - margin;
      y_ = make_axis(floor, high + 2.0 * margin, 8, false);  // above the curve there is room for a figure
    }
    x_ = make_axis(0.0, last, 8, true);
  }

  double x_of(double step) const noexcept { return kLeft + (step - x_.low) / (x_.high - x_.low) * (kRight - kLeft); }
  double y_of(double loss) const noexcept { return kBottom - (loss - y_.low) / (y_.high - y_.low) * (kBottom - kTop); }

  void write_head() {
    put(R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" )"
        R"(role="img" aria-label="{2}">)",
        kWidth, kHeight, escape_xml(title_));
    put("{}",
        "<style>\n"
        "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;fill:#1f2328}\n"
        ".title{font-size:17px;font-weight:600}.soft{fill:#59636e}.paper{fill:#ffffff}\n"
        ".grid{stroke:#d9dee3;stroke-width:1}.frame{fill:none;stroke:#59636e;stroke-width:1}\n"
        ".line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}\n"
        ".train{stroke:#0969da}.raw{stroke-width:1;stroke-opacity:.4}.val{stroke:#cf5b00}\n"
        ".dot{fill:#ffffff;stroke:#cf5b00;stroke-width:2}\n"
        ".value{font-weight:600;fill:#cf5b00;paint-order:stroke;stroke:#ffffff;stroke-width:4px}\n"
        "@media (prefers-color-scheme:dark){text{fill:#e6edf3}.soft{fill:#9aa4af}.paper{fill:#12161c}"
        ".grid{stroke:#2c343d}.frame{stroke:#9aa4af}.train{stroke:#58a6ff}.val{stroke:#ffa657}"
        ".dot{fill:#12161c;stroke:#ffa657}.value{fill:#ffa657;stroke:#12161c}}\n"
        "</style>");
    put(R"(<rect width="{:.0f}" height="{:.0f}" class="paper"/>)", kWidth, kHeight);
    put(R"(<text x="{:.0f}" y="32" class="title">{}</text>)", kLeft, escape_xml(title_));
    put(R"(<clipPath id="plot"><rect x="{:.0f}" y="{:.0f}" width="{:.0f}" height="{:.0f}"/></clipPath>)", kLeft - 5,
        kTop - 5, kRight - kLeft + 10, kBottom - kTop + 10);
  }

  void write_grid() {
    for (double k = std::ceil(y_.low / y_.tick - 1e-9); k * y_.tick <= y_.high + 1e-9 * y_.tick; k += 1.0) {
      const double y = y_of(k * y_.tick);
      put(R"(<line x1="{:.0f}" x2="{:.0f}" y1="{:.1f}" y2="{:.1f}" class="grid"/>)", kLeft, kRight, y, y);
      put(R"(<text x="{:.0f}" y="{:.1f}" text-anchor="end" class="soft">{:.{}f}</text>)", kLeft - 8, y + 4.5,
          k * y_.tick + 0.0, y_.digits);
    }
    for (double k = std::ceil(x_.low / x_.tick - 1e-9); k * x_.tick <= x_.high + 1e-9 * x_.tick; k += 1.0) {
      const double x = x_of(k * x_.tick);
      put(R"(<line x1="{0:.1f}" x2="{0:.1f}" y1="{1:.0f}" y2="{2:.0f}" class="grid"/>)", x, kTop, kBottom);
      put(R"(<text x="{:.1f}" y="{:.0f}" text-anchor="middle" class="soft">{:.0f}</text>)", x, kBottom + 20,
          k * x_.tick + 0.0);
    }
    put(R"(<rect x="{:.0f}" y="{:.0f}" width="{:.0f}" height="{:.0f}" class="frame"/>)", kLeft, kTop, kRight - kLeft,
        kBottom - kTop);
    put(R"(<text x="{:.0f}" y="{:.0f}" text-anchor="middle">optimizer step</text>)", (kLeft + kRight) / 2,
        kHeight - 18);
    put(R"svg(<text transform="translate(20 {:.0f}) rotate(-90)" text-anchor="middle">)svg"
        "loss (nats per label token)</text>",
        (kTop + kBottom) / 2);
  }

  void write_line(const std::vector<CurvePoint>& points, std::string_view style) {
    if (points.size() < 2) {
      if (points.size() == 1 && style != "val") {
        put(R"(<circle cx="{:.1f}" cy="{:.1f}" r="2" class="line {}"/>)", x_of(points[0].x), y_of(points[0].y), style);
      }
      return;
    }
    std::string path;
    for (const CurvePoint& point : points) {
      fmt::format_to(std::back_inserter(path), "{}{:.1f} {:.1f}", path.empty() ? "M" : "L", x_of(point.x),
                     y_of(point.y));
    }
    put(R"(<path d="{}" class="line {}"/>)", path, style);
  }

  /// The first and the last validation loss in figures.
  void write_values() {
    if (validation_.empty()) return;
    const auto label = [&](const CurvePoint& point, std::string_view anchor, double shift) {
      const double y = y_of(point.y) - 10 < kTop + 12 ? y_of(point.y) + 20 : y_of(point.y) - 10;
      put(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="value">{:.3f}</text>)", x_of(point.x) + shift, y,
          anchor, point.y);
    };
    label(validation_.front(), "start", 6);
    if (validation_.size() > 1) label(validation_.back(), "end", -2);
  }

  void write_legend() {
    double right = kRight;
    const auto entry = [&](std::string_view name, std::string_view style, double width) {
      right -= width;
      put(R"(<path d="M{:.0f} 46h24" class="line {}"/>)", right, style);
      put(R"(<text x="{:.0f}" y="50.5">{}</text>)", right + 31, name);
    };
    if (!validation_.empty()) entry("validation", "val", 112);
    if (!training_.empty()) entry("training, smoothed", "train", 176);
    if (!training_.empty()) entry("training", "train raw", 104);
  }

  std::string_view title_;
  std::vector<CurvePoint> training_;
  std::vector<CurvePoint> trend_;
  std::vector<CurvePoint> validation_;
  Axis x_;
  Axis y_;
  fmt::memory_buffer text_;
};

}  // namespace detail

/// The curves of `records` under `title`. Records whose loss is not finite are left out.
inline std::string loss_svg(std::span<const MetricsRecord> records, std::string_view title) {
  return detail::LossPicture(records, title).draw();
}

PEFT_END_NAMESPACE
