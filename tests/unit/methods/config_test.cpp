// LoraConfig's checks, what patterns are taken, and the text when nothing matches. What matches is a golden test.
#include <string>
#include <vector>

#include "peft/target_modules.hpp"
#include "support/catch.hpp"

using namespace peft;

namespace {

std::string message(const LoraConfig& config) {
  try {
    config.validate();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

std::string pattern_message(const std::string& pattern, PatternUse use = PatternUse::kWholeName) {
  try {
    ModulePattern("field", pattern, use);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("LoraConfig has PEFT's defaults") {
  const LoraConfig config;
  REQUIRE(config.r == 8);
  REQUIRE(config.lora_alpha == 8.0);
  REQUIRE(config.lora_dropout == 0.0f);
  REQUIRE(config.bias == "none");
  REQUIRE_FALSE(config.use_rslora);
  REQUIRE(std::get<bool>(config.init_lora_weights));
  REQUIRE_FALSE(config.target_modules.is_set());
  REQUIRE(message({.target_modules = {"q_proj"}}).empty());
  REQUIRE(message({.target_modules = "all-linear", .init_lora_weights = "gaussian"}).empty());
}

TEST_CASE("A field that is out of range, contradicts another or is not supported is refused by name") {
  const auto refused = [](const LoraConfig& config, const std::string& field) {
    const std::string text = message(config);
    INFO(text);
    REQUIRE(text.find("LoraConfig: ") == 0);
    REQUIRE(text.find(field) != std::string::npos);
  };
  const ModuleSelector some = {"q_proj"};
  refused({.r = 0, .target_modules = some}, "r is 0");
  refused({.lora_alpha = std::nan(""), .target_modules = some}, "lora_alpha is nan");
  refused({.target_modules = some, .lora_dropout = 1.0f}, "lora_dropout is 1");
  refused({.target_modules = some, .lora_dropout = -0.1f}, "lora_dropout is -0.1");
  refused({.target_modules = some, .bias = "some"}, "bias is \"some\"");
  refused({.target_modules = some, .init_lora_weights = "corda"}, "init_lora_weights = \"corda\"");
  refused({.target_modules = some, .init_lora_weights = "pissa_niter_"}, "init_lora_weights = \"pissa_niter_\"");
  refused({.target_modules = some, .init_lora_weights = "pissa_niter_x"}, "init_lora_weights = \"pissa_niter_x\"");
  for (const char* start : {"pissa", "pissa_niter_16", "olora", "orthogonal", "loftq", "eva"}) {
    REQUIRE(message({.target_modules = some, .init_lora_weights = start}).empty());
  }
  const auto with = [&](auto&& change) {
    LoraConfig config{.target_modules = some};
    change(config);
    return config;
  };
  refused(with([](LoraConfig& c) { c.lora_bias = c.use_dora = true; }), "lora_bias and use_dora");
  refused(with([](LoraConfig& c) { c.lora_bias = true, c.init_lora_weights = "gaussian"; }), "lora_bias goes with");
  refused(with([](LoraConfig& c) { c.use_dora = true, c.alora_invocation_tokens = {1}; }), "alora_invocation_tokens");
  refused(with([](LoraConfig& c) { c.alora_invocation_tokens = {-1}; }), "alora_invocation_tokens holds -1");
  refused(with([](LoraConfig& c) { c.trainable_token_indices = {{"", {3, -2}}}; }), "trainable_token_indices");
  refused(with([](LoraConfig& c) { c.eva_config.rho = 0.5; }), "eva_config.rho is 0.5");
  refused(with([](LoraConfig& c) { c.eva_config.tau = 2; }), "eva_config.tau is 2");
  refused({.target_modules = some, .layers_pattern = {"layers"}}, "layers_to_transform");
  refused({.target_modules = some, .layers_to_transform = {-1}}, "layers_to_transform holds -1");
  refused({.target_modules = ".*q_proj", .layers_to_transform = {1}},
          "layers_to_transform needs target_modules to be a list");
  refused({.target_modules = some, .rank_pattern = {{"q_proj", 0}}}, "rank_pattern[\"q_proj\"] is 0");
  refused({}, "target_modules is null");
  refused({.target_modules = ModuleSelector(std::vector<std::string>{})}, "target_modules is []");
}

TEST_CASE("Scale is alpha/r, or alpha/sqrt(r) where rank-stabilised, per module") {
  const LoraConfig config{.r = 4,
                          .lora_alpha = 8,
                          .target_modules = {"q"},
                          .rank_pattern = {{"q", 16}, {"a.q", 2}},
                          .alpha_pattern = {{"a\\.q", 6}}};
  REQUIRE(rank_for(config, "k") == 4);
  REQUIRE(scaling_for(config, "k") == 2.0);
  REQUIRE(rank_for(config, "a.q") == 16);  // the first key that matches counts
  REQUIRE(scaling_for(config, "a.q") == 6.0 / 16.0);
  REQUIRE(scaling_for({.r = 16, .lora_alpha = 8, .target_modules = {"q"}, .use_rslora = true}, "q") == 2.0);
}

TEST_CASE("Patterns that Python reads otherwise, or not at all, are refused by name and position") {
  const auto refused = [](const std::string& pattern, const std::string& what, int position) {
    const std::string text = pattern_message(pattern);
    INFO(text);
    REQUIRE(text == "field: the pattern \"" + pattern + "\" is not supported: " + what + " at character " +
                        std::to_string(position));
  };
  refused("(?P<a>x)", "named group (?P<…>)", 1);
  refused("x(?P=a)", "named back-reference (?P=…)", 2);
  refused("(?<=x)a", "lookbehind (?<…)", 1);
  refused("a(?<!x)a", "lookbehind (?<…)", 2);
  refused("(?i)x", "inline flags (?…)", 1);
  refused("(?#note)x", "comment (?#…)", 1);
  refused("(a)(?(1)b|c)", "conditional (?(…)…)", 4);
  refused("(?>a)", "atomic group (?>…)", 1);
  refused("a*+", "possessive quantifier", 3);
  refused("a**", "multiple repeat", 3);
  refused("a*?*", "multiple repeat", 4);
  refused("*a", "nothing to repeat", 1);
  refused("(|+)", "nothing to repeat", 3);
  refused("(a", "group is never closed", 1);
  refused("a)", "')' closes no group", 2);
  refused("[ab", "character class is never closed", 1);
  refused("[]a]", "']' as the first of a class; write \\]", 2);
  refused("[[:alpha:]]", "POSIX class [[:…:]]", 2);
  refused("[z-a]", "range in a class that does not go upwards", 4);
  refused("a{,3}", "'{' that does not start {n}, {n,} or {n,m}", 2);
  refused("a{3,2}", "quantifier whose upper limit is below its lower", 2);
  refused("a}", "'}' without a quantifier; write \\}", 2);
  refused("\\Aq", "escape \\A", 1);
  refused("(q)\\1", "escape \\1", 4);
  refused("q\\", "'\\' at the end", 2);
  refused(".*(?=(a|\\b))", "escape \\b in a lookahead", 9);
  refused("a(?!^b)", "'^' in a lookahead", 5);
  REQUIRE(pattern_message(std::string(5000, 'a')).find("5000 characters") != std::string::npos);
  REQUIRE(pattern_message(std::string(100, '(') + std::string(100, ')')).find("too many nested groups") !=
          std::string::npos);
  for (const char* fine : {"", ".*", "(?:a|b)+?", "a{2}b{1,}c{1,3}?", "[^\\w.-]", "[a-z0-9_\\]]*", "x(?=y)y",
                           "(?!x)\\d+$", "(?=(a))\\ba", "^a\\.b", "\\{a\\}"}) {
    INFO(fine);
    REQUIRE(pattern_message(fine).empty());
  }
}

TEST_CASE("Patterns of strangers take neither forever nor the stack") {
  const std::string name = "model.layers.12.self_attn.q_proj.and.a.tail.of.forty.more.characters.that.match";
  for (const char* slow : {"(.+)+x", "(a|b|.)*x", "(.*.*)*x", ".*.*.*.*.*.*.*.*.*.*x", "(?:.?.?){50}.{20}x", "(a?){300}.*x"}) {
    INFO(slow);
    const ModulePattern pattern("field", slow, PatternUse::kWholeName);
    CHECK_FALSE(pattern.matches_all(name));
    CHECK(pattern.matches_all(name + "x"));
  }
  std::string many;
  for (int i = 0; i < 999; ++i) many += "a?";
  CHECK(ModulePattern("field", many, PatternUse::kWholeName).matches_all("aaa"));
  std::string alternatives = "a";
  for (int i = 0; i < 1100; ++i) alternatives += "|a";
  for (const std::string& deep : {many + "a?a?a?", alternatives, std::string("(a?|b?){999}"), std::string("(a{99}){99}b"),
                                  std::string("((((a{9}){9}){9}){9}){9}"), std::string("(a){9999}"), std::string("a{9999}?")}) {
    INFO(deep);
    CHECK(pattern_message(deep).find("too many repetitions") != std::string::npos);
  }
  // Where the way that a match took counts, all ways are tried: only few are allowed.
  for (const char* slow : {"(.+)+x", "(a|b)*", "(?:a|b){2,3}"}) {
    CHECK(pattern_message(slow, PatternUse::kStartOfName).find("repetition of a group") != std::string::npos);
  }
  CHECK(pattern_message(".*.*.*.*", PatternUse::kStartOfName).find("too many repetitions") != std::string::npos);
  for (const char* fine : {"layers", "(h|blocks|layers)", "(?:layers|experts)?", ".*.*.*", "[a-z]+\\.layers", "\\)+"}) {
    INFO(fine);
    CHECK(pattern_message(fine, PatternUse::kStartOfName).empty());
  }
}

TEST_CASE("Targets that match nothing are an error that says what the modules are called") {
  const std::vector<std::string> names = {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj",
                                          "model.layers.1.self_attn.q_proj", "lm_head"};
  const auto text = [&](const LoraConfig& config,
                        UnmatchedTargets unmatched = UnmatchedTargets::kRefuse) -> std::string {
    try {
      match_target_modules(config, names, unmatched);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  REQUIRE(text({.target_modules = {"query", "value"}}) ==
          "LoraConfig: target_modules = [\"query\", \"value\"] matches none of 4 linear layers; their names end in: "
          "q_proj, up_proj, lm_head");
  REQUIRE(text({.target_modules = ".*query"}).find("target_modules = \".*query\" matches none") != std::string::npos);
  REQUIRE(text({.target_modules = {"q_proj"}, .exclude_modules = ".*"})
              .find("that exclude_modules and layers_to_transform leave") != std::string::npos);
  // One entry of several that fits nothing: Python keeps silent.
  REQUIRE(text({.target_modules = {"q_proj", "v_proj"}}).find("names \"v_proj\", which is none of 4 linear layers") !=
          std::string::npos);
  REQUIRE(text({.target_modules = {"q_proj", "v_proj"}}, UnmatchedTargets::kAllow).empty());
  // "all-linear" leaves the head out under its own name too.
  REQUIRE(match_target_modules({.target_modules = "all-linear"}, names).size() == 3);
  REQUIRE(match_target_modules({.target_modules = "all-linear"}, names, UnmatchedTargets::kRefuse, "up_proj").size() ==
          3);
}
